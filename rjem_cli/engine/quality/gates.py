"""Conditions on scores, for scripts: `fid<=45,recall>0.3`."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from rjem_cli.errors import ConfigError, did_you_mean

OPERATORS = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt}


@dataclass(frozen=True)
class Gate:
    """`score` must stand in `relation` to `bound`."""

    score: str
    relation: str
    bound: float

    def __str__(self) -> str:
        return f"{self.score}{self.relation}{self.bound:g}"

    def holds(self, scores: Mapping[str, float]) -> bool:
        """False also for a score that these samples do not have, such as distances within a class of one image."""
        return self.score in scores and bool(OPERATORS[self.relation](scores[self.score], self.bound))

    def describe(self, scores: Mapping[str, float]) -> str:
        value = f"{scores[self.score]:.6g}" if self.score in scores else "there is no such score of these samples"
        return f"--require {self} does not hold: {value}"


def parse_gates(text: str | None) -> list[Gate]:
    """Raises ConfigError for what is no condition."""
    gates = []
    for part in text.split(",") if text else []:
        found = re.fullmatch(r"\s*(\w+)\s*(<=|>=|<|>)\s*(\S+)\s*", part)
        try:
            bound = float(found[3]) if found else math.nan
        except ValueError:
            bound = math.nan
        if not found or not math.isfinite(bound):
            raise ConfigError(f"--require {part.strip()!r}: give a score, <, <=, > or >=, and a number: 'fid<=45'")
        gates.append(Gate(found[1], found[2], bound))
    return gates


def check_names(gates: Iterable[Gate], scores: Iterable[str], renamed: Callable[[str], str | None]) -> None:
    """`renamed` gives what a score of Inception's is called with the call's features. Raises ConfigError for a
    condition on a score that will not be computed."""
    known = list(scores)
    for gate in gates:
        if gate.score not in known:
            other = renamed(gate.score)
            hint = f"with these features it is {other}" if other in known else did_you_mean(gate.score, known)
            raise ConfigError(f"--require {gate}: this call does not compute {gate.score!r}; {hint}")
