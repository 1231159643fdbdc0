"""Networks that turn images into features: InceptionV3, EfficientNet-Lite0, DINOv2, and classifiers that rjem trained
(judges)."""

import contextlib
import hashlib
import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from rjem_cli.engine.data.images import to_model
from rjem_cli.engine.data.remote_file import RemoteFile, sha256_hex
from rjem_cli.engine.metrics import efficientnet
from rjem_cli.engine.models.checkpoint import Checkpoint
from rjem_cli.engine.models.frozen import freeze
from rjem_cli.engine.networks.build import feature_count
from rjem_cli.errors import AbsentError, DataError, summarize
from rjem_cli.paths import offline

INCEPTION = RemoteFile(
    "weights-inception-2015-12-05-6726825d.pth",
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
    95_628_359,
    "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
)
INCEPTION_FEATURES, INCEPTION_RESIZE = 2048, "bilinear as TensorFlow 1, to 299x299"
DINOV2_NAME, DINOV2_FEATURES, DINOV2_RESIZE = "dinov2-vit-l-14", 1024, "bilinear as TensorFlow 1, to 224x224"
BATCH_SIZE = {"cpu": 4}  # measured: on a CPU small batches are fastest, and give the same bits as large ones
GPU_BATCH_SIZE = 100


class Features(NamedTuple):
    """features (N, D) and, from a classifier, logits (N, K)."""

    features: Tensor
    logits: Tensor | None


@dataclass(frozen=True)
class Extractor:
    """`compute` takes uint8 (B, channels, H, W) on the device to features (B, dimensions) and logits. `suffix` ends
    the names of scores. Features depend on `identity` and the pixels (and, in the last bits, the machine). `about`
    adds to the protocol, `notes` to the document. `class_names` belong to the logits, if these are of a data set."""

    suffix: str
    channels: int
    dimensions: int
    identity: dict[str, Any]
    compute: Callable[[Tensor], Features]
    about: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()


def inception_suffix(content: bytes) -> str:
    """Empty for the published weights: only these make a score an FID."""
    return "" if sha256_hex(content) == INCEPTION.sha256 else "_custom"


def load_inception(content: bytes, name: str, device: torch.device) -> Extractor:
    """torch-fidelity's InceptionV3 with the weights in `content`: 2,048 features, 1,008 logits without bias. Raises
    DataError for weights of another network."""
    # not channels_last: faster still, but KID, a small difference of large sums, then differs in its fifth digit
    network = build_inception(parse_weights(content, name), name).to(device)
    pooling = ChannelsLastPooling if device.type == "cpu" else contextlib.nullcontext

    def compute(pixels: Tensor) -> Features:
        with pooling():
            return Features(*network(pixels))

    suffix = inception_suffix(content)
    identity = {"network": "inception-v3-compat", "weights_sha256": sha256_hex(content), "resize": INCEPTION_RESIZE}
    notes = ("these are not the published Inception weights: compare only scores that used them",) if suffix else ()
    return Extractor(suffix, 3, INCEPTION_FEATURES, identity, compute, {"published_weights": not suffix}, notes)


class ChannelsLastPooling(TorchFunctionMode):
    """Runs pooling in the channels-last layout, which is faster on a CPU and gives the same bits: PyTorch's kernels
    then handle many channels at once instead of one pixel."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func not in (F.max_pool2d, F.avg_pool2d):
            return func(*args, **(kwargs or {}))
        x, *options = args
        return func(x.contiguous(memory_format=torch.channels_last), *options, **(kwargs or {})).contiguous()


def parse_weights(content: bytes, name: str) -> dict[str, Tensor]:
    """A PyTorch state dict, read as tensors only, so that a file cannot run code. Raises DataError for a file that is
    damaged or holds anything but tensors."""
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise DataError(
            f"{name} is damaged or holds objects that could run code, so it was not loaded; use another file"
        ) from None
    except Exception as error:  # torch raises many types for damaged bytes
        raise DataError(
            f"{name} is not a valid file of PyTorch weights ({summarize(error)}); download it again"
        ) from None
    if not isinstance(state, dict) or not all(isinstance(key, str) and isinstance(state[key], Tensor) for key in state):
        raise DataError(f"{name} is not a plain state dict of tensors; use another file")
    return state


def build_inception(state: dict[str, Tensor], name: str) -> nn.Module:
    """torch-fidelity reads its weights with pickle, so it gets a file in memory that holds only these tensors."""
    from torch_fidelity.utils import create_feature_extractor

    weights = io.BytesIO()
    torch.save(state, weights)
    weights.seek(0)
    options: dict[str, Any] = {"cuda": False, "feature_extractor_weights_path": weights, "verbose": False}
    try:
        network: nn.Module = create_feature_extractor("inception-v3-compat", ["2048", "logits_unbiased"], **options)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise DataError(
            f"{name} does not fit torch-fidelity's InceptionV3 ({summarize(error)}); use its weights"
        ) from None
    return network


def load_efficientnet(device: torch.device) -> Extractor:
    """EfficientNet-Lite0: 1,280 features, 1,000 logits. Raises AbsentError if its package is not installed, DataError
    for a package with other weights."""
    content = efficientnet.read_weights()
    if sha256_hex(content) != efficientnet.WEIGHTS_SHA256:
        raise DataError(f"the weights in {efficientnet.PACKAGE} are not the published ones; install the package again")
    network = efficientnet.build_efficientnet(parse_weights(content, efficientnet.PACKAGE), device)

    def compute(pixels: Tensor) -> Features:
        return Features(*network(pixels))

    identity = {
        "network": "efficientnet-lite0",
        "weights_sha256": efficientnet.WEIGHTS_SHA256,
        "resize": efficientnet.RESIZE,
    }
    notes = ("features of EfficientNet-Lite0, not of Inception: compare only scores that used them",)
    return Extractor("_efficientnet", 3, efficientnet.FEATURES, identity, compute, notes=notes)


def load_dinov2(device: torch.device) -> Extractor:
    """torch-fidelity's DINOv2. torch.hub downloads its code and weights from facebookresearch/dinov2. Raises
    AbsentError if that fails."""
    from torch_fidelity.utils import create_feature_extractor

    if offline():
        raise AbsentError("torch.hub downloads DINOv2, which RJEM_OFFLINE forbids; unset it, or use other --features")
    try:
        network: nn.Module = create_feature_extractor(DINOV2_NAME, ["dinov2"], cuda=False, verbose=False)
    except Exception as error:  # torch.hub runs code of another project, which can raise anything
        reason = summarize(error)
        raise AbsentError(f"DINOv2 cannot be downloaded ({reason}); try again, or use --features inception") from None
    network = network.to(device)
    weights = hashlib.sha256()
    for key, tensor in sorted(network.state_dict().items()):
        weights.update(key.encode())
        weights.update(tensor.cpu().contiguous().numpy().data)
    identity = {"network": DINOV2_NAME, "weights_sha256": weights.hexdigest(), "resize": DINOV2_RESIZE}
    notes = (
        "not comparable with the published FD-DINOv2, which resizes images in another way",
        "torch.hub downloaded DINOv2's code and weights without a known checksum",
    )

    def compute(pixels: Tensor) -> Features:
        return Features(network(pixels)[0], None)

    return Extractor("_dinov2", 3, DINOV2_FEATURES, identity, compute, notes=notes)


def classifier_extractor(checkpoint: Checkpoint, test_accuracy: dict[str, Any] | None, *, is_judge: bool) -> Extractor:
    """The last hidden layer and the logits of a network: one that rjem trained as a judge, or any checkpoint."""
    network: Any = freeze(checkpoint.model)
    info = checkpoint.info

    def compute(pixels: Tensor) -> Features:
        features = network.features(to_model(pixels))
        return Features(features, network.head(features))

    channels, height, width = info.image_shape
    identity = {
        "network": f"{'judge' if is_judge else 'classifier'} {info.config.architecture}",
        "weights_sha256": checkpoint.sha256,
        "resize": f"none, {width}x{height}",
    }
    about = {"path": str(checkpoint.path), "test_accuracy": test_accuracy}
    notes = ["the judge's test accuracy is unknown"]
    if test_accuracy is not None:
        notes = [f"the judge's test accuracy is {test_accuracy['value']:.2%} ({test_accuracy['of']} images)"]
    if is_judge:
        notes.append(f"another machine trains another judge; to compare, use this one: --features {checkpoint.path}")
    dimensions = feature_count(info.config)
    return Extractor("_judge", channels, dimensions, identity, compute, about, tuple(notes), info.class_names)
