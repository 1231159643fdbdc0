"""Conditions on scores, for scripts: `fid<=45,recall>0.3`."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from rjem_cli.errors import ConfigError, DataError, RequirementError, did_you_mean

OPERATORS = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt}


@dataclass(frozen=True)
class Requirement:
    """`score` must stand in `relation` to `bound`."""

    score: str
    relation: str
    bound: float

    def __str__(self) -> str:
        return f"{self.score}{self.relation}{self.bound:g}"

    def holds(self, scores: Mapping[str, float]) -> bool:
        """False also for a score that these images do not have, such as distances within a class of one image."""
        return self.score in scores and bool(OPERATORS[self.relation](scores[self.score], self.bound))


@dataclass(frozen=True)
class Requirements:
    """All conditions of one call."""

    requirements: tuple[Requirement, ...]

    def check_names(self, scores: Iterable[str], renamed: Callable[[str], str | None] = lambda name: None) -> None:
        """`renamed` gives what a score of Inception's is called with the call's features. Raises ConfigError for a
        condition on a score that will not be computed."""
        known = list(scores)
        for gate in self.requirements:
            if gate.score not in known:
                other = renamed(gate.score)
                hint = f"with these features it is {other}" if other in known else did_you_mean(gate.score, known)
                raise ConfigError(f"--require {gate}: this call does not compute {gate.score!r}; {hint}")

    def held(self, scores: Mapping[str, float]) -> dict[str, bool]:
        return {str(gate): gate.holds(scores) for gate in self.requirements}

    def check(self, scores: Mapping[str, float]) -> None:
        """Raises RequirementError, which names every condition that does not hold."""
        failed = [
            f"{gate} does not hold: {value_of(gate, scores)}" for gate in self.requirements if not gate.holds(scores)
        ]
        if failed:
            raise RequirementError(f"--require {'; '.join(failed)}")


def check_finite(scores: Mapping[str, float], name: str) -> None:
    """Raises DataError for a score that is not finite: it would be no result."""
    for score, value in scores.items():
        if not math.isfinite(value):
            raise DataError(f"{score} of {name} is not finite: what it is made of is not, or too little")


def value_of(gate: Requirement, scores: Mapping[str, float]) -> str:
    return f"{scores[gate.score]:.6g}" if gate.score in scores else "these images have no such score"


def parse_requirements(text: str | None) -> Requirements:
    """Raises ConfigError for what is no condition."""
    requirements = []
    for part in text.split(",") if text else []:
        found = re.fullmatch(r"\s*([^\s<>=]+)\s*(<=|>=|<|>)\s*(\S+)\s*", part)
        try:
            bound = float(found[3]) if found else math.nan
        except ValueError:
            bound = math.nan
        if not found or not math.isfinite(bound):
            raise ConfigError(f"--require {part.strip()!r}: give a score, <, <=, > or >=, and a number: 'fid<=45'")
        requirements.append(Requirement(found[1], found[2], bound))
    return Requirements(tuple(requirements))
