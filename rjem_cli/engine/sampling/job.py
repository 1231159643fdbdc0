"""One call of `rjem generate`: the sampler, its protocol, and the samples on their way to the output."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from rjem_cli.config import GenerateConfig
from rjem_cli.engine.chains.pgd import Logits
from rjem_cli.engine.chains.pipeline import sampler_of
from rjem_cli.engine.chains.stages import Sampler
from rjem_cli.engine.model.checkpoint import Checkpoint
from rjem_cli.engine.model.own import load_network
from rjem_cli.engine.quiet import unheard
from rjem_cli.engine.ranks import ALONE, Ranks
from rjem_cli.engine.room import Room
from rjem_cli.engine.runtime import Runtime, start_runtime
from rjem_cli.engine.sampling.generate import generate, until
from rjem_cli.engine.sampling.output.writer import (
    CountingWriter,
    SampleWriter,
    check_output,
    open_writer,
    write_beside,
)
from rjem_cli.engine.sampling.request import SampleRequest, describe_request, settle_request
from rjem_cli.engine.sampling.starts import settle_start, start_pixels
from rjem_cli.engine.timing import fitting, pass_seconds
from rjem_cli.errors import ConfigError

ImageShape = tuple[int, int, int]  # C, H, W


@dataclass(frozen=True)
class SampleJob:
    """All that is settled before the first sample."""

    config: GenerateConfig
    request: SampleRequest
    start: Sampler
    sampler: Sampler
    meta: dict[str, Any]
    runtime: Runtime


class Written(NamedTuple):
    """Samples that are whole, and how many of them were before this call."""

    done: int
    skipped: int


def settle(
    config: GenerateConfig, path: Path | None, ranks: Ranks = ALONE
) -> tuple[Checkpoint, Logits, SampleRequest, Runtime]:
    """Which checkpoint, its network frozen, what is asked of it, and where it runs. Raises ConfigError, AbsentError or
    DataError."""
    check_output(config.output)
    runtime = start_runtime(config, reproducible=True, ranks=ranks)
    checkpoint = load_network(config, path, runtime.device)
    request = settle_request(
        config,
        checkpoint.info.config,
        checkpoint.info.class_names,
        runtime.device.type,
        count=config.count,
        seed=config.seed,
        mode=config.mode,
        shard_text=config.shard,
    )
    return checkpoint, runtime.frozen(checkpoint.model), request, runtime


def fit_blocks(
    logits_of: Logits,
    image_shape: ImageShape,
    request: SampleRequest,
    asked: int | None,
    runtime: Runtime,
    say: Callable[[str], None],
) -> SampleRequest:
    """The request in blocks that fit into the memory of every rank, from one pass of a block. `say` hears of smaller
    ones, whose samples differ in their last bits: a size that was asked for is not changed. Raises ConfigError where it
    does not fit."""
    room = Room(request.block_size, say if asked is None else unheard)
    own = runtime.ranks.jointly(lambda: fitting(logits_of, image_shape, room, runtime.device))
    size = min(runtime.ranks.each(own))
    if asked is not None and size < asked:
        raise ConfigError(f"--block-size {asked} does not fit into memory; {size} does")
    return replace(request, block_size=size)


def forecast(logits_of: Logits, image_shape: ImageShape, request: SampleRequest, runtime: Runtime) -> float:
    """Seconds that its gradient steps take here, from a few of them; several processes share them."""
    size = request.block_size
    a_pass = pass_seconds(logits_of, image_shape, size, runtime.device)
    rounds = math.ceil(request.computed / size / runtime.ranks.world)
    return rounds * request.plan.gradient_steps * a_pass


def prepare(
    config: GenerateConfig, checkpoint: Checkpoint, logits_of: Logits, request: SampleRequest, runtime: Runtime
) -> SampleJob:
    """Read what the chains begin as. Raises AbsentError, DataError or ConfigError as `start_of` does."""
    request, start = settle_start(config, checkpoint, logits_of, request, runtime)
    meta = describe_request(request, checkpoint, config.init, start.sha256, runtime)
    return SampleJob(config, request, start.sampler, sampler_of(request.plan, start.sampler, logits_of), meta, runtime)


def write_samples(
    job: SampleJob, stdout: Callable[[], BinaryIO], report: Callable[[int], None], should_stop: Callable[[], bool]
) -> Written:
    """Draw and write until all is whole, or up to the batch in which `should_stop` became true. `report` hears how
    many are whole. Of several processes all draw, and the first one writes. Raises ConfigError where the output holds
    something else, RjemError where it cannot be written."""
    request, device, ranks = job.request, job.runtime.device, job.runtime.ranks
    with ranks.opened_by_first(lambda: closing(writer_of(job, stdout))) as own:
        skipped = ranks.from_first(lambda: own.done if own else 0)
        report(skipped)
        writer = own or CountingWriter(skipped)
        batch_size = job.config.batch_size
        batches = generate(job.sampler, request, skip=skipped, batch_size=batch_size, device=device, ranks=ranks)
        for done in write_beside(until(lambda: ranks.agree(should_stop()), batches), writer, ranks):
            report(skipped + done)
        if writer.done == request.last - request.first:
            ranks.from_first(writer.finish)
        return Written(writer.done, skipped)


def writer_of(job: SampleJob, stdout: Callable[[], BinaryIO]) -> SampleWriter:
    starts = partial(start_pixels, job.start, job.request, device=job.runtime.device)
    return open_writer(job.config.output, job.request, job.meta, job.config.overwrite, stdout, starts)
