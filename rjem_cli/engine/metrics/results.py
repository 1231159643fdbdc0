"""What every evaluation has: requirements on its scores, a line in the results file, and with --save a folder."""

import json
import math
import operator
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rjem_cli import __version__
from rjem_cli.config.scoring import EvalConfig
from rjem_cli.errors import ConfigError, DataError, RequirementError, did_you_mean
from rjem_cli.files import append_line, clear_output_folder, lock_output_folder, write_atomically, write_json
from rjem_cli.paths import expand, results_file

OUTPUT_FILES = re.compile(r"eval\.json|nearest\.png|classes\.png|reliability\.png|energies\.png")
OPERATORS = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt}

Figures = dict[str, Callable[[], bytes]]  # by file name; drawn only with --save


class Requirement(NamedTuple):
    """A condition on a score, for scripts: `fid<=45`."""

    score: str
    relation: str
    bound: float

    def __str__(self) -> str:
        return f"{self.score}{self.relation}{self.bound:g}"

    def is_met(self, scores: Mapping[str, float]) -> bool:
        """False also for a score that these images do not have, such as distances within a class of one image."""
        return self.score in scores and bool(OPERATORS[self.relation](scores[self.score], self.bound))


def parse_requirements(text: str | None) -> tuple[Requirement, ...]:
    """`fid<=45,recall>0.3`. Raises ConfigError for an invalid condition."""
    requirements = []
    for part in text.split(",") if text else []:
        match = re.fullmatch(r"\s*([^\s<>=]+)\s*(<=|>=|<|>)\s*(\S+)\s*", part)
        try:
            bound = float(match[3]) if match else math.nan
        except ValueError:
            bound = math.nan
        if not match or not math.isfinite(bound):
            raise ConfigError(f"--require {part.strip()!r}: give a score, <, <=, > or >=, and a number: 'fid<=45'")
        requirements.append(Requirement(match[1], match[2], bound))
    return tuple(requirements)


def check_score_names(
    requirements: Sequence[Requirement], names: Iterable[str], rename: Callable[[str], str] = str
) -> None:
    """Raises ConfigError for a requirement on a score that will not be computed. `rename` takes a score's name with
    Inception's features to that with the features in use."""
    known = list(names)
    for requirement in requirements:
        if requirement.score not in known:
            other = rename(requirement.score)
            hint = f"with these features it is {other}" if other in known else did_you_mean(requirement.score, known)
            raise ConfigError(f"--require {requirement}: {requirement.score!r} will not be computed; {hint}")


def check_requirements(requirements: Sequence[Requirement], scores: Mapping[str, float]) -> None:
    """Raises RequirementError, which names every requirement that is not met."""
    failed = []
    for requirement in requirements:
        if not requirement.is_met(scores):
            value = (
                f"{scores[requirement.score]:.6g}" if requirement.score in scores else "not defined for these images"
            )
            failed.append(f"{requirement} is not met: {requirement.score} is {value}")
    if failed:
        raise RequirementError(f"--require {'; '.join(failed)}")


def check_finite(scores: Mapping[str, float], name: str) -> None:
    """Raises DataError for a score that is not finite."""
    for score, value in scores.items():
        if not math.isfinite(value):
            raise DataError(f"{score} of {name} is not finite: its inputs are not finite, or too few")


def describe_call(
    kind: str, scores: Mapping[str, float], requirements: Sequence[Requirement], seconds: float
) -> dict[str, Any]:
    """The beginning of each document, with the scores by name."""
    return {
        "rjem": __version__,
        "kind": kind,
        **scores,
        "require": {str(requirement): requirement.is_met(scores) for requirement in requirements},
        "seconds": round(seconds, 1),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


@dataclass(frozen=True)
class ResultsWriter:
    """Appends to a file of lines and, if there is a `folder`, replaces what is in it."""

    results_file: Path
    folder: Path | None

    def write(self, document: dict[str, Any], figures: Figures, show: Callable[[], None]) -> None:
        """`show` is called last, even if something cannot be written. Raises RjemError then."""
        try:
            append_line(self.results_file, json.dumps(document, allow_nan=False))
            if self.folder is not None:
                clear_output_folder(self.folder, OUTPUT_FILES)
                for name, draw in figures.items():
                    write_atomically(self.folder / name, draw())
                write_json(self.folder / "eval.json", document)
        finally:
            show()


@contextmanager
def open_results(config: EvalConfig) -> Iterator[ResultsWriter]:
    """Check before the work that results can be written, and lock the folder. Raises ConfigError for a folder that
    holds other files, or results without --overwrite; RjemError if something cannot be written."""
    path = results_file() if config.results is None else expand(config.results)
    append_line(path, None)
    folder = None if config.save is None else expand(config.save)
    with ExitStack() as stack:
        if folder is not None:
            earlier = stack.enter_context(lock_output_folder(folder, "--save", OUTPUT_FILES, "eval.json"))
            if earlier is not None and not config.overwrite:
                raise ConfigError(f"--save {folder} already has results; add --overwrite, or choose another folder")
        yield ResultsWriter(path, folder)
