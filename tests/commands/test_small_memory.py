"""Where memory is too small for a batch, commands go on with smaller ones and say so; training says what to set."""

from __future__ import annotations

import json

import pytest
import torch

from rjem_cli.engine.model.frozen import FrozenLogits
from tests.commands.conftest import TINY_FLAGS

MOST = 20  # images that fit


@pytest.fixture
def small_memory(monkeypatch):
    """Call it, and from then on no more images go through a network at once."""

    def begin():
        plain = FrozenLogits.__call__

        def limited(self, x):
            if len(x) > MOST:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
            return plain(self, x)

        monkeypatch.setattr(FrozenLogits, "__call__", limited)

    return begin


def test_samples_come_in_smaller_blocks(rjem, trained, small_memory, tmp_path):
    assert rjem("generate", "tiny", "-n", 60, "--block-size", 12, "-o", tmp_path / "asked.tar").code == 0
    small_memory()
    outcome = rjem("generate", "tiny", "-n", 60, "-o", tmp_path / "found.tar")
    assert outcome.code == 0 and "memory is too small for 25 images at once; goes on with 12" in outcome.err
    asked, found = ((tmp_path / f"{name}.tar").read_bytes() for name in ("asked", "found"))
    assert asked == found


def test_chains_are_watched_in_smaller_blocks(rjem, trained, small_memory, tmp_path):
    small_memory()
    outcome = rjem("langevin", "tiny", "-n", 30, "--sgld-steps", 2, "-o", tmp_path / "chains")
    assert outcome.code == 0 and "goes on with 12" in outcome.err


def test_scores_are_those_of_large_batches(rjem, trained, small_memory):
    calls = {
        "attack": ("attack", "tiny", "--limit", 90, "--eps", "0.02,0.1", "--steps", 3, "--restarts", 2, "--json"),
        "eval": ("eval", "tiny", "--limit", 90, "--steps", 3, "--samples", 30, "--json"),
    }
    before = {name: json.loads(rjem(*call).out) for name, call in calls.items()}
    small_memory()
    for name, call in calls.items():
        outcome = rjem(*call)
        assert outcome.code == 0 and outcome.err.count("memory is too small") == 3  # of 90, of 45, of 22
        after = json.loads(outcome.out)
        if name == "attack":
            assert after["clean"] == before[name]["clean"]
            for each, other in zip(after["results"], before[name]["results"], strict=True):
                assert each["robust_accuracy"] == other["robust_accuracy"]
        else:
            assert after["accuracy"] == before[name]["accuracy"] and after["ece"] == pytest.approx(before[name]["ece"])


def test_training_says_what_to_set(rjem, small_memory):
    small_memory()
    outcome = rjem("train", "--run", "large", *TINY_FLAGS, "--batch-size", 30)
    assert outcome.code == 1 and "not enough memory" in outcome.error_line()
    assert "--batch-size" in outcome.error_line()
