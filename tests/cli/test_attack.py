"""`rjem attack`: the report with its protocol, the saved images, targets, AutoAttack, and errors."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from rjem_cli.engine.attacks.attack_report import folder_name
from rjem_cli.engine.data.images import to_model
from rjem_cli.engine.models.checkpoint import load_checkpoint
from rjem_cli.files import locked


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "images.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_report_has_the_protocol_that_its_scores_depend_on(rjem, trained):
    outcome = rjem("attack", "--eps", "8/255,0.2", "--restarts", 2, "--steps", 3, "--limit", 50, "--json")
    assert outcome.code == 0, outcome.err
    report = json.loads(outcome.out)
    assert "0.0627451 = 8/255" in outcome.err and "0.2 = 25.5/255" in outcome.err
    protocol = report["protocol"]
    assert (protocol["images"], protocol["data"]) == (50, "digits:test") and len(set(protocol["indices"])) == 50
    assert protocol["attack"]["restarts"] == 2 and len(protocol["checkpoint"]["sha256"]) == 64
    clean = report["clean"]["accuracy"]
    assert clean["of"] == 50 and clean["interval_95"][0] <= clean["value"] <= clean["interval_95"][1]
    first, second = report["results"]
    assert first["eps"] == pytest.approx(16 / 255) and first["eps_pixel_units"] == pytest.approx(8 / 255)
    assert clean["value"] >= first["robust_accuracy"]["value"] >= second["robust_accuracy"]["value"]
    assert sum(share["of"] for share in second["per_class"].values()) == 50
    again = json.loads(rjem("attack", "--eps", "8/255,0.2", "--restarts", 2, "--steps", 3, "--limit", 50, "--json").out)
    assert again["results"] == report["results"]


def test_the_default_is_the_radius_of_training_on_the_test_images(rjem, trained):
    outcome = rjem("attack", "--steps", 2)
    assert outcome.code == 0, outcome.err
    assert "eps 0.1 = 12.75/255" in outcome.err and "digits:test" in outcome.err
    lines = outcome.out.splitlines()
    assert (
        lines[0].split("\t")[:2] == ["eps", "robust accuracy"]
        and lines[1].startswith("0\t")
        and lines[2].startswith("0.1 =")
    )
    assert rjem("attack", "--steps", 2, "-q").out.strip() == f"{float(lines[2].split()[3].rstrip('%')) / 100:.4f}"


def test_eps_space_pixel_reads_radii_in_pixel_units(rjem, trained):
    outcome = rjem("attack", "--eps", "0.1,8/255", "--eps-space", "pixel", "--dry-run")
    assert "eps 0.0627451 = 8/255; 0.2 = 25.5/255" in outcome.err


def predictions(checkpoint: str, files: list[Path]) -> list[int]:
    model = load_checkpoint(Path(checkpoint), torch.device("cpu")).model
    pixels = torch.stack([torch.from_numpy(np.array(Image.open(file)))[None] for file in files])
    with torch.no_grad():
        return model(to_model(pixels)).argmax(dim=1).tolist()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_scores_of_saved_images_are_those_of_their_files(rjem, trained, tmp_path, norm):
    out = tmp_path / "attacked"
    flags = ("--eps", "0.101,0.3", "--norm", norm, "--steps", 3, "--limit", 30, "--save", out)
    outcome = rjem("attack", *flags, "--json")
    assert outcome.code == 0, outcome.err
    report = json.loads(outcome.out)
    assert json.loads((out / "attack.json").read_text())["results"] == report["results"]
    with Image.open(out / "curve.png") as figure:
        assert figure.width > 400
    for result in report["results"]:
        folder, files = Path(result["files"]["folder"]), result["files"]
        rows = rows_of(folder)
        assert (folder / "examples.png").exists() == (result["success"]["count"] > 0)
        assert [int(row["index"]) for row in rows] == report["protocol"]["indices"]
        assert max(float(row["distance"]) for row in rows) == pytest.approx(files["largest_distance"], abs=1e-5)
        assert sum(int(row["success"]) for row in rows) == files["success"]["count"]
        clean = {int(row["index"]): int(row["predicted_clean"]) == int(row["label"]) for row in rows}
        predicted = predictions(trained["checkpoint"], [folder / row["file"] for row in rows])
        correct = sum(label == int(row["label"]) for label, row in zip(predicted, rows))
        assert files["robust_accuracy"]["count"] == correct and files["success"]["of"] == sum(clean.values())
        far = [clean[int(row["index"])] and float(row["distance"]) > result["eps"] + 1e-6 for row in rows]
        assert files["over_eps"] == sum(far)
        if norm == "linf":  # rounding moves a pixel by half a level at most
            assert files["largest_distance"] <= result["eps"] + 0.5 / 127.5 + 1e-6
        for row in rows:
            with Image.open(folder / row["file"]) as image:
                assert np.asarray(image).shape == (8, 8)
    again = rjem("attack", *flags)
    assert again.code == 2 and "add --overwrite" in again.error_line()
    assert rjem("attack", *flags, "--overwrite").code == 0
    (out / "notes.txt").write_text("mine")
    assert "notes.txt" in rjem("attack", *flags, "--overwrite").error_line() and (out / "notes.txt").exists()


def test_an_unfinished_report_is_replaced_and_a_dry_run_writes_nothing(rjem, trained, tmp_path):
    out = tmp_path / "attacked"
    flags = ("attack", "--steps", 1, "--limit", 10, "--save", out)
    assert rjem(*flags, "--dry-run").code == 0 and not out.exists()
    assert rjem(*flags).code == 0
    document = json.loads((out / "attack.json").read_text())
    (out / "attack.json").write_text(
        json.dumps({**document, "complete": False, "results": []})
    )  # as an interrupt leaves it
    assert rjem(*flags).code == 0
    assert json.loads((out / "attack.json").read_text())["complete"] is True
    assert rjem(*flags, "--overwrite", "--dry-run").code == 0 and (out / "curve.png").exists()


def test_two_attacks_cannot_share_a_folder_and_links_are_not_followed(rjem, trained, tmp_path):
    flags = ("attack", "--steps", 1, "--limit", 5, "--eps", "0.1", "--save")
    with locked(tmp_path / "locked" / "attack.json", wait=False):
        assert "is in use by another process" in rjem(*flags, tmp_path / "locked").error_line()
    (tmp_path / "photos").mkdir()
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "eps-0.1").symlink_to(tmp_path / "photos")
    refused = rjem(*flags, tmp_path / "linked")
    assert refused.code == 2 and "holds other files, such as eps-0.1" in refused.error_line()
    assert not list((tmp_path / "photos").iterdir())


def test_radii_that_are_nearly_equal_have_separate_folders(rjem, trained, tmp_path):
    flags = ("--eps", "8/255,0.0627450980392157", "--steps", 1, "--limit", 5)
    assert rjem("attack", *flags, "--save", tmp_path / "out").code == 0
    assert len(list((tmp_path / "out").glob("eps-*"))) == 2


def test_any_name_of_a_data_folder_can_be_the_title_of_the_figure(rjem, trained, tmp_path):
    assert rjem("generate", "-n", 20, "-o", tmp_path / "samples").code == 0
    images = tmp_path / "ma$\\foo$th" / "3"
    images.mkdir(parents=True)
    (tmp_path / "samples" / "000003.png").rename(images / "a.png")
    flags = ("--data", images.parent, "--split", "all", "--steps", 1, "--save", tmp_path / "out")
    outcome = rjem("attack", *flags)
    assert outcome.code == 0, outcome.err
    assert (tmp_path / "out" / "curve.png").exists()


def test_targeted_attacks_report_success_instead_of_robust_accuracy(rjem, trained, tmp_path):
    one = json.loads(rjem("attack", "--target", "3", "--eps", 1, "--limit", 40, "--json").out)
    assert set(one["protocol"]["targets"]) == {3} and "robust_accuracy" not in one["results"][0]
    every = json.loads(
        rjem("attack", "--targeted", "random", "--eps", 1, "--limit", 40, "--loss", "margin", "--json").out
    )
    assert len(set(every["protocol"]["targets"])) > 3
    wanted = [(index * 7) % 10 for index in range(one["protocol"]["of"])]
    (tmp_path / "wanted.txt").write_text("\n".join(map(str, wanted)))
    each = json.loads(rjem("attack", "--target", tmp_path / "wanted.txt", "--eps", 1, "--limit", 40, "--json").out)
    assert each["protocol"]["targets"] == [wanted[index] for index in each["protocol"]["indices"]]
    for lines, message in (
        ("3\n4\n", "has 2 lines, but digits:test has 359 images"),
        ("3\ncat\n", "line 2 'cat' is unknown"),
    ):
        (tmp_path / "wanted.txt").write_text(lines)
        outcome = rjem("attack", "--target", tmp_path / "wanted.txt")
        assert outcome.code == 2 and message in outcome.error_line()
    table = rjem("attack", "--target", "3", "--eps", 1, "--limit", 40)
    assert table.code == 0 and table.out.startswith("eps\tsuccess") and "images attacked" in table.err


def test_images_of_the_same_classes_can_be_given_in_a_folder(rjem, trained, tmp_path):
    assert rjem("generate", "-n", 30, "--class", "3,4", "-o", tmp_path / "samples").code == 0
    for name, kind in (("3", 3), ("4", 4)):
        (tmp_path / "own" / name).mkdir(parents=True)
        for index in range(0 if kind == 3 else 1, 30, 2):
            (tmp_path / "samples" / f"{index:06d}.png").rename(tmp_path / "own" / name / f"{index}.png")
    outcome = rjem("attack", "--data", tmp_path / "own", "--split", "all", "--steps", 1, "--json")
    assert outcome.code == 0, outcome.err
    report = json.loads(outcome.out)
    assert report["protocol"]["data"] == "own:all" and set(report["clean"]["per_class"]) == {"3", "4"}
    (tmp_path / "own" / "3").rename(tmp_path / "own" / "three")
    unknown = rjem("attack", "--data", tmp_path / "own", "--split", "all")
    assert unknown.code == 1 and "class 'three' of own:all is unknown to the checkpoint" in unknown.error_line()


def test_autoattack_end_to_end(rjem, trained):
    outcome = rjem("attack", "--standard", "--eps", 2, "--limit", 6, "--json")
    assert outcome.code == 0, outcome.err
    report = json.loads(outcome.out)
    assert report["protocol"]["attack"]["method"] == "AutoAttack, standard version"
    assert "gradient" in outcome.err and "forward passes" in outcome.err
    assert report["results"][0]["robust_accuracy"]["count"] == 0


def test_invalid_input_gives_one_error_line_and_an_exit_code(rjem, trained, tmp_path):
    (tmp_path / "file").write_text("")
    for arguments, code, message in (
        (["--eps", "8/0"], 2, "--eps '8/0': give a number such as 0.1"),
        (["--eps", "0.1,,0.2"], 2, "--eps '0.1,,0.2': give a number"),
        (["--eps", ""], 2, "--eps ''"),
        (["--eps", "-0.1"], 2, "--eps -0.1 is too small"),
        (["--eps", "8"], 2, "--eps 8 covers the whole box [-1, 1]; give at most 255/255"),
        (["--eps", "0.01,8", "--eps-space", "pixel"], 2, "--eps 8 covers the whole box [-1, 1]; give at most 255/255"),
        (["--eps", "nan"], 2, "--eps nan: give a finite number"),
        (["--target", "cot"], 2, "--target 'cot' is unknown to this checkpoint"),
        (["--target", "3", "--targeted", "random"], 2, "exclude each other"),
        (["--method", "pdg"], 2, "did you mean pgd"),
        (["--norm", "l1"], 2, "--norm 'l1' is unknown"),
        (["--limit", "-1"], 2, "--limit -1 is too small"),
        (["--standard", "--target", "3"], 2, "--standard fixes its own attacks; remove --target"),
        (["--standard", "--restarts", "5"], 2, "--standard fixes its own attacks; remove --restarts"),
        (["--method", "apgd", "--step-size", "0.1"], 2, "--method apgd adapts its steps; remove --step-size"),
        (["--dataset", "digits", "--data", tmp_path], 2, "--dataset and --data exclude each other"),
        (["--norm", "l2"], 2, "--norm l2 needs --eps: the checkpoint was trained with linf radii"),
        (["--dataset", "shifted-digits"], 1, "images of shifted-digits:test are (1, 12, 12) (C, H, W)"),
        (["--dataset", "cifar10"], 3, "RJEM_OFFLINE"),
        (["--data", tmp_path / "nowhere"], 3, "does not exist"),
        (["--test-data", tmp_path], 2, "--test-data needs --data"),
        (["--save", tmp_path / "file"], 2, "is a file; give a folder"),
        (["--save", "/proc/nowhere"], 1, "cannot create folder"),
        (["tinny"], 3, "did you mean tiny"),
    ):
        outcome = rjem("attack", *arguments)
        assert outcome.code == code, (arguments, outcome)
        assert message in outcome.error_line()


@given(st.floats(0.0, 64.0), st.floats(0.0, 64.0))
def test_no_two_radii_share_a_folder(one, other):
    assert (folder_name(one, "linf") == folder_name(other, "linf")) == (one == other)
    assert folder_name(16 / 255, "linf") == "eps-8of255" and folder_name(16 / 255, "l2") == f"eps-{16 / 255!r}"


@pytest.mark.parametrize("command", ["attack", "generate", "langevin", "eval", "compare"])
def test_a_network_of_another_project_is_told_how_to_come_in(rjem, tmp_path, command):
    (tmp_path / "resnet.pt").write_bytes(b"PK")
    outcome = rjem(command, tmp_path / "resnet.pt")
    assert outcome.code == 2 and "resnet.pt is not a checkpoint of rjem" in outcome.error_line()
    assert "--model module:function" in outcome.error_line()
