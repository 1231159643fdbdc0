"""The errors rjem words itself: one line on stderr each, and the exit code that a script can rely on."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RjemError(Exception):
    """A known failure. Its text is one line: what, which value or file, and what to do."""

    exit_code = 1


class ConfigError(RjemError):
    """A flag, a YAML key or a combination of them that cannot be meant."""

    exit_code = 2


class RadiusError(ConfigError):
    """A Linf radius, `eps` in model units, that covers the whole box: most likely grey levels without their /255.
    `text`: the radius as it was written, where that is known."""

    def __init__(self, flag: str, eps: float, text: str | None = None):
        text = text or f"{eps:g}"
        remedy = "give less than 255/255" if "/" in text else f"did you mean {text}/255?"
        super().__init__(f"{flag} {text} covers the whole box [-1, 1]; {remedy}")
        self.flag, self.eps = flag, eps

    def __reduce__(self) -> tuple[type, tuple[str, float], dict[str, object]]:
        return type(self), (self.flag, self.eps), self.__dict__


class AbsentError(RjemError):
    """Something needed is not there: a checkpoint, a data set, weights, the network."""

    exit_code = 3


class DataError(RjemError):
    """An input file is there but cannot be used: corrupt, of another size, not what its name says."""


class RequirementError(RjemError):
    """A score is there, but does not meet a condition of --require."""

    exit_code = 4


class DivergedError(RjemError):
    """Training ran away again and again; its newest checkpoint stays in place."""

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


def is_out_of_memory(error: BaseException) -> bool:
    """Known by its words: PyTorch has a class for what its own allocator of a GPU's memory says only."""
    words = ("out of memory", "allocate memory", "ALLOC_FAILED", "bad_alloc", "could not create a primitive")
    if isinstance(error, ImportError):  # a library that does not fit either
        return "failed to map segment" in str(error) or "allocate memory" in str(error)
    known = isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    return known or isinstance(error, MemoryError)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The nearest known names as a sentence, or all of them when none is near and they are few."""
    names = list(known)
    near = difflib.get_close_matches(word, names, n=2, cutoff=0.6)
    if near:
        return f"did you mean {' or '.join(near)}?"
    if len(names) <= 20:
        return f"choose from {', '.join(names)}"
    return f"{len(names)} names are known, {names[0]} to {names[-1]}"
