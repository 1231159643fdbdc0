"""Where memory is too small for a batch, commands go on with smaller ones and say so; training says what to set."""

from __future__ import annotations

import itertools
import json

import pytest
import torch

from rjem_cli.engine.data.collection import read_collection
from rjem_cli.engine.models.frozen import FrozenLogits
from tests.conftest import TINY_FLAGS

MOST = 20  # images that fit


@pytest.fixture
def small_memory(monkeypatch):
    """Call it, and `after` so many passes no more images go through a network at once."""

    def begin(after=0):
        plain, passes = FrozenLogits.__call__, itertools.count()

        def limited(self, x):
            if next(passes) >= after and len(x) > MOST:
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


def test_chains_begin_again_where_memory_shrinks_on_the_way(rjem, trained, small_memory, tmp_path):
    """All of them, so that the block size in their protocol is that of each."""
    call = ("langevin", "tiny", "-n", 80, "--sgld-steps", 4, "--json")
    asked = json.loads(rjem(*call, "--block-size", 12, "-o", tmp_path / "asked").out)
    small_memory(after=7)  # the probe, the first block, and a step of the second
    outcome = rjem(*call, "-o", tmp_path / "found")
    assert outcome.code == 0 and "for 50 images at once; goes on with 25" in outcome.err
    assert json.loads(outcome.out) == asked
    for name in ("film.png", "energies.csv", "000079.png"):
        assert (tmp_path / "asked" / name).read_bytes() == (tmp_path / "found" / name).read_bytes()


def test_a_block_size_of_chains_that_was_asked_for_is_not_changed(rjem, trained, small_memory, tmp_path):
    small_memory(after=3)
    outcome = rjem("langevin", "tiny", "-n", 30, "--sgld-steps", 4, "--block-size", 30, "-o", tmp_path / "asked")
    assert outcome.code == 1 and "--block-size" in outcome.error_line()


def test_a_comparison_draws_in_smaller_blocks(rjem, own_home, trained, small_memory, digits_judge):
    small_memory()
    outcome = rjem("compare", "tiny", "--samples", 60, "--limit", 20, "--steps", 1, "--allow-few", "--json")
    assert outcome.code == 0, outcome.err
    assert "memory is too small for 25 images at once; goes on with 12" in outcome.err
    assert rjem("generate", "tiny", "-n", 60, "--block-size", 12, "-o", own_home / "asked.npz").code == 0
    (drawn,) = (own_home / "cache" / "comparisons").glob("*.npz")
    assert read_collection(str(drawn)).digest() == read_collection(str(own_home / "asked.npz")).digest()


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
