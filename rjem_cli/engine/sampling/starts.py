"""What chains start from (`--init`): the prior, noise, training images, the replay buffer, or a user's images."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rjem_cli.config.common import STARTS
from rjem_cli.config.training import TrainConfig
from rjem_cli.engine.data.collection import read_images
from rjem_cli.engine.data.images import ImageSet, pixels_digest, to_model, to_pixels
from rjem_cli.engine.data.load import load_splits
from rjem_cli.engine.gradients import LogitsFn
from rjem_cli.engine.models.checkpoint import Checkpoint, CheckpointInfo, state_path
from rjem_cli.engine.models.prior import ClassGaussianPrior, load_prior
from rjem_cli.engine.models.tensor_file import read_tensors
from rjem_cli.engine.runtime import Runtime
from rjem_cli.engine.sampling.pipeline import (
    SamplePlan,
    Sampler,
    image_start,
    noise_start,
    prior_start,
    random_image_start,
)
from rjem_cli.engine.sampling.request import SampleConfig
from rjem_cli.errors import AbsentError, ConfigError, RjemError, did_you_mean
from rjem_cli.paths import expand, find_run_dir, is_pretrained

PREDICT_BATCH = 250


@dataclass(frozen=True)
class Start:
    """The first stage of a sampler. `sha256` is the digest of starts that were read from files, which the checkpoint
    does not determine. `user_pixels` are a user's images, uint8 (N, C, H, W), and `read_summary` says what was
    read of them."""

    sampler: Sampler
    sha256: str | None = None
    user_pixels: Tensor | None = None
    read_summary: str = ""


def load_start(options: SampleConfig, plan: SamplePlan, checkpoint: Checkpoint, runtime: Runtime) -> Start:
    """`--init` is a name in STARTS or a path. Raises AbsentError or DataError for images that are missing or do not
    fit, ConfigError for an unknown name."""
    info, init, data = checkpoint.info, options.init, options.data

    def move(pixels: Tensor) -> Tensor:
        return pixels.to(runtime.storage_device(pixels.nbytes))

    match init:
        case "prior":
            prior = find_prior(checkpoint, data).to(runtime.device)
            return Start(prior_start(prior, plan.prior_temperature))
        case "noise":
            return Start(noise_start(info.image_shape))
        case "data":
            images = load_training_images(info, data)
            return Start(random_image_start(move(images.pixels), images.labels))
        case "buffer":
            pixels = read_buffer(checkpoint)
            return Start(random_image_start(move(pixels)), pixels_digest(pixels))
    if not expand(init).exists() and "/" not in init and "." not in init:
        raise ConfigError(f"--init {init!r} is not a known start or a file; {did_you_mean(init, STARTS)}")
    starts = read_images(init, info.image_shape, options.image_size or info.config.image_size)
    return Start(image_start(move(starts.pixels), options.seed), starts.digest(), starts.pixels, starts.read_summary)


def predict_classes(logits_fn: LogitsFn, pixels: Tensor, device: torch.device) -> tuple[int, ...]:
    """The class that the network predicts for each image, uint8 (N, C, H, W)."""
    with torch.no_grad():
        classes = [logits_fn(to_model(part.to(device))).argmax(dim=1) for part in torch.split(pixels, PREDICT_BATCH)]
    return tuple(torch.cat(classes).tolist())


def read_buffer(checkpoint: Checkpoint) -> Tensor:
    """The replay buffer of the training run, uint8 (N, C, H, W), from the file beside the checkpoint. Raises
    ConfigError for a custom network, AbsentError if there is no buffer."""
    if checkpoint.is_custom:
        raise ConfigError("--init buffer needs a checkpoint of rjem; --model has no replay buffer")
    path, run_dir = state_path(checkpoint.path), find_run_dir(checkpoint.path)
    if run_dir and is_pretrained(run_dir):
        raise ConfigError(f"--init buffer: the pretrained {run_dir.name} comes without its buffer; use another --init")
    if not path.exists():
        raise AbsentError(f"the buffer is in {path}, which does not exist; copy it there, or use another --init")
    tensors, _ = read_tensors(path, checkpoint.info.state_sha256 or "none")
    buffer = tensors.get("buffer")
    if buffer is None or tuple(buffer.shape[1:]) != checkpoint.info.image_shape:
        raise AbsentError(f"{path} has no buffer of images of this size; use another --init")
    return to_pixels(buffer)


def find_prior(checkpoint: Checkpoint, data: str | None = None) -> ClassGaussianPrior:
    """The checkpoint's prior; for a custom network, the prior of its training images. Raises AbsentError if there is
    none, DataError as `fit_prior` does."""
    if checkpoint.prior is not None:
        return checkpoint.prior
    if checkpoint.is_custom:
        return load_prior(load_training_images(checkpoint.info, data), TrainConfig.prior_variance)
    raise AbsentError(f"{checkpoint.path} has no prior (a judge has none); use another --init")


def load_training_images(info: CheckpointInfo, data: str | None) -> ImageSet:
    """The images a checkpoint was trained on, verified by their digest; `data` overrides where they are. A pretrained
    model has the digest of the sorted images, whose order then does not matter. Raises AbsentError."""
    try:
        config = replace(info.config, data=data) if data else info.training_options()
        images = load_splits(config).train
    except RjemError as error:
        raise AbsentError(f"cannot read the checkpoint's training images ({error}); give them with --data") from None
    if images.digest() == info.data_digest:
        return images
    images = images.sort()
    if images.digest() != info.data_digest:
        name = config.data or config.dataset
        raise AbsentError(f"{name} is not what this checkpoint was trained on; give the training images with --data")
    return images
