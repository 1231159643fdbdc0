"""From `--init` to the start of chains: what has to be read or fitted for it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rjem_cli.config import STARTS, GenerateConfig, LangevinConfig
from rjem_cli.engine.chains.pgd import Logits
from rjem_cli.engine.chains.stages import Sampler
from rjem_cli.engine.chains.starts import given_images, prior_draws, random_images, uniform_noise
from rjem_cli.engine.data.class_folders import read_images
from rjem_cli.engine.data.images import ImageSet, pixels_digest, to_model, to_pixels
from rjem_cli.engine.data.load import load_splits
from rjem_cli.engine.model.checkpoint import Checkpoint, CheckpointInfo, state_path
from rjem_cli.engine.model.prior import ClassGaussianPrior, cached_prior, load_prior
from rjem_cli.engine.model.tensor_file import read_tensors
from rjem_cli.engine.runtime import Runtime
from rjem_cli.engine.sampling.generate import sample_blocks
from rjem_cli.engine.sampling.request import SampleRequest
from rjem_cli.errors import AbsentError, ConfigError, DataError, RjemError, did_you_mean
from rjem_cli.paths import expand, priors_dir

READ_BATCH = 250


@dataclass(frozen=True)
class Start:
    """The first stage of a sampler; the digest of starts that were read from files, which the checkpoint does not fix;
    and a user's own images, uint8 (N, C, H, W)."""

    sampler: Sampler
    sha256: str | None = None
    own: Tensor | None = None


def settle_start(
    config: GenerateConfig | LangevinConfig,
    checkpoint: Checkpoint,
    logits_of: Logits,
    request: SampleRequest,
    runtime: Runtime,
) -> tuple[SampleRequest, Start]:
    """The request, with the classes that `logits_of`, the frozen network, sees in a user's images where none was named;
    the start. Raises as `start_of` does."""
    start = start_of(config.init, checkpoint, config.data, config.seed, runtime)
    if start.own is not None and config.classes == "all":
        request = with_classes_seen(request, logits_of, start.own, runtime.device)
    return request, start


def start_of(init: str, checkpoint: Checkpoint, data: str | None, seed: int, runtime: Runtime) -> Start:
    """Raises AbsentError or DataError for images that are not there or do not fit, ConfigError for an unknown name."""
    info = checkpoint.info
    if init == "prior":
        return Start(prior_draws(prior_of(info, data).to(runtime.device)))
    if init == "noise":
        return Start(uniform_noise(info.image_shape))
    if init == "data":
        images = training_images(info, data)
        return Start(random_images(at_home(images.pixels, runtime), images.labels))
    if init == "buffer":
        pixels = buffer_images(checkpoint)
        return Start(random_images(at_home(pixels, runtime)), pixels_digest(pixels))
    pixels = own_images(init, info)
    return Start(given_images(at_home(pixels, runtime), seed), pixels_digest(pixels), pixels)


def at_home(pixels: Tensor, runtime: Runtime) -> Tensor:
    return pixels.to(runtime.home_of(pixels.nbytes))


def with_classes_seen(request: SampleRequest, logits_of: Logits, own: Tensor, device: torch.device) -> SampleRequest:
    """The request with the class that the network sees in each of a user's images: chain i belongs to image i."""
    with torch.no_grad():
        found = [logits_of(to_model(part.to(device))).argmax(dim=1) for part in own.split(READ_BATCH)]
    return replace(request, classes=tuple(torch.cat(found).tolist()))


def start_pixels(start: Sampler, request: SampleRequest, count: int, device: torch.device) -> Tensor:
    """What the request's first `count` samples begin as, uint8 (count, C, H, W) on the host."""
    blocks = sample_blocks(start, request, request.first, request.first + count, device)
    return to_pixels(torch.cat(list(blocks))).cpu()


def own_images(init: str, info: CheckpointInfo) -> Tensor:
    """The images of `--init PATH`, uint8 (N, C, H, W)."""
    if not expand(init).exists() and "/" not in init and "." not in init:
        raise ConfigError(f"--init {init!r} is unknown and no file; {did_you_mean(init, STARTS)}")
    return read_images(init, info.image_shape)


def buffer_images(checkpoint: Checkpoint) -> Tensor:
    """The chains of the training run, uint8 (N, C, H, W); they lie beside the checkpoint. Raises AbsentError."""
    path = state_path(checkpoint.path)
    if not path.exists():
        raise AbsentError(f"{path} is not there, and the buffer is in it; take another --init, or copy it beside")
    tensors, _ = read_tensors(path, checkpoint.info.state_sha256 or "none")
    buffer = tensors.get("buffer")
    if buffer is None or tuple(buffer.shape[1:]) != checkpoint.info.image_shape:
        raise AbsentError(f"{path} holds no buffer of such images; take another --init")
    return to_pixels(buffer)


def prior_of(info: CheckpointInfo, data: str | None) -> ClassGaussianPrior:
    """The prior of a checkpoint's training images: from the cache, else fitted again. Raises AbsentError where the
    images are not there."""
    prior = cached_prior(info.data_digest)
    if prior is None:
        try:
            return load_prior(training_images(info, data), info.data_digest)
        except AbsentError as error:
            file = priors_dir() / f"{info.data_digest}.safetensors"
            raise AbsentError(f"{error}, or copy {file} from where it was trained") from None
    if prior.image_shape != info.image_shape or len(prior.factors) != len(info.class_names):
        raise DataError(f"the prior kept for {info.data_name} in {priors_dir()} is of other images; remove it")
    return prior


def training_images(info: CheckpointInfo, data: str | None) -> ImageSet:
    """What a checkpoint was trained on, known by its digest. Raises AbsentError."""
    try:
        options = replace(info.config, data=data) if data else info.trained_on()
        images = load_splits(options).train
    except RjemError as error:
        raise AbsentError(
            f"the checkpoint's training images are needed and cannot be read ({error}); say where they are with --data"
        ) from None
    if images.digest() != info.data_digest:
        raise AbsentError(
            f"{options.data or options.dataset} is not what this checkpoint was trained on; "
            "say where that is with --data"
        )
    return images
