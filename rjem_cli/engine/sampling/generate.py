"""Samples from a checkpoint. Sample i depends on seed + i only.

The network always sees complete blocks of `block_size` images, and the sample with seed s has index s % block_size in
its block. So a sample has the same bits for any batch size, any shard, and after a resume. What a block computes beyond
the requested samples is dropped.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from rjem_cli.engine.batching import BatchSizer
from rjem_cli.engine.callbacks import Log, noop
from rjem_cli.engine.data.images import to_pixels
from rjem_cli.engine.data.png import contact_sheet, side_by_side
from rjem_cli.engine.gradients import LogitsFn
from rjem_cli.engine.inference import Model
from rjem_cli.engine.models.prior import ClassGaussianPrior
from rjem_cli.engine.parallel import run_in_parallel
from rjem_cli.engine.runtime import start_runtime
from rjem_cli.engine.sampling.pipeline import SamplePlan, Sampler, build_sampler, prior_start
from rjem_cli.engine.sampling.request import SampleConfig, SampleRequest, describe_request, resolve_request
from rjem_cli.engine.sampling.starts import Start, load_start, predict_classes
from rjem_cli.engine.timing import find_batch_size, find_parallel, time_pass
from rjem_cli.errors import ConfigError, RjemError

NOT_FINITE_HINT = "try a smaller --sgld-step-size or --noise-std, or in fp16 --precision fp32"
GRID_CLASSES = 10  # a sample grid shows the first ten classes


class SampleBatch(NamedTuple):
    """Samples first .. first + B: pixels uint8 (B, C, H, W) on the host."""

    first: int
    pixels: Tensor


@dataclass(frozen=True)
class SampleSetup:
    """What will be sampled, before the starts of the chains are read or fitted. `parallel` blocks run at once."""

    config: SampleConfig
    model: Model
    request: SampleRequest
    parallel: int = 1

    @classmethod
    def load(cls, config: SampleConfig, path: Path | None, log: Log = noop) -> "SampleSetup":
        """`log` gets a line if blocks must be smaller. Raises ConfigError, AbsentError or DataError."""
        model = Model.load(config, path, start_runtime(config, reproducible=True))
        return cls.build(config, model).fit_memory(log)

    @classmethod
    def build(cls, config: SampleConfig, model: Model) -> "SampleSetup":
        """Raises ConfigError for invalid options."""
        return cls(config, model, resolve_request(config, model.info, model.device.type))

    def fit_memory(self, log: Log = noop) -> "SampleSetup":
        """The same setup with blocks that fit into memory, found by one pass of a block. Samples of smaller blocks
        differ in their last bits, so a given --block-size is not changed. Raises ConfigError if it does not fit."""
        given, model = self.config.block_size, self.model
        sizer = BatchSizer(self.request.block_size, log if given is None else noop)
        size = find_batch_size(model.logits_fn, model.image_shape, sizer, model.device)
        if given is not None and size < given:
            raise ConfigError(f"--block-size {given} does not fit into memory; {size} does")
        return replace(self, request=replace(self.request, block_size=size))

    def fit_parallel(self) -> "SampleSetup":
        """Run as many blocks at once as fit into half of the memory. Call it after `fit_memory`."""
        model, size, limit = self.model, self.request.block_size, self.request.block_count
        return replace(self, parallel=find_parallel(model.logits_fn, model.image_shape, size, limit, model.device))

    def estimate_seconds(self) -> float:
        """The time of all gradient steps, from the time of a few."""
        model, request, count = self.model, self.request, self.parallel * self.request.block_size
        seconds = time_pass(model.logits_fn, model.image_shape, count, model.device, self.parallel)
        return request.gradient_steps / count * seconds

    def load_start(self) -> "SampleJob":
        """Read or fit what the chains start from. Raises AbsentError, DataError or ConfigError."""
        config, request, model = self.config, self.request, self.model
        start = load_start(config, request.plan, model.checkpoint, model.runtime)
        if start.user_pixels is not None and config.classes == "all":  # chain i keeps the class of image i
            classes = predict_classes(model.logits_fn, start.user_pixels, model.device)
            request = replace(request, classes=classes)
        meta = describe_request(request, model, config.init, start.sha256)
        return SampleJob(replace(self, request=request), start, meta)


@dataclass(frozen=True)
class SampleJob:
    """Everything that is known before the first sample; `meta` is the protocol stored with the samples."""

    setup: SampleSetup
    start: Start
    meta: dict[str, Any]

    @property
    def request(self) -> SampleRequest:
        return self.setup.request

    @property
    def sampler(self) -> Sampler:
        return build_sampler(self.request.plan, self.start.sampler, self.setup.model.logits_fn)

    def generate(self, *, skip: int = 0, batch_size: int) -> Iterator[SampleBatch]:
        """The requested samples without the first `skip`. The host waits for the device once per block. Raises
        RjemError with the index of a sample that is not finite."""
        return join_blocks(self.sample_blocks(skip), self.request.first + skip, batch_size)

    def sample_blocks(self, skip: int = 0) -> Iterator[Tensor]:
        """The blocks of the requested samples without the first `skip`, as the function `sample_blocks`."""
        model, request = self.setup.model, self.request
        first, parallel = request.first + skip, self.setup.parallel
        return sample_blocks(self.sampler, request, first, request.stop, model.device, model.logits_fn, parallel)

    def sample(self) -> Tensor:
        """All requested samples, float (N, C, H, W) in [-1, 1] on the device. Raises RjemError with the index of a
        sample that is not finite."""
        return torch.cat(list(self.sample_blocks())).clamp(-1, 1)

    def first_starts(self, count: int) -> Tensor:
        """The starts of the first `count` samples, uint8 (count, C, H, W) on the host."""
        request, device = self.request, self.setup.model.device
        blocks = sample_blocks(self.start.sampler, request, request.first, request.first + count, device)
        return to_pixels(torch.cat(list(blocks))).cpu()


def sample_blocks(
    sampler: Sampler,
    request: SampleRequest,
    first: int,
    stop: int,
    device: torch.device,
    logits_fn: LogitsFn | None = None,
    parallel: int = 1,
) -> Iterator[Tensor]:
    """float (b, C, H, W): the requested part of each block of samples first .. stop - 1, in order. Up to `parallel`
    blocks run at once, for which the sampler's stages must be functions of their arguments and `logits_fn`. Raises
    RjemError for a sample that is not finite."""
    size, start = request.block_size, request.seed + first

    def sample_block(block: int) -> Tensor:
        seeds = torch.arange(block, block + size)
        x = sampler(request.labels(seeds - request.seed), seeds.to(device, non_blocking=True))
        return x[max(0, start - block) : request.seed + stop - block]

    blocks = range(start - start % size, request.seed + stop, size) if first < stop else ()
    with closing(run_in_parallel(logits_fn, sample_block, blocks, parallel)) as results:
        for block, x in zip(blocks, results):
            invalid = (~x.isfinite().flatten(1).all(dim=1)).nonzero()
            if len(invalid):
                index = max(start, block) - request.seed + int(invalid[0])
                raise RjemError(f"sample {index} is not finite; {NOT_FINITE_HINT}")
            yield x


def generate(
    sampler: Sampler, request: SampleRequest, *, skip: int, batch_size: int, device: torch.device
) -> Iterator[SampleBatch]:
    """`SampleJob.generate` for any sampler, such as one with stages of your own."""
    first = request.first + skip
    return join_blocks(sample_blocks(sampler, request, first, request.stop, device), first, batch_size)


def join_blocks(blocks: Iterable[Tensor], first: int, batch_size: int) -> Iterator[SampleBatch]:
    """The samples of `blocks`, float (b, C, H, W), as uint8 batches of `batch_size` on the host. `first`: the index of
    the first sample."""
    pixels = torch.empty(0, dtype=torch.uint8)
    for x in blocks:
        block = to_pixels(x).cpu()
        pixels = torch.cat([pixels, block]) if len(pixels) else block
        while len(pixels) >= batch_size:
            yield SampleBatch(first, pixels[:batch_size])
            first, pixels = first + batch_size, pixels[batch_size:]
    if len(pixels):
        yield SampleBatch(first, pixels)


def draw_sample_grid(
    logits_fn: LogitsFn,
    prior: ClassGaussianPrior,
    plans: Sequence[SamplePlan],
    per_class: int,
    seed: int,
    on_progress: Callable[[int, int], None],
) -> Image.Image:
    """A figure with one grid for the prior and one for each plan, all from the same starts, one row per class.
    `on_progress` gets the done and the total network passes, and may raise to stop."""
    device, done, total = prior.mean_KD.device, 0, sum(plan.gradient_steps for plan in plans)

    def count_pass(x: Tensor) -> Tensor:
        nonlocal done
        on_progress(done, total)
        done += 1
        return logits_fn(x)

    labels = torch.arange(min(len(prior.mean_KD), GRID_CLASSES)).repeat_interleave(per_class)
    seeds = (seed + torch.arange(len(labels))).to(device)
    starts = prior_start(prior, plans[0].prior_temperature)(labels, seeds)
    grids = [("prior", contact_sheet(to_pixels(starts), per_class))]
    for plan in plans:
        samples = build_sampler(plan, Sampler(()), count_pass)(labels, seeds, starts)
        grids.append((plan.mode, contact_sheet(to_pixels(samples), per_class)))
    on_progress(total, total)
    return side_by_side(grids)
