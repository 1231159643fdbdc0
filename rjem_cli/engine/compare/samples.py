"""Samples of a checkpoint for a comparison, drawn once and cached, and what they cost."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any, NamedTuple

from rjem_cli.config import CompareConfig, GenerateConfig, RuntimeOptions
from rjem_cli.engine.compare.cached import Work, cache_path, cached
from rjem_cli.engine.compare.rows import Protocol
from rjem_cli.engine.data.collection import read_collection
from rjem_cli.engine.models.checkpoint import Checkpoint
from rjem_cli.engine.runtime import start_runtime
from rjem_cli.engine.sampling.generate import SampleJob, SampleSetup
from rjem_cli.engine.sampling.writers import write_samples
from rjem_cli.errors import RjemError
from rjem_cli.files import locked


class Sampled(NamedTuple):
    """The samples' .npz; their costs by column; and the protocols that decide which costs can be ranked."""

    file: Path
    costs: dict[str, float]
    protocols: dict[str, Protocol]


def sample_checkpoint(config: CompareConfig, checkpoint: Checkpoint, mode: str, work: Work) -> Sampled:
    """Draw the samples unless they are cached; wait if another call is drawing them. Raises as `rjem generate` does."""
    runtime = start_runtime(RuntimeOptions(device=config.device), reproducible=True)
    options = GenerateConfig(mode=mode, count=config.sample_count, seed=config.sample_seed, data=config.data)
    logits_of = runtime.frozen(checkpoint.model)
    job = SampleSetup.build(options, checkpoint, logits_of, runtime).fit_memory(work.warn).load_start()
    file = cache_path("samples", [job.meta["request"], config.sample_count]).with_suffix(".npz")
    with locked(file.with_suffix(""), waiting=lambda: work.watch("waiting for another rjem compare", 0, 1)):
        seconds = None if is_complete(file, job) else draw_samples(job, file, f"drawing samples ({mode})", work)

        def measure() -> dict[str, Any]:
            return {"seconds_per_1000": 1000 * (seconds or time_sample(job)), "device": runtime.describe()}

        def read(document: dict[str, Any]) -> Sampled:
            costs = {
                "gradient_steps": float(job.request.plan.gradient_steps),
                "seconds_per_1000": positive(document["seconds_per_1000"]),
            }
            return Sampled(file, costs, {"seconds_per_1000": {"device": str(document["device"])}})

        timing = file.with_suffix(".json")
        if seconds:
            timing.unlink(missing_ok=True)  # of other samples
        return cached(timing, read, measure)


def draw_samples(job: SampleJob, file: Path, phase: str, work: Work) -> float:
    """Write the samples. Returns seconds per sample."""
    start, total = time.perf_counter(), job.request.count
    options = GenerateConfig(output=str(file))
    written = write_samples(job, options, work.stdin, lambda done: work.quietly(phase, done, total), work.stop)
    if written.done < total:
        work.end(phase)
    return (time.perf_counter() - start) / total


def is_complete(file: Path, job: SampleJob) -> bool:
    """Whether the file holds this job's samples; a damaged one is removed."""
    if not file.exists():
        return False
    with contextlib.suppress(RjemError):
        images = read_collection(str(file))
        if len(images) == job.request.count and (images.meta or {}).get("request") == job.meta["request"]:
            return True
    if file.is_file():
        file.unlink()
    return False


def positive(value: float) -> float:
    """Raises ValueError for other values."""
    if not value > 0:
        raise ValueError(f"{value} s")
    return float(value)


def time_sample(job: SampleJob) -> float:
    """Seconds per sample, from one block that is drawn again."""
    count = min(job.request.block_size, job.request.count)
    start = time.perf_counter()
    next(job.generate(batch_size=count))
    return (time.perf_counter() - start) / count
