"""Scores with InceptionV3 and random weights equal those of torch-fidelity."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rjem_cli.engine.data.collection import read_collection
from rjem_cli.engine.data.remote_file import sha256_hex
from rjem_cli.engine.metrics import efficientnet, extractors, judge
from rjem_cli.engine.metrics.extractors import parse_weights
from rjem_cli.errors import DataError
from tests.image_files import write
from tests.random_inception import THEIR_NAMES, write_random_inception

COUNT = 12


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory):
    return write_random_inception(tmp_path_factory.mktemp("weights") / "random.pth")


def photographs(seed: int, contrast: float = 1.0) -> dict[str, bytes]:
    """Smooth coloured noise as PNG files, 32x32."""
    draws = np.random.default_rng(seed).integers(0, 256, (COUNT, 5, 5, 3), dtype=np.uint8)
    files = {}
    for index, draw in enumerate((draws * contrast).astype(np.uint8)):
        content = io.BytesIO()
        Image.fromarray(draw).resize((32, 32)).save(content, format="PNG")
        files[f"{index:03d}.png"] = content.getvalue()
    return files


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    home = tmp_path_factory.mktemp("images")
    return write(photographs(0, contrast=0.2), home / "samples"), write(photographs(1), home / "real")


def evaluate(rjem, *arguments):
    outcome = rjem("eval", *arguments, "--allow-few", "--json")
    assert outcome.code == 0, outcome.err
    return json.loads(outcome.out)


def test_scores_equal_those_of_torch_fidelity_with_images_and_with_statistics(rjem, inception_file, folders, tmp_path):
    from torch_fidelity import calculate_metrics
    from torch_fidelity.metric_fid import fid_features_to_statistics
    from torch_fidelity.utils import create_feature_extractor

    samples, real = folders
    theirs = calculate_metrics(
        input1=str(samples),
        input2=str(real),
        isc=True,
        fid=True,
        kid=True,
        prc=True,
        kid_subset_size=COUNT // 2,
        isc_splits=2,
        feature_extractor="inception-v3-compat",
        feature_extractor_weights_path=str(inception_file),
        cuda=False,
        cache=False,
        verbose=False,
        save_cpu_ram=True,
    )
    flags = ("--features", inception_file, "--is-splits", 2)
    ours = evaluate(rjem, samples, "--reference", real, *flags, "--kid-subset-size", COUNT // 2)
    for name, other in THEIR_NAMES.items():
        assert ours[name] == pytest.approx(theirs[other], rel=1e-5), name
    assert any("not the published Inception weights" in note for note in ours["notes"])
    assert ours["protocol"]["features"]["weights_sha256"] == sha256_hex(inception_file.read_bytes())

    network = create_feature_extractor(
        "inception-v3-compat",
        ["2048"],
        cuda=False,
        verbose=False,
        feature_extractor_weights_path=str(inception_file),
    )
    statistics = fid_features_to_statistics(network(read_collection(str(real)).pixels)[0])
    np.savez(tmp_path / "stats.npz", mu=statistics["mu"].astype(np.float64), sigma=statistics["sigma"])
    by_statistics = evaluate(rjem, samples, "--reference", tmp_path / "stats.npz", *flags)
    assert by_statistics["fd_custom"] == pytest.approx(ours["fd_custom"], rel=1e-6)
    assert by_statistics["is_custom"] == ours["is_custom"] and "kd_custom_mean" not in by_statistics
    assert by_statistics["protocol"]["reference"]["count"] is None
    assert sum("the reference is statistics" in note for note in by_statistics["notes"]) == 5
    asked = rjem("eval", samples, "--reference", tmp_path / "stats.npz", *flags, "--metrics", "kid")
    assert asked.code == 1 and "the reference is statistics" in asked.error_line()


def test_saved_statistics_give_the_same_distance_and_are_checked(rjem, inception_file, folders, tmp_path):
    samples, real = folders
    flags = ("--features", inception_file, "--allow-few")
    planned = rjem("eval", real, "--save-stats", tmp_path / "real.npz", *flags, "--dry-run")
    assert planned.code == 0 and "writes" in planned.err and not (tmp_path / "real.npz").exists()
    saved = rjem("eval", real, "--save-stats", tmp_path / "real.npz", *flags)
    assert saved.code == 0 and saved.out.strip() == str(tmp_path / "real.npz"), saved.err
    with np.load(tmp_path / "real.npz") as arrays:  # as pytorch-fid reads it
        assert arrays["mu"].shape == (2048,) and arrays["sigma"].shape == (2048, 2048)
        assert json.loads(str(arrays["protocol"]))["images"]["count"] == len(read_collection(str(real)))
    metrics = ("--metrics", "fid", *flags)
    by_images = evaluate(rjem, samples, "--reference", real, *metrics)
    by_statistics = evaluate(rjem, samples, "--reference", tmp_path / "real.npz", *metrics)
    assert by_statistics["fd_custom"] == pytest.approx(by_images["fd_custom"], rel=1e-6)
    assert not any("does not say which network" in note for note in by_statistics["notes"])
    other = write_random_inception(tmp_path / "other.pth", seed=1)
    flags = ("--reference", tmp_path / "real.npz", "--metrics", "fid", "--features", other, "--allow-few")
    refused = rjem("eval", samples, *flags)
    assert refused.code == 1 and "has the weights_sha256" in refused.error_line()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["digits:test", "--metrics", "fid"], "--metrics does not apply to --save-stats"),
        (["digits:test", "--save-stats", "/proc/x.npz"], "/proc"),
        (["digits:test", "--save-stats", "x.csv"], "--save-stats x.csv: give a name that ends in .npz"),
        (["digits:test", "--features", "efficientnet-lite0", "--num", 99], "99 images are too few for 1280 features"),
        (["cifar10-16"], "--save-stats applies to images only"),
        (["--model", "torch.nn:Identity", "--dataset", "digits"], "--save-stats applies to images only"),
        (["digits:test", "--require", "is>1"], "--require does not apply to --save-stats"),
    ],
)
def test_statistics_that_cannot_be_saved(rjem, tmp_path, arguments, message):
    outcome = rjem("eval", "--save-stats", tmp_path / "x.npz", *arguments)
    assert outcome.code != 0 and message in outcome.error_line() and not (tmp_path / "x.npz").exists()


def test_only_the_published_weights_make_an_fid(rjem, inception_file, folders, monkeypatch):
    flags = (
        folders[0],
        "--reference",
        folders[1],
        "--features",
        inception_file,
        "--metrics",
        "fid,is",
        "--is-splits",
        2,
    )
    other = evaluate(rjem, *flags)
    assert not {"fid", "isc_mean"} & other.keys() and not other["protocol"]["features"]["published_weights"]
    published = extractors.INCEPTION._replace(sha256=sha256_hex(inception_file.read_bytes()))
    monkeypatch.setattr(extractors, "INCEPTION", published)
    same = evaluate(rjem, *flags)
    assert same["fid"] == other["fd_custom"] and same["isc_mean"] == other["is_custom"]
    assert same["protocol"]["features"]["published_weights"]
    assert not any("not the published Inception weights" in note for note in same["notes"])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mu": np.zeros(2048), "sigma": -np.eye(2048)}, "negative variance"),
        ({"mu": np.zeros(2048), "sigma": np.triu(np.ones((2048, 2048)))}, "not symmetric"),
        ({"mu": np.full(2048, 1e200), "sigma": np.eye(2048)}, "not statistics of features"),
        ({"mu": np.full(2048, np.nan), "sigma": np.eye(2048)}, "give finite mu"),
        ({"mu": np.zeros(2048), "sigma": np.eye(2047)}, r"mu is \(2048,\), sigma \(2047, 2047\)"),
        ({"mu": np.zeros(7), "sigma": np.eye(7)}, "has 7 features, but inception has 2048"),
        ({"mean": np.zeros(7)}, "no array mu"),
    ],
)
def test_invalid_statistics_are_one_line(rjem, folders, tmp_path, arrays, message):
    np.savez(tmp_path / "stats.npz", **arrays)
    outcome = rjem("eval", folders[0], "--reference", tmp_path / "stats.npz", "--allow-few", "--features", "inception")
    assert outcome.code in (1, 2) and re.search(message, outcome.error_line()) and "stats.npz" in outcome.error_line()


def test_hostile_or_unfit_weights_are_one_line(rjem, inception_file, folders, tmp_path):
    class Hostile:
        def __reduce__(self):
            return Path.touch, (tmp_path / "owned",)

    torch.save({"fc.bias": Hostile()}, tmp_path / "hostile.pth")
    whole = inception_file.read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "text.pth").write_bytes(b"hello")
    torch.save({"layer.weight": torch.zeros(2)}, tmp_path / "other.pth")
    torch.save([torch.zeros(2)], tmp_path / "list.pth")
    for name, message in {
        "hostile": "could run code",
        "cut": "not a valid file",
        "empty": "not a valid file",
        "text": "not a valid file",
        "other": "does not fit",
        "list": "not a plain state dict",
    }.items():
        outcome = rjem(
            "eval", folders[0], "--reference", folders[1], "--features", tmp_path / f"{name}.pth", "--allow-few"
        )
        assert outcome.code == 1 and message in outcome.error_line() and f"{name}.pth" in outcome.error_line()
    assert not (tmp_path / "owned").exists()


def test_a_damaged_archive_is_not_a_valid_file():
    with pytest.raises(DataError, match="not a valid file"):
        parse_weights(b"PK\x03\x04", "x.pth")


def test_without_inception_auto_uses_what_is_installed_else_a_judge_and_gives_the_reason(rjem, tmp_path, monkeypatch):
    monkeypatch.setattr(judge, "FEWEST_STEPS", 3)
    monkeypatch.setattr(judge, "EPOCHS", 0)
    real = {f"{name}/{file}": content for seed, name in enumerate("ab") for file, content in photographs(seed).items()}
    arguments = ("eval", write(real, tmp_path / "real"), "--reference", tmp_path / "real", "--allow-few", "--json")
    installed = json.loads(rjem(*arguments, "--metrics", "kid").out)
    assert "kd_efficientnet_mean" in installed and "RJEM_OFFLINE" in installed["protocol"]["features"]["reason"]
    monkeypatch.setattr(efficientnet, "is_installed", lambda: False)
    outcome = rjem(*arguments)
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    assert "Inception's weights are not in" in found["protocol"]["features"]["reason"]
    assert found["fd_judge"] == pytest.approx(0, abs=1e-3) and found["exact_copies"] == 2 * COUNT
    monkeypatch.delenv("RJEM_OFFLINE")
    unreachable = extractors.INCEPTION._replace(url="http://127.0.0.1:9/x.pth")
    monkeypatch.setattr(extractors, "INCEPTION", unreachable)
    again = rjem(*arguments)
    assert "cannot download" in json.loads(again.out)["protocol"]["features"]["reason"]


def test_a_call_without_any_available_metric_is_an_error(rjem, folders, inception_file, tmp_path):
    np.savez(tmp_path / "stats.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    flags = ("--reference", tmp_path / "stats.npz", "--features", inception_file, "--num", 5, "--is-splits", 9)
    outcome = rjem("eval", folders[0], *flags)
    assert (
        outcome.code == 1
        and "no metric is available: fid (here fd_custom) is left out: 5 samples are too few" in outcome.error_line()
    )


def test_without_inception_and_without_classes_the_remedy_is_given_once(rjem, folders, monkeypatch):
    monkeypatch.setattr(efficientnet, "is_installed", lambda: False)
    samples, real = folders
    outcome = rjem("eval", samples, "--reference", real, "--metrics", "kid")
    assert outcome.code == 3
    assert "no other features can be used" in outcome.error_line() and "has no classes" in outcome.error_line()
    assert "download https" in outcome.error_line() and outcome.error_line().count("try again") == 1
