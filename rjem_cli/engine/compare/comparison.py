"""`rjem compare`, from its subjects to a table of rows and an HTML report."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rjem_cli.config.common import STREAM
from rjem_cli.config.scoring import CompareConfig
from rjem_cli.engine.compare.cache import CompareCallbacks
from rjem_cli.engine.compare.html_report import html_report
from rjem_cli.engine.compare.measure import check_scoring, measure_checkpoint, measure_samples, plan_samples
from rjem_cli.engine.compare.notes import check_orderings
from rjem_cli.engine.compare.reproduce import Training, reproduce_table1
from rjem_cli.engine.compare.rows import Comparison, read_published_rows
from rjem_cli.engine.compare.samples import chain_figures
from rjem_cli.engine.data.downloads import describe_download
from rjem_cli.engine.metrics.samples import describe_judge_training
from rjem_cli.engine.models.checkpoint import read_info
from rjem_cli.engine.sampling.pipeline import SamplePlan
from rjem_cli.errors import AbsentError

Subjects = Mapping[str, Path | None]  # by name: a checkpoint, or None for samples


def run_comparison(
    config: CompareConfig, subjects: Subjects, trainings: Sequence[Training], callbacks: CompareCallbacks
) -> Comparison:
    """The rows of the reproduced Table 1 (if there are `trainings`), of each subject, and of the paper. Raises as `rjem
    train`, `rjem generate` and `rjem eval` do."""
    check_scoring(config, list(filter(None, subjects.values())))
    plans = {name: plan_samples(config, name, callbacks) for name, path in subjects.items() if path is None}
    reproduced = reproduce_table1(config, trainings, callbacks) if trainings else []
    rows = list(reproduced)
    for name, path in subjects.items():
        if path:
            rows += measure_checkpoint(config, name, path, callbacks)
        else:
            rows.append(measure_samples(name, plans[name], callbacks))
    rows += read_published_rows() if config.published else []
    return Comparison(rows, tuple(check_orderings(reproduced)) if reproduced else ())


def describe_plan(config: CompareConfig, subjects: Subjects, callbacks: CompareCallbacks) -> list[str]:
    """One line per subject: what would be sampled, tested and scored. Reads samples, but not standard input. Raises as
    `run_comparison` does."""
    check_scoring(config, list(filter(None, subjects.values())))
    lines = []
    for name, path in subjects.items():
        if path is not None:
            lines.append(f"{name}: {describe_checkpoint(config, path)}")
        elif name == STREAM:
            lines.append(f"{name}: samples on standard input")
        else:
            lines.append(f"{name}: {describe_samples(config, name, callbacks)}")
    return lines


def describe_samples(config: CompareConfig, name: str, callbacks: CompareCallbacks) -> str:
    plans, parts = plan_samples(config, name, callbacks), []
    for plan in plans:
        choice, training = plan.inputs.choice, describe_judge_training(plan.inputs)
        judge = f"; trains and caches a judge first: {training}" if training else ""
        parts.append(f"{', '.join(plan.metrics)}; features by {choice.kind} ({choice.reason}){judge}")
    inputs = plans[0].inputs
    return f"{len(inputs.samples)} samples against {inputs.reference.name}; {'; '.join(parts)}"


def describe_checkpoint(config: CompareConfig, path: Path) -> str:
    info = read_info(path)
    plans = [(mode, SamplePlan.from_config(info.config, mode).gradient_steps) for mode in config.modes]
    modes = "; ".join(f"mode {mode}, {steps} passes each" for mode, steps in plans)
    samples = f"{config.sample_count} samples: {modes}" if modes else "no samples"
    images = config.data or config.dataset or info.config.data or info.config.dataset
    download = f" ({text})" if (text := describe_download(images)) else ""
    return f"checkpoint {path}, tested on images of {images}{download}, {samples}"


def build_report(
    config: CompareConfig, comparison: Comparison, command: Sequence[str], callbacks: CompareCallbacks
) -> str:
    """The comparison as an HTML page, with recorded chains of each checkpoint that was sampled by chains."""
    origins = [origin for row in comparison.rows if (origin := row.sampled_origin) and origin.mode != "attack"]
    chains = {}
    for path, name in {origin.checkpoint: origin.name for origin in origins if origin.checkpoint}.items():
        try:
            chains[name] = chain_figures(config, name, path, callbacks)
        except AbsentError as error:  # a run in progress removes its old checkpoints
            callbacks.warn(f"no chains of {name}: {error}")
    return html_report(comparison, command, chains)
