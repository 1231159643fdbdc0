"""Samples of a checkpoint, drawn unless they are there, and what they cost."""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from rjem_cli.config import CompareConfig, GenerateConfig, RuntimeOptions
from rjem_cli.engine.comparison.rows import Protocol
from rjem_cli.engine.comparison.work import Work, kept, kept_path
from rjem_cli.engine.data.collection import read_collection
from rjem_cli.engine.model.checkpoint import Checkpoint
from rjem_cli.engine.runtime import Runtime, start_runtime
from rjem_cli.engine.sampling.generate import generate
from rjem_cli.engine.sampling.job import SampleJob, fit_blocks, write_samples
from rjem_cli.engine.sampling.job import prepare as prepare_samples
from rjem_cli.engine.sampling.request import settle_request
from rjem_cli.errors import RjemError
from rjem_cli.files import locked


class Drawn(NamedTuple):
    """The samples' .npz; their costs, scores by column; and what these must share to be ranked."""

    file: Path
    costs: dict[str, float]
    protocols: dict[str, Protocol]


def drawn(config: CompareConfig, checkpoint: Checkpoint, mode: str, work: Work) -> Drawn:
    """Drawn unless they are there; where another call is drawing them, that is waited for. Raises as `rjem generate`
    does."""
    runtime = start_runtime(RuntimeOptions(device=config.device), reproducible=True)
    job = sample_job(config, checkpoint, mode, runtime, work)
    made = Path(job.config.output)
    with locked(made, waiting=lambda: work.watch("waiting for another rjem compare", 0, 1)):
        seconds = None if is_whole(made, job) else draw(job, f"drawing samples ({mode})", work)

        def measure() -> dict[str, Any]:
            return {"seconds_per_1000": 1000 * (seconds or seconds_a_sample(job)), "device": runtime.describe()}

        def read(document: dict[str, Any]) -> Drawn:
            costs = {
                "gradient_steps": float(job.request.plan.gradient_steps),
                "seconds_per_1000": positive(document["seconds_per_1000"]),
            }
            return Drawn(made, costs, {"seconds_per_1000": {"device": str(document["device"])}})

        timing = made.with_suffix(".json")
        if seconds:
            timing.unlink(missing_ok=True)  # of other samples
        return kept(timing, read, measure)


def draw(job: SampleJob, phase: str, work: Work) -> float | None:
    """Seconds a sample; None where some were drawn by an earlier call."""
    started, total = time.perf_counter(), job.request.count
    written = write_samples(job, work.stdin, lambda done: work.quietly(phase, done, total), work.stop)
    if written.done < total:
        work.end(phase)
    return None if written.skipped else (time.perf_counter() - started) / total


def is_whole(made: Path, job: SampleJob) -> bool:
    """Whether the file is there and holds this job's samples; one that is damaged is removed."""
    if not made.exists():
        return False
    with contextlib.suppress(RjemError):
        images = read_collection(str(made))
        if len(images) == job.request.count and (images.meta or {}).get("request") == job.meta["request"]:
            return True
    if made.is_file():
        made.unlink()
    return False


def positive(value: float) -> float:
    """Raises ValueError for what is no time."""
    if not value > 0:
        raise ValueError(f"{value} s")
    return float(value)


def seconds_a_sample(job: SampleJob) -> float:
    """Of samples that are there already: one block of them is drawn again."""
    count = min(job.request.block_size, job.request.count)
    started = time.perf_counter()
    next(generate(job.sampler, job.request, skip=0, batch_size=count, device=job.runtime.device))
    return (time.perf_counter() - started) / count


def sample_job(config: CompareConfig, checkpoint: Checkpoint, mode: str, runtime: Runtime, work: Work) -> SampleJob:
    """As `rjem generate` would draw them; the file's name is made of all that decides their bytes, and their number."""
    options = GenerateConfig(mode=mode, count=config.sample_count, seed=config.sample_seed, data=config.data)
    info, logits_of = checkpoint.info, runtime.frozen(checkpoint.model)
    request = settle_request(
        options, info.config, info.class_names, runtime.device.type, count=options.count, seed=options.seed, mode=mode
    )
    request = fit_blocks(logits_of, info.image_shape, request, options.block_size, runtime, work.warn)
    job = prepare_samples(options, checkpoint, logits_of, request, runtime)
    made = kept_path("samples", [job.meta["request"], config.sample_count]).with_suffix(".npz")
    return replace(job, config=replace(options, output=str(made)))
