"""Features are cached chunk by chunk, under names that no other images and no other network can have."""

from __future__ import annotations

import pytest
import torch

from rjem_cli.engine.batching import BatchSizer
from rjem_cli.engine.metrics.extractors import Extractor, Features
from rjem_cli.engine.metrics.features import CHUNK, count_missing, load_features, split_chunks

CPU = torch.device("cpu")
PIXELS = torch.randint(0, 256, (3 * CHUNK + 50, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def mean_of_rows(pixels):
    return pixels.float().mean(dim=(1, 3))


class CountingNetwork:
    """Means of rows as features; counts the images it computes."""

    def __init__(self, weights: str = "a"):
        self.images = 0
        self.extractor = Extractor("_judge", 1, 4, {"weights_sha256": weights}, self.compute)

    def compute(self, pixels):
        self.images += len(pixels)
        return Features(mean_of_rows(pixels), None)

    def load(self, pixels=PIXELS, on_progress=lambda done: None):
        return load_features(
            split_chunks(pixels, self.extractor, "x"), self.extractor, CPU, BatchSizer(64), on_progress
        )


def test_an_interruption_loses_at_most_a_chunk(own_home):
    network = CountingNetwork()

    def stop(done):
        if done > 2 * CHUNK:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        network.load(on_progress=stop)
    assert count_missing(split_chunks(PIXELS, network.extractor, "x")) == CHUNK + 50
    network.images, seen = 0, []
    features, logits = network.load(on_progress=seen.append)
    assert network.images == CHUNK + 50 and seen == sorted(seen) and seen[-1] == len(PIXELS)
    assert torch.equal(features, mean_of_rows(PIXELS)) and logits is None


def test_other_weights_other_pixels_and_other_shapes_have_other_features(own_home):
    CountingNetwork().load()
    changes = ((CountingNetwork("b"), PIXELS), (CountingNetwork(), PIXELS.flip(0)))
    for network, pixels in (*changes, (CountingNetwork(), PIXELS.view(-1, 1, 2, 8))):
        features, _ = network.load(pixels)
        assert network.images == len(PIXELS) and torch.equal(features, mean_of_rows(pixels))
    grown = CountingNetwork()
    grown.load(torch.cat([PIXELS[: 3 * CHUNK], PIXELS[:10]]))
    assert grown.images == 10  # a set that grows keeps its chunks


def test_features_that_are_not_finite_are_not_cached(own_home):
    broken = Extractor("_judge", 1, 4, {"weights_sha256": "a"}, lambda x: Features(mean_of_rows(x) * torch.nan, None))
    load_features(split_chunks(PIXELS, broken, "x"), broken, CPU, BatchSizer(64))
    network = CountingNetwork()
    assert torch.isfinite(network.load().features).all() and network.images == len(PIXELS)


def test_a_folder_that_cannot_be_written_is_no_error(monkeypatch, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("RJEM_HOME", str(tmp_path / "file" / "home"))
    network = CountingNetwork()
    for _ in range(2):
        assert torch.equal(network.load().features, mean_of_rows(PIXELS))
    assert network.images == 2 * len(PIXELS)
