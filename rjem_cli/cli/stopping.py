"""What stops a command early: signals, and a time limit. It then finishes its step, saves and stops."""

import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from rjem_cli.cli.progress import ProgressBar
from rjem_cli.engine.distributed import is_distributed
from rjem_cli.errors import ConfigError, InterruptedRunError

DURATION = re.compile(r"(?:(\d{1,6})d)?(?:(\d{1,6})h)?(?:(\d{1,6})m)?(?:(\d{1,6})s)?")
MARGIN = 3.0  # seconds, for curves.png and the end of the process


def parse_duration(flag: str, text: str) -> float:
    """`90s`, `25m`, `1h30m`, `30d` in seconds. Raises ConfigError."""
    match = DURATION.fullmatch(text.strip().lower())
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups()) if match else (0, 0, 0, 0)
    if not days + hours + minutes + seconds:
        raise ConfigError(f"{flag} {text!r}: give a time such as 90s, 25m, 1h30m or 30d")
    return 86400.0 * days + 3600 * hours + 60 * minutes + seconds


class Deadline:
    """Call `tick` after each piece of work, such as a step with its checkpoint. `clock` returns seconds."""

    def __init__(self, flag: str, duration: str | None, clock: Callable[[], float] = time.monotonic):
        self.text = duration
        self.seconds = None if duration is None else parse_duration(flag, duration)
        self.clock, self.start, self.longest = clock, clock(), 0.0
        self.last_tick: float | None = None

    def tick(self) -> None:
        now = self.clock()
        if self.last_tick is not None:
            self.longest = max(self.longest, now - self.last_tick)
        self.last_tick = now

    def note_save(self, seconds: float) -> None:
        """Count a checkpoint that took `seconds` as a piece of work. It may have been written beside others."""
        self.longest = max(self.longest, seconds)

    def is_near(self) -> bool:
        """Whether less time is left than twice the longest piece of work: one more step, and the last checkpoint."""
        if self.seconds is None:
            return False
        return self.clock() - self.start + 2 * self.longest + MARGIN > self.seconds


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
