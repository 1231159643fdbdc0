"""SIGINT, SIGTERM and SIGHUP ask the command to finish its step, save and stop; a second one stops it at once."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from rjem_cli.cli.progress import ProgressBar
from rjem_cli.engine.distributed import is_distributed
from rjem_cli.errors import InterruptedRunError


@dataclass
class StopRequest:
    """True when called after a signal came; `signal_number` is its number, or None."""

    signal_number: int | None = None

    def __call__(self) -> bool:
        return self.signal_number is not None


@contextmanager
def stop_on_signals(log: Callable[[str], None]) -> Iterator[StopRequest]:
    """For the main thread. The first signal sets the request, the second raises SystemExit with the shell's exit
    code."""
    request = StopRequest()

    def on_signal(number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if not request():
            request.signal_number = number
            log(f"{name}: finishing this step and saving{'' if is_distributed() else '; repeat to stop at once'}")
        elif not is_distributed():  # torchrun repeats the terminal's signal, and kills processes that do not stop
            log(f"{name} again: stopped at once")
            raise SystemExit(128 + number)

    numbers = [signal.SIGINT, signal.SIGTERM]
    hangup = getattr(signal, "SIGHUP", None)  # terminal closed; not on Windows, ignored under nohup
    if hangup is not None and signal.getsignal(hangup) is signal.SIG_DFL:
        numbers.append(hangup)
    earlier = {number: signal.signal(number, on_signal) for number in numbers}
    try:
        yield request
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def stoppable(bar: ProgressBar, stop: StopRequest, message: str) -> Callable[[str, int, int], None]:
    """An on_progress callback that raises InterruptedRunError with `message` after a signal."""

    def on_progress(phase: str, done: int, total: int) -> None:
        if stop():
            raise interrupted(stop, message)
        bar.update(phase, done, total)

    return on_progress


def interrupted(stop: StopRequest, message: str) -> InterruptedRunError:
    assert stop.signal_number is not None
    return InterruptedRunError(message, stop.signal_number)
