import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image


def images(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("0*.png"))}


@pytest.mark.parametrize("mode", ["energy", "attack", "combined"])
def test_a_folder_of_samples(rjem, trained, tmp_path, mode):
    out = tmp_path / "out"
    outcome = rjem("generate", "--mode", mode, "--class", "3,7", "-n", 5, "--seed", 40, "-o", out)
    assert outcome.code == 0, outcome.err
    assert outcome.out == f"{out}\n"
    with (out / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == ["3", "7", "3", "7", "3"]
    assert [row["seed"] for row in rows] == ["40", "41", "42", "43", "44"]
    for row in rows:
        with Image.open(out / row["file"]) as image:
            assert (image.size, image.mode) == ((8, 8), "L")
    meta = json.loads((out / "meta.json").read_text())
    assert meta["plan"]["mode"] == mode and meta["count"] == 5 and meta["dataset"]["name"] == "digits"
    assert meta["gradient_steps_per_sample"] == {"energy": 2, "attack": 2, "combined": 4}[mode]
    with Image.open(out / "grid.png") as grid:
        assert grid.width > 5 * 8 * 2


def test_sample_i_depends_on_seed_plus_i_only(rjem, trained, tmp_path):
    def run(name, *flags):
        assert rjem("generate", "-o", tmp_path / name, *flags).code == 0
        return images(tmp_path / name)

    whole = run("whole", "-n", 10, "--batch-size", 10, "--class", "4")
    split = run("split", "-n", 10, "--batch-size", 3, "--class", "4")
    shifted = run("shifted", "-n", 4, "--seed", 6, "--class", "4")
    assert whole.keys() == split.keys()
    for name in whole:
        difference = np.asarray(Image.open(tmp_path / "whole" / name), int) - np.asarray(
            Image.open(tmp_path / "split" / name), int
        )
        assert np.abs(difference).max() <= 1
    for index, name in enumerate(shifted):
        first, second = (tmp_path / "whole" / f"{index + 6:06d}.png", tmp_path / "shifted" / name)
        difference = np.asarray(Image.open(first), int) - np.asarray(Image.open(second), int)
        assert np.abs(difference).max() <= 1


def test_earlier_samples_are_replaced_only_when_asked_and_foreign_files_never(rjem, trained, tmp_path):
    out = tmp_path / "out"
    assert rjem("generate", "-n", 4, "-o", out).code == 0
    again = rjem("generate", "-n", 2, "-o", out)
    assert again.code == 2 and "add --overwrite" in again.error_line() and len(images(out)) == 4
    assert rjem("generate", "-n", 2, "-o", out, "--overwrite").code == 0
    assert len(images(out)) == 2
    (out / "thesis.txt").write_text("mine")
    refused = rjem("generate", "-n", 2, "-o", out, "--overwrite")
    assert refused.code == 2 and "thesis.txt" in refused.error_line() and (out / "thesis.txt").exists()


def test_a_run_by_name_folder_or_file_and_the_newest_by_default(rjem, trained, own_home):
    for named in ([], ["tiny"], [own_home / "runs/tiny"], [trained["checkpoint"]]):
        outcome = rjem("generate", *named, "--dry-run")
        assert outcome.code == 0 and trained["checkpoint"] in outcome.err


def test_the_prior_is_fitted_again_when_the_cache_is_gone(rjem, trained, own_home, tmp_path):
    assert rjem("generate", "-n", 2, "-o", tmp_path / "a").code == 0
    for entry in (own_home / "priors").glob("*.safetensors"):
        entry.unlink()
    assert rjem("generate", "-n", 2, "-o", tmp_path / "b").code == 0
    assert images(tmp_path / "a") == images(tmp_path / "b")


def test_json_is_one_document(rjem, trained, tmp_path):
    outcome = rjem("generate", "-n", 1, "-o", tmp_path / "out", "--json")
    assert json.loads(outcome.out)["output"] == str(tmp_path / "out")


def test_no_checkpoint_yet(rjem):
    outcome = rjem("generate")
    assert outcome.code == 3 and "no checkpoint yet" in outcome.error_line() and "rjem train" in outcome.err


def test_bad_input_gives_one_line_and_its_exit_code(rjem, trained, tmp_path):
    pickle = tmp_path / "model.pt"
    torch.save({"a": 1}, pickle)
    (tmp_path / "text.safetensors").write_text("no checkpoint at all")
    (tmp_path / "file").write_text("")
    for arguments, code, message in (
        (["--class", "cot"], 2, "--class 'cot' is unknown to this checkpoint"),
        (["--class", "10"], 2, "--class '10' is unknown"),
        (["--mode", "atack"], 2, "did you mean attack"),
        (["-n", "0"], 2, "--count 0 is too small"),
        (["--contrast", "2"], 2, "--contrast 2 is too large"),
        (["tinny"], 3, "did you mean tiny"),
        ([pickle], 1, "rjem never loads those"),
        ([tmp_path / "text.safetensors"], 1, "is not a whole safetensors file"),
        (["-o", "samples.tar"], 2, "give a folder"),
        (["--eps-space", "byte"], 2, "--eps-space 'byte' is unknown"),
        (["-o", tmp_path / "file"], 2, "is a file; give a folder"),
        (["-o", tmp_path / "file" / "below"], 1, "cannot create folder"),
        (["-o", "/proc/nowhere"], 1, "cannot create folder"),
    ):
        outcome = rjem("generate", *arguments)
        assert outcome.code == code, (arguments, outcome)
        assert message in outcome.error_line()
