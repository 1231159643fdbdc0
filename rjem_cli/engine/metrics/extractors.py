"""Networks that turn images into features, each with all that its features depend on."""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from rjem_cli.engine.data.downloads import sha256_hex
from rjem_cli.engine.data.images import to_model
from rjem_cli.engine.metrics.weights import INCEPTION, tensors_of
from rjem_cli.engine.models.checkpoint import Checkpoint
from rjem_cli.engine.models.frozen import freeze
from rjem_cli.engine.models.wide_resnet import feature_count
from rjem_cli.errors import AbsentError, DataError
from rjem_cli.paths import offline

INCEPTION_FEATURES, INCEPTION_RESIZE = 2048, "bilinear as TensorFlow 1, to 299x299"
DINOV2_NAME, DINOV2_FEATURES = "dinov2-vit-l-14", 1024
BATCH_SIZE = {"cpu": 4}  # measured: on a CPU small batches are fastest, with the same bits as large ones
GPU_BATCH_SIZE = 100

FeaturePair = tuple[Tensor, Tensor | None]


@dataclass(frozen=True)
class Extractor:
    """`compute` takes uint8 (B, channels, H, W) on the device to features (B, dimensions) and, of a classifier, logits
    (B, K). `suffix` ends the names of scores; `identity` is what features depend on beside the pixels (and, in their
    last bits, the machine); `about`, more for the protocol; `notes`, what a reader should know; `class_names` are the
    logits' where they are those of a data set."""

    suffix: str
    channels: int
    dimensions: int
    identity: dict[str, Any]
    compute: Callable[[Tensor], FeaturePair]
    about: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()


def inception(content: bytes, name: str, device: torch.device) -> Extractor:
    """torch-fidelity's InceptionV3 with these weights: 2,048 features, 1,008 logits without bias. Raises DataError for
    weights of another network."""
    sha256 = sha256_hex(content)
    state = tensors_of(content, name)
    # not channels_last: faster still, but KID, a small difference of large sums, then differs in its fifth digit
    network = module_of(state, name).to(device)
    pooling = ChannelsLastPooling if device.type == "cpu" else contextlib.nullcontext

    def compute(pixels: Tensor) -> FeaturePair:
        with pooling():
            features, logits = network(pixels)
        return features, logits

    published = sha256 == INCEPTION.sha256
    identity = {"network": "inception-v3-compat", "weights_sha256": sha256, "resize": INCEPTION_RESIZE}
    notes = () if published else ("these are not the published Inception weights: scores compare with each other only",)
    return Extractor("", 3, INCEPTION_FEATURES, identity, compute, {"published_weights": published}, notes)


class ChannelsLastPooling(TorchFunctionMode):
    """Within it, pooling reads its images with the channels last, and gives the same bits: PyTorch's own kernels for a
    CPU handle many channels at once in that layout, and one pixel in the other."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func not in (F.max_pool2d, F.avg_pool2d):
            return func(*args, **(kwargs or {}))
        x, *rest = args
        return func(x.contiguous(memory_format=torch.channels_last), *rest, **(kwargs or {})).contiguous()


def module_of(state: dict[str, Tensor], name: str) -> nn.Module:
    """torch-fidelity reads its weights with pickle, so it is handed a file in memory that holds these tensors only."""
    from torch_fidelity.utils import create_feature_extractor

    checked = io.BytesIO()
    torch.save(state, checked)
    checked.seek(0)
    try:
        network: nn.Module = create_feature_extractor(
            "inception-v3-compat",
            ["2048", "logits_unbiased"],
            cuda=False,
            feature_extractor_weights_path=checked,
            verbose=False,
        )
    except (RuntimeError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise DataError(f"{name} does not fit torch-fidelity's InceptionV3 ({reason}); give its weights") from None
    return network


def dinov2(device: torch.device) -> Extractor:
    """torch-fidelity's DINOv2, which torch.hub fetches, code and weights, from facebookresearch/dinov2. Raises
    AbsentError where it cannot be had."""
    from torch_fidelity.utils import create_feature_extractor

    if offline():
        raise AbsentError("DINOv2 is fetched by torch.hub, and RJEM_OFFLINE forbids it; unset it, or take another one")
    try:
        network: nn.Module = create_feature_extractor(DINOV2_NAME, ["dinov2"], cuda=False, verbose=False)
    except Exception as error:  # torch.hub runs code of another project; whatever it raises means the same here
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise AbsentError(f"DINOv2 cannot be fetched ({reason}); try again, or take --features inception") from None
    network = network.to(device)
    weights = hashlib.sha256()
    for key, tensor in sorted(network.state_dict().items()):
        weights.update(key.encode())
        weights.update(tensor.cpu().contiguous().numpy().data)
    identity = {
        "network": DINOV2_NAME,
        "weights_sha256": weights.hexdigest(),
        "resize": "bilinear as TensorFlow 1, to 224x224",
    }
    notes = (
        "the published FD-DINOv2 resizes otherwise: not comparable with it",
        "DINOv2's code and weights are what torch.hub fetched; no checksum of them is known",
    )
    return Extractor("_dinov2", 3, DINOV2_FEATURES, identity, lambda pixels: (network(pixels)[0], None), {}, notes)


def judge_extractor(checkpoint: Checkpoint, test_accuracy: dict[str, Any] | None, *, ours: bool) -> Extractor:
    """The last hidden layer and the logits of a classifier that rjem trained; `ours`, as a judge."""
    network: Any = freeze(checkpoint.model)  # a WideResNet
    info = checkpoint.info

    def compute(pixels: Tensor) -> FeaturePair:
        features = network.features(to_model(pixels))
        return features, network.head(features)

    channels, height, width = info.image_shape
    identity = {
        "network": f"{'judge' if ours else 'own judge'} WRN-{info.config.depth}-{info.config.width}",
        "weights_sha256": checkpoint.sha256,
        "resize": f"none, {width}x{height}",
    }
    about = {"path": str(checkpoint.path), "test_accuracy": test_accuracy}
    accuracy = "unknown"
    if test_accuracy is not None:
        accuracy = f"{test_accuracy['value']:.2%} of {test_accuracy['of']} images of its test split"
    notes = [f"the judge's own accuracy: {accuracy}"]
    if ours:
        notes.append(
            f"another machine trains another judge: to compare, take this one with --features {checkpoint.path}"
        )
    dimensions = feature_count(info.config)
    return Extractor("_judge", channels, dimensions, identity, compute, about, tuple(notes), info.class_names)
