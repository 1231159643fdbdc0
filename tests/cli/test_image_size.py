"""--image-size: photographs of mixed sizes, from training to scores."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from tests.image_files import write

TINY = (
    "--depth 10 --width 1 --norm-layer none --steps 2 --batch-size 4 --buffer-size 8 --pgd-steps 1 --sgld-steps 1 "
    "--warmup-steps 1 --sample-steps 2 --attack-steps 1 --crop-pad 1 --eval-limit 4 --quiet"
).split()


@pytest.fixture
def photos(tmp_path):
    """Twenty photographs of five sizes and both orientations, in a tar with splits."""
    random = np.random.default_rng(0)
    files = {}
    for index in range(20):
        size = [(31, 20), (20, 31), (64, 48), (12, 90), (16, 16)][index % 5]
        content = io.BytesIO()
        Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)).save(content, format="JPEG")
        split = "test" if index >= 15 else "train"
        files[f"{split}/{('cat', 'dog')[index % 2]}/{index:02d}.jpg"] = content.getvalue()
    return write(files, tmp_path / "photos.tar")


@pytest.fixture
def run(rjem, photos, own_home):
    outcome = rjem("train", "--data", photos, "--image-size", 12, "--run", "small", *TINY)
    assert outcome.code == 0, outcome.err
    return "small"


def test_photographs_of_mixed_sizes_are_refused_with_the_option_that_helps(rjem, photos):
    outcome = rjem("train", "--data", photos, *TINY)
    assert outcome.code == 1 and "add --image-size 12 to resize them" in outcome.err


def test_samples_record_the_size_and_are_scored_against_resized_images(rjem, run, photos, tmp_path, quick_judge):
    assert rjem("generate", run, "-n", 6, "-o", tmp_path / "samples").code == 0
    meta = json.loads((tmp_path / "samples/meta.json").read_bytes())
    assert meta["dataset"]["image_size"] == 12
    options = ("--metrics", "kid", "--json")
    document = json.loads(rjem("eval", tmp_path / "samples", *options).out)
    assert document["protocol"]["reference"]["shape"] == [3, 12, 12]
    for call in (("eval", f"{photos}:val"), ("eval", photos, "--reference", f"{photos}:val")):
        outcome = rjem(*call, "--image-size", 12)
        assert outcome.code == 2 and "has no part 'val'; choose from train, test, all" in outcome.error_line()
    document = json.loads(rjem("eval", f"{photos}:test", "--image-size", 12, *options).out)
    assert document["protocol"]["samples"]["count"] == 5 and document["protocol"]["samples"]["shape"] == [3, 12, 12]


def test_a_checkpoint_is_attacked_and_continued_on_photographs_of_any_size(rjem, run, photos, tmp_path):
    outcome = rjem("attack", run, "--eps", 0.1, "--steps", 1, "--json")
    assert json.loads(outcome.out)["protocol"]["of"] == 5
    photo = tmp_path / "photo.png"
    Image.new("RGB", (300, 200), "red").save(photo)
    outcome = rjem("langevin", run, "--init", photo, "-n", 2, "--sgld-steps", 1, "-o", tmp_path / "chains")
    assert outcome.code == 0 and f"read {photo}: 1 image, no classes" in outcome.err


def test_a_resumed_run_keeps_its_size(rjem, run):
    outcome = rjem("train", "--resume", run, "--image-size", 16, "--steps", 4)
    assert outcome.code == 2 and "--image-size 16" in outcome.err and "resume with that" in outcome.err


@pytest.mark.parametrize("size", ["0", "3", "5000", "1.5", "big"])
def test_an_impossible_size_is_refused(rjem, photos, size):
    outcome = rjem("train", "--data", photos, "--image-size", size, *TINY)
    assert outcome.code == 2 and f"--image-size {size}" in outcome.err.replace("'", "")


def test_a_folder_whose_name_ends_like_a_part_is_that_folder(rjem, own_home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, count in (("a", 6), ("a:test", 4)):
        for index in range(count):
            (tmp_path / name / f"class{index % 2}").mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), 20 * index).save(tmp_path / name / f"class{index % 2}/{index}.png")
    flags = ("--metrics", "kid", "--features", "efficientnet-lite0", "--json")
    protocol = json.loads(rjem("eval", "a:test", "--reference", "a:test", *flags).out)["protocol"]
    assert (protocol["samples"]["count"], protocol["reference"]["count"]) == (4, 4)
    outcome = rjem("train", "--data", "a:train", *TINY)
    assert outcome.code == 3 and "a, and add --split train in rjem attack or rjem eval" in outcome.err


def test_images_that_would_not_fit_into_memory_are_refused_before_they_are_made(rjem, monkeypatch):
    monkeypatch.setattr("rjem_cli.engine.data.decode.memory_limit", lambda: 10_000_000)
    outcome = rjem("train", "--dataset", "digits", "--image-size", 512, *TINY)
    assert outcome.code == 1 and "do not fit into memory; lower --image-size 512" in outcome.err


def test_out_of_distribution_images_are_resized_as_the_checkpoints_own(rjem, run, photos):
    outcome = rjem("eval", run, "--ood", photos, "--samples", 0, "--steps", 1, "--limit", 4, "--json")
    assert outcome.code == 0, outcome.err
    assert "auroc_photos_log_p" in json.loads(outcome.out)
