"""Entry point: run the app, and turn a known error into one line on stderr and an exit code."""

import contextlib
import os
import sys
import time
import warnings
from types import TracebackType

from rjem_cli.errors import RjemError, is_out_of_memory
from rjem_cli.threads import share_cores

INTERRUPTED = 128 + 2
# PyTorch shows them before it tries another kernel, or raises an error that rjem handles
PYTORCH_MEMORY_WARNINGS = ("CUDA ran out of memory outside PyTorch's allocator", "Plan failed with an OutOfMemoryError")
SECONDS_FOR_MAIN = 1.0  # delay of the other processes' failure: torchrun ends the main one with the first that fails


def main(arguments: list[str] | None = None) -> int:
    """The command's exit code. Unknown errors keep their traceback."""
    from rjem_cli.engine.distributed import is_distributed, rank_from_environment

    share_cores()
    try:
        code = run(arguments or sys.argv[1:] or ["--help"])
    except KeyboardInterrupt:  # during imports
        from rjem_cli.cli.console import fail

        fail("interrupted")
        code = INTERRUPTED
    if is_distributed():
        if code and rank_from_environment():
            time.sleep(SECONDS_FOR_MAIN)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(AttributeError, OSError, ValueError):  # closed, or its reader has gone
                stream.flush()
        os._exit(code)  # threads of the process group can abort an orderly exit
    return code


def run(arguments: list[str]) -> int:
    from rjem_cli.cli.app import app
    from rjem_cli.cli.commands.completion import COMPLETE_VARIABLE
    from rjem_cli.cli.console import fail

    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # names of files and classes may not fit the terminal's encoding
            is_unicode = str(stream.encoding).lower().startswith("utf")
            stream.reconfigure(errors="surrogateescape" if is_unicode else "backslashreplace")
    for message in PYTORCH_MEMORY_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    if COMPLETE_VARIABLE in os.environ:  # the shell asks for completions
        from typer.completion import completion_init  # type: ignore[attr-defined]

        completion_init()
    try:
        code = int(app(arguments, prog_name="rjem", standalone_mode=False) or 0)
        if code == INTERRUPTED:  # Typer handles a KeyboardInterrupt itself
            fail("interrupted")
        return code
    except BrokenPipeError:  # the reader of our pipe has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        explanation = explain(error)
        if explanation is None:
            error.__traceback__ = trim_traceback(error.__traceback__)
            raise
        message, code = explanation
        report(error, message)
        return code


def explain(error: Exception) -> tuple[str, int] | None:
    """The message and exit code of a known error; None for a bug."""
    if isinstance(error, RjemError):
        return str(error), error.exit_code
    if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # a usage error, whose class Typer hides
        return f"{error.format_message().rstrip('.')} (see --help)", int(error.exit_code)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'the system'}: {error.strerror}", 1
    if isinstance(error, (ImportError, OSError)) and is_out_of_memory(error):
        return f"not enough memory to load rjem's libraries ({str(error)[:200]})", 1
    if is_out_of_memory(error):
        return f"not enough memory ({str(error)[:200]}); lower --batch-size, --block-size, --buffer-size or --width", 1
    return None


def report(error: Exception, message: str) -> None:
    """Log one line. With several processes, errors that all have alike are logged by the main process only."""
    from rjem_cli.cli.console import fail
    from rjem_cli.engine.distributed import rank_from_environment

    rank = rank_from_environment()
    is_usage = hasattr(error, "format_message")
    alike = is_usage or (isinstance(error, RjemError) and type(error) is not RjemError)
    if rank == 0:
        fail(message)
    elif not alike:
        fail(f"rank {rank}: {message}")


def trim_traceback(traceback: TracebackType | None) -> TracebackType | None:
    """Leave out how the command line was parsed, before the frame of the command."""
    commands = os.path.join("", "rjem_cli", "cli", "commands", "")
    part = traceback
    while part and commands not in part.tb_frame.f_code.co_filename:
        part = part.tb_next
    return part or traceback


if __name__ == "__main__":
    sys.exit(main())
