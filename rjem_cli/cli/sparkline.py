"""A course of values in one line of text."""

from __future__ import annotations

import math
from collections.abc import Sequence

LEVELS = "▁▂▃▄▅▆▇█"
SPARK_WIDTH = 32


def sparkline(values: Sequence[float | None]) -> str:
    """At most SPARK_WIDTH values, evenly chosen, as bars between the least and the largest; a gap, and what is not
    finite, is a blank."""
    if not values:
        return ""
    finite = [value if value is not None and math.isfinite(value) else None for value in values]
    places = sorted({round(i * (len(values) - 1) / max(1, SPARK_WIDTH - 1)) for i in range(SPARK_WIDTH)})
    known = [value for value in finite if value is not None]
    low, high = (min(known), max(known)) if known else (0.0, 0.0)
    scale = (len(LEVELS) - 1) / (high - low) if high > low else 0.0
    return "".join(
        " " if (value := finite[place]) is None else LEVELS[round((value - low) * scale)] for place in places
    )
