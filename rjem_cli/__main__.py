"""Run the app; turn a known error into one line on stderr and an exit code."""

from __future__ import annotations

import os
import sys
import time
from types import TracebackType

from rjem_cli.errors import (
    ConfigError,
    DivergedError,
    InterruptedRunError,
    LostRanksError,
    RjemError,
    is_out_of_memory,
)

INTERRUPTED = 128 + 2
LAST_WORDS = 1.0  # seconds that the first process of a job has to say why it fails; torchrun ends it once another has


def main(arguments: list[str] | None = None) -> int:
    """The command's exit code. Errors that rjem does not know keep their traceback."""
    from rjem_cli.engine.ranks import are_started, end_process, own_rank

    try:
        code = run(arguments or sys.argv[1:] or ["--help"])
    except KeyboardInterrupt:  # while modules are imported
        from rjem_cli.interface.console import fail

        fail("interrupted")
        code = INTERRUPTED
    if are_started():
        if code and own_rank():
            time.sleep(LAST_WORDS)
        end_process(code)
    return code


def run(arguments: list[str]) -> int:
    """`main`, once Python itself has begun."""
    from rjem_cli.app import app
    from rjem_cli.commands.completion import COMPLETE_VARIABLE
    from rjem_cli.engine.ranks import own_rank
    from rjem_cli.interface.console import fail

    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # names of files and classes need not fit the terminal's encoding
            unicode = str(stream.encoding).lower().startswith("utf")
            stream.reconfigure(errors="surrogateescape" if unicode else "backslashreplace")
    if COMPLETE_VARIABLE in os.environ:  # a shell asks for completions; Typer knows the shells only once told
        from typer.completion import completion_init

        completion_init()
    try:
        code = int(app(arguments, prog_name="rjem", standalone_mode=False) or 0)
        if code == INTERRUPTED and own_rank() == 0:  # Typer swallows a KeyboardInterrupt
            fail("interrupted")
        return code
    except BrokenPipeError:  # the reader of our pipe has gone; there is nobody to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        explained = explain(error)
        if explained is None and is_told_by_first(error):
            return RjemError.exit_code
        if explained is None:
            error.__traceback__ = own_part(error.__traceback__)
            raise
        message, code = explained
        if own_rank() == 0:
            fail(message)
        elif not is_told_by_first(error):
            fail(f"rank {own_rank()}: {message}")
        return code


def explain(error: Exception) -> tuple[str, int] | None:
    """(one line, exit code) of an error that has a plain meaning; None for one that is a bug."""
    if isinstance(error, RjemError):
        return str(error), error.exit_code
    if isinstance(error, LostRanksError):
        return str(error), RjemError.exit_code
    if is_usage(error):
        return f"{error.format_message().rstrip('.')} (see --help)", int(error.exit_code)  # type: ignore[attr-defined]
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'the system'}: {error.strerror}", 1
    if isinstance(error, ImportError) and is_out_of_memory(error):
        return f"not enough memory to load what rjem needs ({str(error)[:200]}); give this process more", 1
    if is_out_of_memory(error):
        return f"not enough memory ({str(error)[:200]}); lower --batch-size, --block-size, --buffer-size or --width", 1
    return None


def own_part(traceback: TracebackType | None) -> TracebackType | None:
    """From the command on, if it came so far: how the line was parsed does not matter to who reads it."""
    found = traceback
    while found and f"{os.sep}rjem_cli{os.sep}commands{os.sep}" not in found.tb_frame.f_code.co_filename:
        found = found.tb_next
    return found or traceback


def is_told_by_first(error: Exception) -> bool:
    """Whether the first process of a job has the same to say: of flags, which all of them have, of signals, and of
    training that diverged."""
    told: bool | None = getattr(error, "told", None)
    if told is not None:
        return told
    return is_usage(error) or isinstance(error, ConfigError | DivergedError | InterruptedRunError)


def is_usage(error: Exception) -> bool:
    """Typer keeps its usage errors in a private module."""
    return hasattr(error, "format_message") and hasattr(error, "exit_code")


if __name__ == "__main__":
    sys.exit(main())
