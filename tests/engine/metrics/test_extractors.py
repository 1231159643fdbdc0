"""The wrappers around other projects' networks change no bits, and name their weights."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from rjem_cli.engine.metrics.extractors import DINOV2_FEATURES, ChannelsLastPooling, load_dinov2
from rjem_cli.errors import AbsentError

CPU = torch.device("cpu")


class Patches(torch.nn.Module):
    """With DINOv2's shapes: (B, 3, 224, 224) to (B, 1024)."""

    def __init__(self, scale: int):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(float(scale)))

    def forward(self, x):
        assert x.shape[1:] == (3, 224, 224)
        pooled = F.adaptive_avg_pool2d(x, 16).mean(dim=1).flatten(1)
        return self.scale * pooled.repeat(1, DINOV2_FEATURES // pooled.shape[1])


@pytest.fixture
def hub(monkeypatch):
    """torch.hub with a small network; what it was asked for."""
    requests = []

    def load(repository, name):
        requests.append((repository, name))
        return Patches(len(requests))

    monkeypatch.setattr(torch.hub, "load", load)
    monkeypatch.delenv("RJEM_OFFLINE")
    return requests


def test_pooling_with_channels_last_gives_the_same_bits():
    x = torch.randn(3, 37, 17, 18, generator=torch.Generator().manual_seed(0))
    for pool in (
        lambda: F.max_pool2d(x, kernel_size=3, stride=2),
        lambda: F.max_pool2d(x, kernel_size=3, stride=1, padding=1),
        lambda: F.avg_pool2d(x, kernel_size=3, stride=1, padding=1, count_include_pad=False),
    ):
        plain = pool()
        with ChannelsLastPooling():
            ours = pool()
        assert torch.equal(plain, ours) and ours.is_contiguous()


def test_dinov2_comes_from_torch_hub_and_is_identified_by_its_weights(hub):
    pixels = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    first, second = load_dinov2(CPU), load_dinov2(CPU)
    assert hub == 2 * [("facebookresearch/dinov2", "dinov2_vitl14")]
    (features, logits), (twice, _) = first.compute(pixels), second.compute(pixels)
    assert features.shape == (5, DINOV2_FEATURES) == (5, first.dimensions) and logits is None
    assert torch.allclose(2 * features, twice)
    assert first.identity["weights_sha256"] != second.identity["weights_sha256"]
    assert first.suffix == "_dinov2" and "not comparable" in first.notes[0]


def test_a_failed_download_of_dinov2_is_one_line(monkeypatch):
    def load(repository, name):
        raise OSError("no route\nto host")

    monkeypatch.setattr(torch.hub, "load", load)
    monkeypatch.delenv("RJEM_OFFLINE")
    with pytest.raises(AbsentError, match="no route to host"):
        load_dinov2(CPU)
