"""Samples of a checkpoint, drawn unless they are there, and what they cost."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from rjem_cli.config import CompareConfig, GenerateConfig
from rjem_cli.engine.comparison.rows import Protocol
from rjem_cli.engine.comparison.work import Work, kept_path, read_kept
from rjem_cli.engine.model.checkpoint import Checkpoint
from rjem_cli.engine.runtime import Runtime, start_runtime
from rjem_cli.engine.sampling.generate import generate
from rjem_cli.engine.sampling.job import SampleJob, write_samples
from rjem_cli.engine.sampling.job import prepare as prepare_samples
from rjem_cli.engine.sampling.request import settle_request
from rjem_cli.files import write_atomically


class Drawn(NamedTuple):
    """The samples' .npz; their costs, scores by column; and what these must share to be ranked."""

    file: Path
    costs: dict[str, float]
    protocols: dict[str, Protocol]


def drawn(config: CompareConfig, checkpoint: Checkpoint, mode: str, work: Work) -> Drawn:
    """Drawn unless they are there. Raises as `rjem generate` does."""
    runtime = start_runtime(config.device, reproducible=True)
    job = sample_job(config, checkpoint, mode, runtime)
    made = Path(job.config.output)
    timing, seconds = made.with_suffix(".json"), None
    if not made.exists():
        started, total = time.perf_counter(), job.request.count
        phase = f"drawing samples ({mode})"
        written = write_samples(job, work.stdin, lambda done: work.quietly(phase, done, total), work.stop)
        if written.done < total:
            work.end(phase)
        seconds = None if written.skipped else (time.perf_counter() - started) / total
    known = read_kept(timing) if seconds is None else None
    if known is None:
        seconds = seconds or seconds_a_sample(job)
        known = {"seconds_per_1000": 1000 * seconds, "device": runtime.describe()}
        write_atomically(timing, json.dumps(known).encode())
    costs = {"gradient_steps": float(job.request.plan.gradient_steps), "seconds_per_1000": known["seconds_per_1000"]}
    return Drawn(made, costs, {"seconds_per_1000": {"device": known["device"]}})


def seconds_a_sample(job: SampleJob) -> float:
    """Of samples that are there already: one block of them is drawn again."""
    count = min(job.request.block_size, job.request.count)
    started = time.perf_counter()
    next(generate(job.sampler, job.request, skip=0, batch_size=count, device=job.runtime.device))
    return (time.perf_counter() - started) / count


def sample_job(config: CompareConfig, checkpoint: Checkpoint, mode: str, runtime: Runtime) -> SampleJob:
    """As `rjem generate` would draw them; the file's name is made of all that decides their bytes, and their number."""
    options = GenerateConfig(mode=mode, count=config.sample_count, seed=config.sample_seed, data=config.data)
    info = checkpoint.info
    request = settle_request(
        options, info.config, info.class_names, runtime.device.type, count=options.count, seed=options.seed, mode=mode
    )
    job = prepare_samples(options, checkpoint, request, runtime)
    made = kept_path("samples", [job.meta["request"], config.sample_count]).with_suffix(".npz")
    return replace(job, config=replace(options, output=str(made)))
