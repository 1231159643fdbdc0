"""A time limit: the command saves and stops before it is over."""

import re
import time
from collections.abc import Callable

from rjem_cli.errors import ConfigError

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

    def is_near(self) -> bool:
        """Whether less time is left than twice the longest piece of work: one more step, and the last checkpoint."""
        if self.seconds is None:
            return False
        return self.clock() - self.start + 2 * self.longest + MARGIN > self.seconds
