"""ResNet-50 (He et al. 2016) for small images, as MadryLab's robustness library has it for CIFAR: torchvision's network
with a 3x3 stem of stride 1 and without max pooling."""

from torch import Tensor, nn
from torchvision.models import resnet50

from rjem_cli.engine.networks.normalizer import Normalizer

FEATURES = 2048


class SmallImageResNet50(nn.Module):
    """f: images (B, C, H, W) in [-1, 1] to logits (B, K)."""

    def __init__(self, channels: int, num_classes: int):
        super().__init__()
        self.normalizer = Normalizer(channels)
        self.body = resnet50()
        self.body.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        self.body.maxpool = nn.Identity()
        self.body.fc = nn.Identity()
        self.head = nn.Linear(FEATURES, num_classes)

    def features(self, x_BCHW: Tensor) -> Tensor:
        """The input of the last layer, (B, 2048)."""
        hidden: Tensor = self.body(self.normalizer(x_BCHW))
        return hidden

    def forward(self, x_BCHW: Tensor) -> Tensor:
        logits_BK: Tensor = self.head(self.features(x_BCHW))
        return logits_BK
