"""Run the app; turn a known error into one line on stderr and an exit code."""

from __future__ import annotations

import os
import sys

from rjem_cli.commands.completion import COMPLETE_VARIABLE
from rjem_cli.errors import RjemError
from rjem_cli.interface.console import fail

INTERRUPTED = 128 + 2


def main(arguments: list[str] | None = None) -> int:
    """The command's exit code. Errors that rjem does not know keep their traceback."""
    from rjem_cli.app import app

    if COMPLETE_VARIABLE in os.environ:  # a shell asks for completions; Typer knows the shells only once told
        from typer.completion import completion_init

        completion_init()
    try:
        code = int(app(arguments, prog_name="rjem", standalone_mode=False) or 0)
        if code == INTERRUPTED:  # Typer swallows a KeyboardInterrupt
            fail("interrupted")
        return code
    except RjemError as error:
        fail(str(error))
        return error.exit_code
    except BrokenPipeError:  # the reader of our pipe has gone; there is nobody to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if hasattr(error, "format_message") and hasattr(
            error, "exit_code"
        ):  # Typer keeps its usage errors in a private module
            fail(f"{error.format_message()} (see --help)")
            return int(error.exit_code)
        raise


if __name__ == "__main__":
    sys.exit(main())
