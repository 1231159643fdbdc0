"""The known errors, each of one line and with an exit code that a script can rely on; and how messages are worded."""

import difflib
from collections.abc import Iterable


class RjemError(Exception):
    """A known failure. Its text is one line: what is wrong, which value or file, and what to do."""

    exit_code = 1


class ConfigError(RjemError):
    """An invalid flag, YAML key or combination of them."""

    exit_code = 2


class OptionError(ConfigError):
    """An invalid value of one option. `text`: the value as the user wrote it, where that is known."""

    def __init__(self, flag: str, value: object, problem: str, text: str | None = None):
        super().__init__(flag, value, problem, text)  # the arguments, so that it can be pickled
        self.flag, self.value, self.problem, self.text = flag, value, problem, text

    def __str__(self) -> str:
        text = (
            "null" if self.value is None else f"{self.value:g}" if isinstance(self.value, float) else repr(self.value)
        )
        return f"{self.flag} {(self.text or text).splitlines()[0][:200]}{self.problem}"


class AbsentError(RjemError):
    """Something needed is absent: a checkpoint, a data set, weights, the internet."""

    exit_code = 3


class DataError(RjemError):
    """An input file is corrupt, has the wrong size, or is not what its name says."""


class RequirementError(RjemError):
    """A score does not meet a condition of --require."""

    exit_code = 4


class DivergedError(RjemError):
    """Training diverged too often; its newest checkpoint stays in place."""

    exit_code = 5


class InterruptedRunError(RjemError):
    """A signal stopped the run after its state was saved. The shell's convention: 128 + the signal's number."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.exit_code = 128 + signal_number

    def __reduce__(self) -> tuple[type, tuple[str, int], dict[str, object]]:
        return type(self), (str(self), self.exit_code - 128), self.__dict__


class PeerLostError(RjemError):
    """Another process of the same training run has ended, or cannot be reached."""


MEMORY_MESSAGES = (
    "out of memory",
    "allocate memory",
    "ALLOC_FAILED",
    "bad_alloc",
    "can't start new thread",
    "could not create a primitive",
    "valid cuDNN algorithm",  # these two: no memory for cuDNN's workspace
    "unable to find an engine to execute",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Recognized by the message: PyTorch has a class only for the errors of its own GPU allocator."""
    if isinstance(error, (ImportError, OSError)):  # a library does not fit into memory
        return "failed to map segment" in str(error) or "allocate memory" in str(error)
    known = isinstance(error, RuntimeError) and any(message in str(error) for message in MEMORY_MESSAGES)
    return known or isinstance(error, MemoryError)


def summarize(error: BaseException) -> str:
    """The message of another library's error, or its type, as at most 160 characters of one line."""
    return " ".join(str(error).split())[:160] or type(error).__name__


def pluralize(count: int, noun: str, plural: str = "") -> str:
    """`1 chain`, `2 chains`; with the plural of another noun, `2 classes`."""
    return f"{count} {noun if count == 1 else plural or noun + 's'}"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint: the nearest known names, else all of them if they are few."""
    names = list(known)
    near = difflib.get_close_matches(word, names, n=2, cutoff=0.6)
    if near:
        return f"did you mean {' or '.join(near)}?"
    if len(names) <= 20:
        return f"choose from {', '.join(names)}"
    return f"{len(names)} names are known, {names[0]} to {names[-1]}"
