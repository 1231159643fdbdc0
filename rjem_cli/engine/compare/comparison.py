"""One call of `rjem compare`: every row, and the page of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rjem_cli.config import STREAM, CompareConfig
from rjem_cli.engine.compare.cached import Work
from rjem_cli.engine.compare.chain_figures import draw_chains
from rjem_cli.engine.compare.html_report import page_of
from rjem_cli.engine.compare.measure import check_scoring, read_samples, run_rows, sample_row
from rjem_cli.engine.compare.reproduce import Training, reproduced
from rjem_cli.engine.compare.rows import Comparison, published_rows
from rjem_cli.engine.compare.table1 import orderings
from rjem_cli.engine.metrics.samples import Inputs
from rjem_cli.engine.models.checkpoint import read_info
from rjem_cli.engine.sampling.pipeline import SamplePlan
from rjem_cli.errors import AbsentError


def compared(
    config: CompareConfig, subjects: Mapping[str, Path | None], trainings: Sequence[Training], work: Work
) -> Comparison:
    """Rows of the paper's table, made again where there are `trainings`; of each subject, a checkpoint or (None)
    samples; and the paper's own. Raises as `rjem train`, `generate` and `eval` do."""
    check_scoring(config)
    inputs = {name: read_samples(config, name, work) for name, path in subjects.items() if path is None}
    own = reproduced(config, trainings, work) if trainings else []
    rows = list(own)
    for name, path in subjects.items():
        rows += run_rows(config, name, path, work) if path else [sample_row(name, inputs[name], work)]
    rows += published_rows() if config.published else []
    return Comparison(rows, tuple(orderings(own)) if own else ())


def planned(config: CompareConfig, subjects: Mapping[str, Path | None], work: Work) -> list[str]:
    """A line a subject: what would be drawn, tested and scored. Reads samples, all but a stream, as `compared` would.
    Raises as that does."""
    check_scoring(config)
    lines = []
    for name, path in subjects.items():
        if path is not None:
            lines.append(f"{name}: {described_run(config, path)}")
        elif name == STREAM:
            lines.append(f"{name}: samples on standard input")
        else:
            lines.append(f"{name}: {described_samples(read_samples(config, name, work))}")
    return lines


def described_samples(inputs: Inputs) -> str:
    case, steps = inputs.case, inputs.judge_steps
    judge = f"; a judge is trained first, {steps}, and then kept" if steps else ""
    features = f"features by {case.choice.kind} ({case.choice.reason}){judge}"
    return f"{len(case.samples)} samples against {case.reference.name}; {', '.join(inputs.plan.metrics)}; {features}"


def described_run(config: CompareConfig, path: Path) -> str:
    info = read_info(path)
    each = [
        f"mode {mode}, {SamplePlan.from_config(info.config, mode).gradient_steps} passes each" for mode in config.modes
    ]
    sampled = f", {config.sample_count} samples: {'; '.join(each)}" if each else ", no samples"
    return f"checkpoint {path}, tested on images of {config.dataset or config.data or info.data_name}{sampled}"


def page(config: CompareConfig, comparison: Comparison, command: Sequence[str], work: Work) -> str:
    """The comparison as HTML, with watched chains of the checkpoints, of the first seed, whose samples were made by
    chains."""
    sampled = {
        origin.checkpoint: origin.name
        for row in comparison.rows
        for origin in [origin for origin in row.origins if origin.samples][:1]
        if origin.checkpoint and origin.mode in ("energy", "combined")
    }
    chains = {}
    for path, name in sampled.items():
        try:
            chains[name] = draw_chains(config, name, path, work)
        except AbsentError as error:  # a run that goes on drops its old checkpoints
            work.warn(f"no chains of {name}: {error}")
    return page_of(comparison, command, chains)
