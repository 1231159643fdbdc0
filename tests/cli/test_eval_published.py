"""The published Inception weights and CIFAR-10 give torch-fidelity's scores. Opt-in: 270 MB of downloads, and ten
minutes on a CPU.

    RJEM_GOLDEN=~/golden pytest tests/cli/test_eval_published.py
"""

from __future__ import annotations

import json
import os

import numpy as np
import pytest

from rjem_cli.engine.data.downloads import load_published

FOLDER = os.environ.get("RJEM_GOLDEN")
FIRST = 5000  # of each part, in the order of the data set's own files
THEIR_SCORES = {  # of torch-fidelity's own command: (value, tolerance)
    "fid": (10.3233, 1e-3),
    "kid_mean": (-2.9e-5, 1e-6),
    "isc_mean": (10.7505, 1e-3),
    "precision": (0.6852, 5e-4),
    "recall": (0.6908, 5e-4),
}


@pytest.mark.skipif(FOLDER is None, reason="downloads 270 MB: name a folder for them in RJEM_GOLDEN to run it")
def test_scores_of_cifar10_equal_those_of_torch_fidelity(rjem, monkeypatch, tmp_path):
    monkeypatch.setenv("RJEM_CACHE", str(FOLDER))
    monkeypatch.delenv("RJEM_OFFLINE")
    for name, images in zip(("train", "test"), load_published("cifar10")):
        np.savez(tmp_path / f"{name}.npz", arr_0=images.pixels[:FIRST].permute(0, 2, 3, 1).numpy())
    samples, reference = tmp_path / "train.npz", tmp_path / "test.npz"
    outcome = rjem("eval", samples, "--reference", reference, "--features", "inception", "--json")
    assert outcome.code == 0, outcome.err
    scores = json.loads(outcome.out)
    for name, (value, tolerance) in THEIR_SCORES.items():
        assert scores[name] == pytest.approx(value, abs=tolerance), name
