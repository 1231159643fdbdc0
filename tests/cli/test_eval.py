from __future__ import annotations

import io
import json
import math
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from rjem_cli.config.common import METRICS
from rjem_cli.engine.data.collection import read_collection, read_stream
from rjem_cli.engine.metrics import distances
from rjem_cli.engine.metrics.registry import REGISTRY
from tests.image_files import tree, write


@pytest.fixture
def digit_samples(tmp_path):
    """600 of scikit-learn's digits, of all classes, as an .npz that rjem did not write."""
    from rjem_cli.engine.data.load import load_digits

    images = load_digits()
    np.savez(
        tmp_path / "digits.npz",
        arr_0=images.pixels[:600].permute(0, 2, 3, 1).numpy(),
        labels=images.labels[:600].numpy(),
    )
    return tmp_path / "digits.npz"


def evaluate(rjem, *arguments):
    outcome = rjem("eval", *arguments, "--json")
    assert outcome.code == 0, outcome.err
    return json.loads(outcome.out)


def test_the_registry_and_the_flag_name_the_same_metrics():
    assert tuple(REGISTRY) == METRICS


def test_samples_of_rjem_are_read_with_their_classes_and_protocol(rjem, trained, tmp_path):
    for target in ("folder", "x.npz", "x.tar"):
        assert rjem("generate", "-n", 7, "--class", "3,8", "-o", tmp_path / target).code == 0
    subprocess.run(["tar", "-C", tmp_path / "folder", "-cf", tmp_path / "dot.tar", "."], check=True)
    subprocess.run(["tar", "-C", tmp_path, "-cf", tmp_path / "below.tar", "folder"], check=True)
    places = ("folder", "x.npz", "x.tar", "dot.tar", "below.tar")
    found = [read_collection(str(tmp_path / place)) for place in places]
    with (tmp_path / "x.tar").open("rb") as stream:
        found.append(read_stream(stream, "standard input"))
    names = tuple("0123456789")
    for each in found:
        assert len(each) == 7 and each.digest() == found[0].digest()
        assert each.class_indices(names).tolist() == [3, 8, 3, 8, 3, 8, 3]
        assert each.meta["dataset"]["name"] == "digits" and each.meta["selection"] == "none"
    assert rjem("generate", "-n", 3, "--class", "none", "-o", tmp_path / "none").code == 0
    assert read_collection(str(tmp_path / "none")).labels is None


def test_shards_have_the_scores_of_the_complete_set(rjem, trained, digits_judge, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert rjem("generate", "-n", 60, "-o", "whole.npz").code == 0
    for shard in range(3):
        assert rjem("generate", "-n", 60, "--shard", f"{shard}/3", "-o", f"part{shard}.npz").code == 0
    whole = evaluate(rjem, "whole.npz", "--allow-few")
    parts = evaluate(rjem, "part0.npz", "part1.npz", "part2.npz", "--allow-few")
    assert parts["protocol"]["samples"]["from"] == "part0.npz, part1.npz, part2.npz"
    assert parts["protocol"]["samples"]["sha256"] == whole["protocol"]["samples"]["sha256"]
    assert parts["protocol"]["reference"] == whole["protocol"]["reference"]
    assert parts["per_class"] == whole["per_class"] and parts["fd_judge"] == whole["fd_judge"]
    rjem("generate", "-n", 60, "--seed", 60, "--shard", "1/3", "-o", "other.npz")
    np.savez("bare.npz", arr_0=np.zeros((4, 8, 8, 1), np.uint8))
    np.savez("noise.npz", arr_0=np.zeros((4, 9, 9, 1), np.uint8))
    for other, message in {
        "tiny": "tiny is a checkpoint",
        "part0.npz": "part0.npz is given twice",
        "digits:test": "is a data set; several",
        "noise.npz": "give images of one size",
        "other.npz": "other.npz and part0.npz differ in seed",
        "./part0.npz": "part0.npz has the images of part0.npz; give each part once",
        "whole.npz": "whole.npz contains sample 0, as does an earlier part",
        "bare.npz": "bare.npz has no meta.json of rjem, but part0.npz does",
    }.items():
        refused = rjem("eval", "part0.npz", other)
        assert refused.code in (1, 2) and message in refused.error_line()


def test_scores_of_a_judge_come_with_their_protocol(rjem, digits_judge, digit_samples, own_home):
    found = evaluate(rjem, digit_samples, "--reference", "digits")
    protocol = found["protocol"]
    assert protocol["reference"]["name"] == "digits:train" and protocol["reference"]["count"] == 1438
    assert protocol["samples"] | {"sha256": 0} == {
        "from": str(digit_samples),
        "count": 600,
        "of": 600,
        "shape": [1, 8, 8],
        "pixels": "uint8",
        "sha256": 0,
        "selection": "unknown",
        "checkpoint_sha256": None,
        "request": None,
    }
    assert protocol["features"]["reason"].startswith("auto: Inception was not trained on 8x8 grey")
    assert len(protocol["features"]["weights_sha256"]) == 64 and protocol["features"]["arithmetic"] == "float32"
    assert any("judge's test accuracy" in note for note in found["notes"])
    assert not {"fid", "kid_mean", "isc_mean", "precision"} & found.keys()  # with a judge, nothing is called FID
    for metric in protocol["metrics"].values():
        for name in metric["scores"]:
            assert math.isfinite(found[name])
    assert found["exact_copies"] > 400
    assert sum(found["per_class"]["share"].values()) == pytest.approx(1)
    assert found["class_entropy_judge_real"] == pytest.approx(math.log(10), abs=1e-3)  # digits has equal classes
    assert found["near_copies_judge"] > 0.5  # most of them are training images
    lines = (own_home / "results.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [found]


def test_cached_features_are_used_again_and_never_for_other_images(
    rjem, quick_judge, digit_samples, own_home, tmp_path
):
    first = rjem("eval", digit_samples, "--reference", "digits", "--json")
    again = rjem("eval", digit_samples, "--reference", "digits", "--json")
    assert "features of 0 of 2038 images to compute" in again.err and "training" not in again.err
    timeless = [{**json.loads(out.out), "seconds": 0, "time": 0} for out in (first, again)]
    assert timeless[0] == timeless[1]
    kept = sorted((own_home / "cache" / "features").glob("*.safetensors"))
    kept[0].write_bytes(kept[0].read_bytes()[:100])
    kept[1].write_bytes(b"")
    mended = {**evaluate(rjem, digit_samples, "--reference", "digits"), "seconds": 0, "time": 0}
    assert mended == timeless[0]
    with np.load(digit_samples) as arrays:
        pixels, labels = arrays["arr_0"].copy(), arrays["labels"]
    pixels[5] = 255 - pixels[5]
    np.savez(tmp_path / "other.npz", arr_0=pixels, labels=labels)
    other = rjem("eval", tmp_path / "other.npz", "--reference", "digits", "--json")
    assert "features of 200 of 2038 images to compute" in other.err
    assert json.loads(other.out)["fd_judge"] != timeless[0]["fd_judge"]


def test_a_pipeline_from_generate(rjem, trained, digits_judge, monkeypatch, tmp_path):
    assert rjem("generate", "-n", 150, "-o", tmp_path / "x.tar").code == 0
    assert rjem("generate", "-n", 150, "-o", tmp_path / "folder").code == 0
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO((tmp_path / "x.tar").read_bytes())))
    piped = evaluate(rjem, "-")
    assert piped["protocol"]["reference"]["name"] == "digits:train"  # what __meta.json__ names
    assert piped["protocol"]["samples"]["selection"] == "none"
    from_folder = evaluate(rjem, tmp_path / "folder", "--save", tmp_path / "out")
    assert from_folder["fd_judge"] == piped["fd_judge"] and from_folder["class_agreement_judge"] > 0
    assert json.loads((tmp_path / "out" / "eval.json").read_text()) == from_folder
    for name in ("nearest.png", "classes.png"):
        with Image.open(tmp_path / "out" / name) as picture:
            assert picture.width > 200
    again = rjem("eval", tmp_path / "folder", "--save", tmp_path / "out")
    assert again.code == 2 and "--overwrite" in again.error_line()


def test_user_images_as_reference_and_the_model_under_test_is_refused_as_a_judge(rjem, quick_judge, tmp_path):
    write(tree(per_class=150), tmp_path / "real")
    flags = "--preset quickstart --steps 2 --pgd-steps 1 --sgld-steps 1 --sample-steps 1 --eval-limit 9 -q".split()
    assert rjem("train", "--data", tmp_path / "real", "--run", "own", *flags).code == 0
    assert rjem("generate", "own", "-n", 140, "-o", tmp_path / "s").code == 0
    found = evaluate(rjem, tmp_path / "s", "--features", "judge")
    assert found["protocol"]["reference"]["name"] == f"{tmp_path / 'real'}:train"
    assert found["protocol"]["reference"]["count"] == 240  # the part that is no test image
    checkpoint = next((tmp_path / "rjem-home" / "runs" / "own" / "checkpoints").glob("*0002.safetensors"))
    refused = rjem("eval", tmp_path / "s", "--features", checkpoint)
    assert refused.code == 2 and "from the run that made these samples" in refused.error_line()
    others = rjem("eval", tmp_path / "real", "--reference", tmp_path / "real", "--features", checkpoint, "--json")
    assert json.loads(others.out)["fd_judge"] == pytest.approx(0, abs=1e-4)


def test_requirements_decide_the_exit_code(rjem, digits_judge, digit_samples):
    flags = (digit_samples, "--reference", "digits", "--metrics", "fid,memorization")
    assert rjem("eval", *flags, "--require", "fd_judge<1000, exact_copies>=1").code == 0
    missed = rjem("eval", *flags, "--require", "fd_judge<=0.000001,exact_copies<1", "--json")
    assert missed.code == 4 and json.loads(missed.out)["require"] == {"fd_judge<=1e-06": False, "exact_copies<1": False}
    assert "fd_judge<=1e-06 is not met" in missed.error_line() and "exact_copies<1" in missed.error_line()
    for bad, message in {
        "fid<=45": "'fid' will not be computed; with these features it is fd_judge",
        "fd_judge=3": "'fid<=45'",
        "fd_judge<nan": "a number",
        "recall_judge>0.1": "will not be computed",
    }.items():
        outcome = rjem("eval", *flags, "--require", bad)
        assert outcome.code == 2 and message in outcome.error_line()


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (
            ["--num", "100", "--metrics", "fid"],
            1,
            "fid: 100 samples are too few for 128 features",
        ),
        (["--metrics", "fid", "--num", "100"], 1, "use 129 or more, or add --allow-few"),
        (["--num", "601"], 1, "has 600 images, fewer than --num 601"),
        (["--metrics", "is", "--num", "15"], 1, "too few for 10 splits"),
        (["--metrics", "precision_recall", "--num", "3"], 1, "3 images are too few"),
        (["--metrics", "fidd"], 2, "did you mean fid"),
        (["--features", "incepton"], 2, "did you mean inception"),
        (["--features", "weights.pth"], 3, "no such file"),
        (["--features", "/nowhere/weights.pth"], 3, "no such file"),
        (
            ["--features", "inception", "--allow-few"],
            3,
            "RJEM_OFFLINE forbids the download; try again, or download https",
        ),
        (["--features", "dinov2", "--allow-few"], 3, "RJEM_OFFLINE"),
        (["--reference", "cifra10"], 2, "did you mean cifar10"),
        (["--reference", "/nowhere"], 3, "no such file or folder"),
        (["--reference", "digits:tset"], 2, "digits has no part 'tset'; choose from train, test"),
        (["--reference", "cifar10:test"], 3, "RJEM_OFFLINE forbids the download"),
        (["--reference", "shifted-digits"], 1, "8x8, but the judge takes 12x12"),
        (["--protocol", "jempp", "--reference", "digits:test"], 2, "use --reference digits"),
        (["--neighbours", "0"], 2, "1 or more"),
        (["--seed", "4294967296"], 2, "4294967296 is too large; give 4294967295 or less"),
        (["--metrics", "all,fid"], 2, "or all alone"),
    ],
)
def test_invalid_options_are_one_line_before_the_work(rjem, quick_judge, digit_samples, own_home, flags, code, message):
    outcome = rjem("eval", digit_samples, *(["--reference", "digits"] if "--reference" not in flags else []), *flags)
    assert outcome.code == code and message in outcome.error_line()
    assert not any((own_home / name).exists() for name in ("results.jsonl", "cache/features", "cache/judges"))


def test_an_empty_name_is_not_the_current_folder(rjem):
    assert rjem("eval", "").code == 2


def test_metrics_that_few_images_do_not_allow_are_left_out_with_a_note(rjem, digits_judge, digit_samples):
    """As with the quickstart's 100 samples of one class."""
    found = evaluate(rjem, digit_samples, "--reference", "digits", "--num", 100)
    assert "fd_judge" not in found and found["precision_judge"] >= 0
    assert any(note.startswith("fid (here fd_judge) is left out: 100 samples are too few") for note in found["notes"])
    with np.load(digit_samples) as arrays:
        threes = arrays["labels"] == 3
        np.savez(digit_samples.with_name("threes.npz"), arr_0=arrays["arr_0"][threes], labels=arrays["labels"][threes])
    found = evaluate(rjem, digit_samples.with_name("threes.npz"), "--reference", "digits")
    assert any(note.startswith("the samples have 1 of the reference's 10 classes") for note in found["notes"])


def test_samples_that_do_not_name_their_data_set_need_a_reference(rjem, digits_judge, digit_samples):
    outcome = rjem("eval", digit_samples)
    assert outcome.code == 1 and "does not name its data set; give one with --reference" in outcome.error_line()
    own = evaluate(rjem, "digits:test", "--metrics", "precision_recall")
    assert own["protocol"]["reference"]["name"] == "digits:train"


def test_the_training_of_a_judge_is_announced_and_only_the_judge_is_cached(rjem, quick_judge, digit_samples, own_home):
    flags = (digit_samples, "--reference", "digits", "--metrics", "precision_recall")
    assert "a judge will be trained on the reference first (WRN-10-2, 30 steps" in rjem("eval", *flags, "--dry-run").err
    first = evaluate(rjem, *flags)
    assert not (own_home / "cache" / "priors").exists()  # a plain classifier needs none
    judge = first["protocol"]["features"]["path"]
    handed_over = rjem("eval", *flags, "--features", judge, "--json")
    again = json.loads(handed_over.out)
    assert "features of 0 of" in handed_over.err and again["precision_judge"] == first["precision_judge"]
    assert again["protocol"]["features"]["test_accuracy"] == first["protocol"]["features"]["test_accuracy"]


def test_scores_of_few_images_are_labelled_and_nothing_is_nan(rjem, digits_judge, digit_samples):
    for count in (2, 7, 30):
        outcome = rjem("eval", digit_samples, "--reference", "digits", "--num", count, "--allow-few", "--json")
        assert outcome.code == 0 and "NaN" not in outcome.out
        found = json.loads(outcome.out)
        assert found["protocol"]["metrics"]["fid"]["settings"]["rank"] == "deficient"
        assert any("rank-deficient" in note for note in found["notes"])


def test_jempp_compares_with_train_and_test(rjem, digits_judge, digit_samples):
    found = evaluate(rjem, digit_samples, "--reference", "digits", "--protocol", "jempp", "--metrics", "fid")
    assert found["protocol"]["name"] == "jempp" and found["protocol"]["reference"]["count"] == 1797


def test_jempp_uses_the_test_images_that_the_model_had(rjem, quick_judge, tmp_path):
    for name, per_class in (("train", 90), ("test", 60)):
        write(tree(per_class), tmp_path / name)
    write(tree(per_class=40), tmp_path / "samples")
    meta = {"rjem": "1", "dataset": {"data": str(tmp_path / "train"), "test_data": str(tmp_path / "test")}}
    (tmp_path / "samples" / "meta.json").write_text(json.dumps(meta))
    flags = (tmp_path / "samples", "--metrics", "precision_recall")
    standard, jempp = evaluate(rjem, *flags), evaluate(rjem, *flags, "--protocol", "jempp")
    assert [found["protocol"]["reference"]["count"] for found in (standard, jempp)] == [180, 300]


def test_quiet_prints_one_number_and_a_pipe_gets_tsv(rjem, digits_judge, digit_samples):
    flags = (digit_samples, "--reference", "digits", "--metrics", "fid,precision_recall")
    quiet, table = rjem("eval", *flags, "-q"), rjem("eval", *flags)
    rows = [line.split("\t") for line in table.out.splitlines()]
    assert rows[0] == ["score", "value", "better", "how"] and [row[0] for row in rows[1:4]] == [
        "fd_judge",
        "precision_judge",
        "recall_judge",
    ]
    assert quiet.out.strip() == rows[1][1]


def test_notes_that_limit_a_score_are_printed_even_with_quiet(rjem, digits_judge, digit_samples):
    flags = (digit_samples, "--reference", "digits", "--metrics", "fid", "--num", "100", "--allow-few")
    notes = evaluate(rjem, *flags)["notes"]
    assert any("rank-deficient" in note for note in notes) and any("judge's test accuracy" in note for note in notes)
    warnings = [f"note: {note}" for note in notes]
    assert rjem("eval", *flags, "-q").err.splitlines() == warnings
    assert rjem("eval", *flags).err.splitlines()[-len(notes) :] == warnings


@pytest.mark.slow
def test_an_interrupted_training_of_the_judge_is_resumed(rjem, own_home, digit_samples, tmp_path):
    """Ctrl-C while the judge is trained: exit code 130, and the next call continues from its checkpoint."""
    command = [sys.executable, "-m", "rjem_cli", "eval", str(digit_samples), "--reference", "digits"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ})
    assert process.stderr is not None
    for line in process.stderr:
        if "training the judge" in line:
            break
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    stderr = process.stderr.read()
    assert process.wait() == 130 and "run the same command again" in stderr and "Traceback" not in stderr
    steps = [
        path.name for path in (own_home / "cache" / "judges").rglob("step-*0*.safetensors") if "state" not in path.name
    ]
    assert max(steps) > "step-00000000.safetensors"
    again = subprocess.run(command, capture_output=True, text=True, env={**os.environ})
    start = next(line for line in again.stderr.splitlines() if line.startswith("training the judge"))
    assert int(start.split()[3]) > 1 and again.returncode == 0


def test_the_test_split_can_be_scored_as_samples(rjem, digits_judge):
    floor, ceiling = (
        evaluate(rjem, name, "--reference", "digits", "--metrics", "fid,memorization")
        for name in ("digits:test", "digits:train")
    )
    assert 0 <= ceiling["fd_judge"] < 1e-3 < floor["fd_judge"] and ceiling["exact_copies"] == 1438
    assert floor["near_copies_judge"] < 0.1 and floor["protocol"]["samples"]["from"] == "digits:test"


def test_a_subset_of_samples_has_all_classes(rjem, quick_judge, tmp_path):
    write(tree(per_class=150), tmp_path / "real")
    flags = ("--reference", tmp_path / "real", "--num", 140, "--metrics", "intra_fid", "--allow-few")
    found = evaluate(rjem, tmp_path / "real", *flags)
    assert found["protocol"]["samples"]["count"] == 140 and found["protocol"]["samples"]["of"] == 300
    assert found["per_class"]["fd_judge"].keys() == {"cat", "dog"}


def test_intra_fid_is_the_mean_over_classes(rjem, digits_judge, digit_samples):
    found = evaluate(rjem, digit_samples, "--reference", "digits", "--metrics", "intra_fid", "--allow-few")
    distances = found["per_class"]["fd_judge"]
    assert found["intra_fd_judge"] == pytest.approx(sum(distances.values()) / 10)
    assert found["protocol"]["metrics"]["intra_fid"]["settings"] == {"classes": "10 of 10", "rank": "deficient"}
    refused = rjem("eval", digit_samples, "--reference", "digits", "--metrics", "intra_fid")
    assert refused.code == 1 and "129 are needed" in refused.error_line()


def test_an_unwritable_result_is_an_error_before_the_work(rjem, quick_judge, digit_samples, tmp_path, own_home):
    flags = (digit_samples, "--reference", "digits")
    for results in (tmp_path, tmp_path / "digits.npz" / "x"):
        outcome = rjem("eval", *flags, "--results", results)
        assert outcome.code == 1 and str(tmp_path) in outcome.error_line()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    assert "holds other files" in rjem("eval", *flags, "--save", tmp_path / "notes", "--overwrite").error_line()
    assert not (own_home / "cache" / "judges").exists() and (tmp_path / "notes" / "mine.txt").exists()


@pytest.mark.parametrize("meta", [{"dataset": "digits"}, {"dataset": {"name": 3}}, {"selection": {}}])
def test_invalid_meta_is_one_line(rjem, digits_judge, digit_samples, tmp_path, meta):
    with np.load(digit_samples) as arrays:
        np.savez(tmp_path / "x.npz", arr_0=arrays["arr_0"], meta=np.array(json.dumps({"rjem": "1", **meta})))
    outcome = rjem("eval", tmp_path / "x.npz", "--metrics", "fid")
    assert outcome.code in (1, 3) and outcome.error_line()  # cifar10, or what the meta names, is not there
    assert rjem("eval", tmp_path / "x.npz", "--metrics", "fid", "--reference", "digits").code == 0


def test_tiles_change_nothing(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    generated, real = torch.randn(70, 6, generator=generator), torch.randn(90, 6, generator=generator)
    whole = (distances.find_neighbours(generated, real, 3), distances.precision_recall(generated, real, 3))
    monkeypatch.setattr(distances, "TILE", 32)
    monkeypatch.setattr(distances, "LARGEST_FULL", 50)
    parts = (distances.find_neighbours(generated, real, 3), distances.precision_recall(generated, real, 3))
    assert parts[1] == pytest.approx(whole[1])
    for one, other in zip(parts[0], whole[0]):
        assert torch.allclose(torch.as_tensor(one), torch.as_tensor(other))
