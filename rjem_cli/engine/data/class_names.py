"""From what a user calls a class to its number."""

from __future__ import annotations

from collections.abc import Sequence

from rjem_cli.errors import ConfigError, did_you_mean

UNCONDITIONAL = "none"


def parse_classes(text: str, class_names: Sequence[str]) -> list[int]:
    """`all`, or names and numbers with commas between; a name wins over a number, `all` over a class of that name.
    `none` draws starts from all classes. Raises ConfigError with the nearest name."""
    if text in ("all", UNCONDITIONAL):
        return list(range(len(class_names)))
    return [parse_class(word.strip(), class_names, "--class") for word in text.split(",")]


def parse_class(word: str, class_names: Sequence[str], flag: str) -> int:
    """One name or number. Raises ConfigError with the nearest name."""
    if word in class_names:
        return class_names.index(word)
    if word.isdecimal() and len(word) < 10 and int(word) < len(class_names):
        return int(word)
    raise ConfigError(f"{flag} {word!r} is unknown to this checkpoint; {did_you_mean(word, class_names)}")
