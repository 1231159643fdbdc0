"""One call of `rjem generate`: the sampler, its protocol, and the samples on their way to the output."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

from rjem_cli.config import GenerateConfig
from rjem_cli.engine.chains.pipeline import sampler_of
from rjem_cli.engine.chains.stages import Sampler
from rjem_cli.engine.model.checkpoint import Checkpoint
from rjem_cli.engine.runtime import Runtime
from rjem_cli.engine.sampling.generate import generate, until
from rjem_cli.engine.sampling.output.writer import open_writer, write_beside
from rjem_cli.engine.sampling.request import SampleRequest, describe_request
from rjem_cli.engine.sampling.starts import settle_start, start_pixels


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


def prepare(config: GenerateConfig, checkpoint: Checkpoint, request: SampleRequest, runtime: Runtime) -> SampleJob:
    """Read what the chains begin as. Raises AbsentError, DataError or ConfigError as `start_of` does."""
    request, start, logits_of = settle_start(config, checkpoint, request, runtime)
    meta = describe_request(request, checkpoint, config.init, start.sha256, runtime)
    return SampleJob(config, request, start.sampler, sampler_of(request.plan, start.sampler, logits_of), meta, runtime)


def write_samples(
    job: SampleJob, stdout: Callable[[], BinaryIO], report: Callable[[int], None], should_stop: Callable[[], bool]
) -> Written:
    """Draw and write until all is whole, or up to the batch in which `should_stop` became true. `report` hears how
    many are whole. Raises ConfigError where the output holds something else, RjemError where it cannot be written."""
    config, request, device = job.config, job.request, job.runtime.device
    writer = open_writer(
        config.output,
        request,
        job.meta,
        config.overwrite,
        stdout,
        lambda count: start_pixels(job.start, request, count, device),
    )
    try:
        skipped = writer.done
        batches = generate(job.sampler, request, skip=skipped, batch_size=config.batch_size, device=device)
        for done in write_beside(until(should_stop, batches), writer):
            report(skipped + done)
        if writer.done == request.last - request.first:
            writer.finish()
        return Written(writer.done, skipped)
    finally:
        writer.close()
