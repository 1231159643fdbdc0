"""Which scores a call computes: those that were asked for, or all that its images allow; what is left out is said."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from rjem_cli.config import METRICS
from rjem_cli.engine.metrics.eval_inputs import EvalInputs
from rjem_cli.engine.metrics.registry import CATALOGUE, score_name
from rjem_cli.engine.metrics.requirements import check_finite
from rjem_cli.engine.metrics.scores import EvalContext, PerClass, Scores
from rjem_cli.errors import ConfigError, DataError, did_you_mean


@dataclass(frozen=True)
class Plan:
    """`metrics` in the order of METRICS; `scores`, the names of what they give; `notes`, what is left out, and why."""

    metrics: tuple[str, ...]
    scores: tuple[str, ...]
    notes: tuple[str, ...]

    def only(self, wanted: tuple[str, ...]) -> Plan:
        """Without other metrics, and without a word of them."""
        notes = tuple(note for note in self.notes if note.split()[0] in wanted)
        return replace(self, metrics=tuple(metric for metric in self.metrics if metric in wanted), notes=notes)


def parse_metrics(text: str) -> tuple[str, ...] | None:
    """None means all. Raises ConfigError for an unknown one."""
    if text.strip() == "all":
        return None
    asked = [part.strip() for part in text.split(",")]
    for name in asked:
        if name not in METRICS:
            raise ConfigError(f"--metrics {name!r} is unknown; {did_you_mean(name, METRICS)}, or all alone")
    return tuple(name for name in METRICS if name in asked)


def make_plan(case: EvalInputs) -> Plan:
    """Raises DataError where a metric that was asked for cannot be had, or none can."""
    asked = parse_metrics(case.config.metrics)
    chosen, notes = [], []
    for metric in METRICS if asked is None else asked:
        unavailable_reason = CATALOGUE[metric].unavailable_reason(case)
        if unavailable_reason is None:
            chosen.append(metric)
        elif asked is not None:
            raise DataError(f"--metrics {metric}: {unavailable_reason}")
        else:
            notes.append(f"{name_here(metric, case.choice.suffix)} is left out: {unavailable_reason}")
    if not chosen:
        raise DataError(f"no score can be had: {'; '.join(notes)}")
    names = [name for metric in chosen for name in CATALOGUE[metric].scores if available(name, case)]
    return Plan(tuple(chosen), tuple(score_name(name, case.choice.suffix) for name in names), tuple(notes))


def name_here(metric: str, suffix: str) -> str:
    """`fid`, or with a judge's features `fid (here fd_judge)`."""
    here = score_name(next(iter(CATALOGUE[metric].scores)), suffix)
    return f"{metric} (here {here})" if suffix else metric


def available(name: str, case: EvalInputs) -> bool:
    if name == "class_agreement":
        return case.labels.samples is not None
    return case.same_shape if name == "exact_copies" else True


def score(subject: EvalContext, plan: Plan, report: Callable[[int, int], None]) -> tuple[Scores, PerClass]:
    """All scores of the plan by the names that its features give them, and values by kind and class. `report` hears
    how many metrics are done. Raises DataError for a score that is not finite."""
    suffix = subject.extractor.suffix
    scores: Scores = {}
    per_class: PerClass = {}
    for number, metric in enumerate(plan.metrics):
        report(number, len(plan.metrics))
        found, of_classes = CATALOGUE[metric].compute(subject)
        scores |= {score_name(name, suffix): value for name, value in found.items()}
        per_class |= {score_name(kind, suffix) if kind == "fid" else kind: of for kind, of in of_classes.items()}
    report(len(plan.metrics), len(plan.metrics))
    check_finite(scores, subject.case.samples.name)
    return scores, per_class
