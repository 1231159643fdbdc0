"""What scoring samples will take on this device, from what is there: nothing is fetched, trained or kept for it."""

from __future__ import annotations

from rjem_cli.engine.callbacks import noop
from rjem_cli.engine.data.downloads import is_present
from rjem_cli.engine.data.images import Splits
from rjem_cli.engine.metrics.judge import BATCH_SIZE, judge_config
from rjem_cli.engine.metrics.samples import Inputs, prepare
from rjem_cli.engine.metrics.weights import INCEPTION
from rjem_cli.engine.runtime import Runtime
from rjem_cli.engine.training.estimate import FORWARD, DataShape, estimate_training
from rjem_cli.paths import weights_dir


def estimate_seconds(inputs: Inputs) -> float | None:
    """Seconds until all features are there; None where a network would have to be fetched first. Raises as `prepare`
    does."""
    case, splits = inputs.case, inputs.case.reference.splits
    if case.choice.kind == "dinov2" or (case.choice.kind == "inception" and not is_present(INCEPTION, weights_dir())):
        return None
    if inputs.judge_steps is not None:
        assert splits is not None
        return judge_seconds(splits(), len(case.samples) + (case.real_count or 0), inputs.runtime)
    job = prepare(inputs, say=noop, watch=noop, train_watch=noop, stop=lambda: False)
    assert job is not None
    if not job.missing:
        return 0.0
    return job.missing / job.images_per_second(noop)


def judge_seconds(splits: Splits, images: int, runtime: Runtime) -> float:
    """To train a judge on one rank alone, then to look at `images` by it."""
    config = judge_config(splits)
    found = estimate_training(config, DataShape.of_splits(splits), runtime)
    return found.step_seconds * (found.steps + FORWARD * images / BATCH_SIZE)
