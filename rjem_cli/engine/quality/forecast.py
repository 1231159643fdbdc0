"""What scoring samples will take on this device, from what is there: nothing is fetched, trained or kept for it."""

from __future__ import annotations

from dataclasses import replace

from rjem_cli.engine.data.fetch import is_there
from rjem_cli.engine.data.images import Splits
from rjem_cli.engine.quality.job import Inputs, prepare
from rjem_cli.engine.quality.judge import BATCH_SIZE, judge_config
from rjem_cli.engine.quality.weights import INCEPTION
from rjem_cli.engine.quiet import unheard
from rjem_cli.engine.ranks import ALONE
from rjem_cli.engine.runtime import Runtime
from rjem_cli.engine.training.forecast import FORWARD, DataShape
from rjem_cli.engine.training.forecast import forecast as training_forecast
from rjem_cli.paths import weights_dir


def forecast(inputs: Inputs) -> float | None:
    """Seconds until all features are there; None where a network would have to be fetched first. Raises as `prepare`
    does."""
    case, splits = inputs.case, inputs.case.reference.splits
    if case.choice.kind == "dinov2" or (case.choice.kind == "inception" and not is_there(INCEPTION, weights_dir())):
        return None
    if inputs.judge_steps is not None:
        assert splits is not None
        return judge_seconds(splits(), len(case.samples) + (case.real_count or 0), inputs.runtime)
    job = prepare(inputs, say=unheard, watch=unheard, train_watch=unheard, stop=lambda: False)
    assert job is not None
    if not job.missing:
        return 0.0
    return job.missing / job.images_per_second(unheard) / inputs.runtime.ranks.world


def judge_seconds(splits: Splits, images: int, runtime: Runtime) -> float:
    """To train a judge on one rank alone, then to look at `images` by it."""
    config = judge_config(splits)
    found = training_forecast(config, DataShape.of_splits(splits), replace(runtime, ranks=ALONE))
    return found.step_seconds * (found.steps + FORWARD * images / BATCH_SIZE / runtime.ranks.world)
