"""How the engine reports: through functions that its caller gives."""

from collections.abc import Callable

Log = Callable[[str], None]
OnProgress = Callable[[str, int, int], None]  # phase, done, total; may raise to stop the work


def noop(*arguments: object) -> None:
    """Ignore what is reported."""
