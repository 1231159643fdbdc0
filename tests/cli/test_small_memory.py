"""Commands continue with smaller batches where memory is too small; training names the option to set."""

from __future__ import annotations

import itertools
import json
import warnings

import pytest
import torch

from rjem_cli.engine.data.collection import read_collection
from rjem_cli.engine.models.frozen import FrozenLogits
from tests.conftest import TINY_FLAGS

MAX_IMAGES = 20  # in one network pass


@pytest.fixture
def small_memory(monkeypatch):
    """Call it to make passes of more than MAX_IMAGES images fail, after `after` more passes."""

    def shrink(after=0):
        plain, passes = FrozenLogits.__call__, itertools.count()

        def limited(self, x):
            if next(passes) >= after and len(x) > MAX_IMAGES:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
            return plain(self, x)

        monkeypatch.setattr(FrozenLogits, "__call__", limited)

    return shrink


def test_samples_are_generated_in_smaller_blocks(rjem, trained, small_memory, tmp_path):
    assert rjem("generate", "tiny", "-n", 60, "--block-size", 12, "-o", tmp_path / "given.tar").code == 0
    small_memory()
    outcome = rjem("generate", "tiny", "-n", 60, "-o", tmp_path / "halved.tar")
    assert outcome.code == 0 and "not enough memory for 25 images at once; continuing with 12" in outcome.err
    given, halved = ((tmp_path / f"{name}.tar").read_bytes() for name in ("given", "halved"))
    assert given == halved


def test_chains_are_recorded_in_smaller_blocks(rjem, trained, small_memory, tmp_path):
    small_memory()
    outcome = rjem("langevin", "tiny", "-n", 30, "--sgld-steps", 2, "-o", tmp_path / "chains")
    assert outcome.code == 0 and "continuing with 12" in outcome.err


def test_all_chains_start_again_if_memory_runs_out_in_the_middle(rjem, trained, small_memory, tmp_path):
    """So every chain has the block size that their protocol states."""
    call = ("langevin", "tiny", "-n", 80, "--sgld-steps", 4, "--json")
    given = json.loads(rjem(*call, "--block-size", 12, "-o", tmp_path / "given").out)
    small_memory(after=7)  # the first test of the block size, the first block, and a step of the second
    outcome = rjem(*call, "-o", tmp_path / "halved")
    assert outcome.code == 0 and "for 50 images at once; continuing with 25" in outcome.err
    assert json.loads(outcome.out) == given
    for name in ("film.png", "energies.csv", "000079.png"):
        assert (tmp_path / "given" / name).read_bytes() == (tmp_path / "halved" / name).read_bytes()


def test_a_given_block_size_is_not_changed(rjem, trained, small_memory, tmp_path):
    small_memory(after=3)
    outcome = rjem("langevin", "tiny", "-n", 30, "--sgld-steps", 4, "--block-size", 30, "-o", tmp_path / "given")
    assert outcome.code == 1 and "--block-size" in outcome.error_line()


def test_a_comparison_samples_in_smaller_blocks(rjem, own_home, trained, small_memory, digits_judge):
    small_memory()
    outcome = rjem("compare", "tiny", "--samples", 60, "--limit", 20, "--steps", 1, "--allow-few", "--json")
    assert outcome.code == 0, outcome.err
    assert "not enough memory for 25 images at once; continuing with 12" in outcome.err
    assert rjem("generate", "tiny", "-n", 60, "--block-size", 12, "-o", own_home / "given.npz").code == 0
    (samples,) = (own_home / "cache" / "comparisons").glob("*.npz")
    assert read_collection(str(samples)).digest() == read_collection(str(own_home / "given.npz")).digest()


def test_scores_do_not_change_with_smaller_batches(rjem, trained, small_memory):
    calls = {
        "attack": ("attack", "tiny", "--limit", 90, "--eps", "0.02,0.1", "--steps", 3, "--restarts", 2, "--json"),
        "eval": ("eval", "tiny", "--limit", 90, "--steps", 3, "--samples", 30, "--json"),
    }
    before = {name: json.loads(rjem(*call).out) for name, call in calls.items()}
    small_memory()
    for name, call in calls.items():
        outcome = rjem(*call)
        assert outcome.code == 0 and outcome.err.count("not enough memory") == 3  # of 90, of 45, of 22
        after = json.loads(outcome.out)
        if name == "attack":
            assert after["clean"] == before[name]["clean"]
            for small, large in zip(after["results"], before[name]["results"], strict=True):
                assert small["robust_accuracy"] == large["robust_accuracy"]
        else:
            assert after["accuracy"] == before[name]["accuracy"] and after["ece"] == pytest.approx(before[name]["ece"])


def test_training_names_the_option_to_set(rjem, small_memory):
    small_memory()
    outcome = rjem("train", "--run", "large", *TINY_FLAGS, "--batch-size", 30)
    assert outcome.code == 1 and "not enough memory" in outcome.error_line()
    assert "--batch-size" in outcome.error_line()


def test_memory_warnings_of_pytorch_are_not_shown_beside_the_error(rjem):
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        assert rjem("cache", "dir").code == 0
        warnings.warn("Plan failed with an OutOfMemoryError: CUDA out of memory.", stacklevel=1)
        warnings.warn("CUDA ran out of memory outside PyTorch's allocator. If this", stacklevel=1)
        warnings.warn("another one", stacklevel=1)
    assert [str(warning.message) for warning in shown] == ["another one"]
