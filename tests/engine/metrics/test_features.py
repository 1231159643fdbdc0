"""Features are kept chunk by chunk, under names that no other images and no other network can have."""

from __future__ import annotations

import pytest
import torch

from rjem_cli.engine.batching import BatchSizer
from rjem_cli.engine.metrics.extractors import Extractor
from rjem_cli.engine.metrics.features import CHUNK, chunks_of, extract, images_per_second, missing_images

CPU = torch.device("cpu")
PIXELS = torch.randint(0, 256, (3 * CHUNK + 50, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


class Counted:
    """Means of rows as features; counts the images it was asked for."""

    def __init__(self, weights: str = "a"):
        self.images = 0
        self.extractor = Extractor("_judge", 1, 4, {"weights_sha256": weights}, self.compute)

    def compute(self, pixels):
        self.images += len(pixels)
        return pixels.float().mean(dim=(1, 3)), None

    def extract(self, pixels=PIXELS, report=lambda done: None, batch_size=64):
        return extract(chunks_of(pixels, self.extractor, "x"), self.extractor, CPU, BatchSizer(batch_size), report)


def test_a_stop_loses_at_most_a_chunk(own_home):
    network = Counted()

    def stop(done):
        if done > 2 * CHUNK:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        network.extract(report=stop)
    assert missing_images(chunks_of(PIXELS, network.extractor, "x")) == CHUNK + 50
    network.images, seen = 0, []
    found = network.extract(report=seen.append)
    assert network.images == CHUNK + 50 and seen[-1] == len(PIXELS) == len(found)
    assert torch.equal(found.features, PIXELS.float().mean(dim=(1, 3))) and found.logits is None


def test_other_weights_other_pixels_and_other_shapes_have_other_features(own_home):
    first = Counted()
    first.extract()
    for other, pixels in ((Counted("b"), PIXELS), (Counted(), PIXELS.flip(0)), (Counted(), PIXELS.view(-1, 1, 2, 8))):
        found = other.extract(pixels)
        assert other.images == len(PIXELS) and torch.equal(found.features, pixels.float().mean(dim=(1, 3)))
    more = torch.cat([PIXELS[: 3 * CHUNK], PIXELS[:10]])
    grown = Counted()
    grown.extract(more)
    assert grown.images == 10  # whole chunks are shared by sets that grow


def test_features_that_are_not_finite_are_not_kept(own_home):
    network = Counted()

    def nothing(pixels):
        return pixels.float().mean(dim=(1, 3)) * torch.nan, None

    broken = Extractor("_judge", 1, 4, {"weights_sha256": "a"}, nothing)
    extract(chunks_of(PIXELS, broken, "x"), broken, CPU, BatchSizer(64), lambda done: None)
    assert torch.isfinite(network.extract().features).all() and network.images == len(PIXELS)


def test_a_place_that_cannot_be_written_keeps_nothing_and_loses_nothing(monkeypatch, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("RJEM_HOME", str(tmp_path / "file" / "home"))
    network = Counted()
    assert len(network.extract()) == len(network.extract()) == len(PIXELS) and network.images == 2 * len(PIXELS)


def test_the_speed_is_measured_in_batches_as_large_as_those_that_follow():
    network = Counted()
    assert images_per_second(PIXELS, network.extractor, CPU, BatchSizer(10_000), lambda done: None) > 0
    assert network.images <= 4 * CHUNK
