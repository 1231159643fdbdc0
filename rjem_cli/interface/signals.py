"""SIGINT, SIGTERM and SIGHUP as a request to finish the step, save and stop; a second one stops at once."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from rjem_cli.engine.ranks import are_started
from rjem_cli.errors import InterruptedRunError, LostRanksError
from rjem_cli.interface.console import Bar


@dataclass
class StopRequest:
    """The signal that asked to stop, or None."""

    signal_number: int | None = None

    def __call__(self) -> bool:
        return self.signal_number is not None


@contextmanager
def stop_on_signals(tell: Callable[[str], None]) -> Iterator[StopRequest]:
    """For the main thread. The first signal is a request, the second raises SystemExit with the shell's code for it."""
    request = StopRequest()

    def on_signal(number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if not request():
            request.signal_number = number
            tell(f"{name}: finishing this step and saving{'' if are_started() else '; once more to stop at once'}")
        elif not are_started():  # torchrun sends on what the terminal sent already, and itself ends what does not stop
            tell(f"{name} again: stopped at once")
            raise SystemExit(128 + number)

    numbers = [signal.SIGINT, signal.SIGTERM]
    hangup = getattr(signal, "SIGHUP", None)  # terminal closed; not on Windows, ignored under nohup
    if hangup is not None and signal.getsignal(hangup) is signal.SIG_DFL:
        numbers.append(hangup)
    earlier = {number: signal.signal(number, on_signal) for number in numbers}
    try:
        yield request
    except BaseException as error:
        if are_started():  # torchrun ends those that are left, and is not to cut off what they have to say
            earlier[signal.SIGTERM] = signal.SIG_IGN
        if isinstance(error, LostRanksError) and request():
            gone = "the other processes of this job are gone; what was whole before stays, and the same call goes on"
            stopped = interrupted(request, f"{gone} (train: with --resume)")
            stopped.told = error.told  # the first may be the one that is gone
            raise stopped from None
        raise
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def stoppable(bar: Bar, stop: StopRequest, kept: str) -> Callable[[str, int, int], None]:
    """Progress that ends the command once a signal came."""

    def watch(phase: str, done: int, total: int) -> None:
        if stop():
            raise interrupted(stop, kept)
        bar.update(phase, done, total)

    return watch


def interrupted(stop: StopRequest, kept: str) -> InterruptedRunError:
    assert stop.signal_number is not None
    return InterruptedRunError(kept, stop.signal_number)
