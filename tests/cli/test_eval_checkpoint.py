from __future__ import annotations

import json

import pytest
from PIL import Image

from tests.image_files import png, write

FLAGS = ("--limit", "60", "--samples", "20", "--steps", "3")


def test_a_run_is_scored_with_its_protocol_and_pictures(rjem, trained, own_home, tmp_path):
    outcome = rjem("eval", "tiny", *FLAGS, "--eps", "0.1,0.3", "--save", tmp_path / "out", "--json")
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    assert found["kind"] == "checkpoint" and found["protocol"]["images"] == 60
    assert 0 <= found["robust_accuracy_0.3"] <= found["robust_accuracy_0.1"] <= found["accuracy"] <= 1
    assert found["per_class"].keys() == set("0123456789")
    assert sum(each["images"] for each in found["reliability"]) == 60 and 0 <= found["ece"] <= 1
    for kind in ("noise", "constant", "shuffled", "interpolations"):
        assert all(0 <= found[f"auroc_{kind}_{score}"] <= 1 for score in ("log_p", "max_p", "gradient"))
    assert list(found["energies"])[:3] == ["test images", "attacked, eps up to 0.3", "samples"]
    assert found["energies"]["samples"]["count"] == 20
    assert len(found["protocol"]["indices"]) == 60 and found["protocol"]["samples"]["count"] == 20
    assert json.loads((own_home / "results.jsonl").read_text()) == found
    assert json.loads((tmp_path / "out" / "eval.json").read_text()) == found
    for name in ("energies.png", "reliability.png"):
        with Image.open(tmp_path / "out" / name) as picture:
            assert picture.width > 300


def test_scores_agree_with_rjem_attack(rjem, trained, own_home):
    scores = json.loads(
        rjem("eval", "tiny", "--limit", 0, "--eps", "0.1", "--samples", 0, "--ood", "noise", "--json").out
    )
    attack = json.loads(rjem("attack", "tiny", "--limit", 0, "--eps", "0.1", "--seed", 2020, "--json").out)
    assert scores["accuracy"] == pytest.approx(attack["clean"]["accuracy"]["value"])
    assert scores["robust_accuracy_0.1"] == pytest.approx(attack["results"][0]["robust_accuracy"]["value"])
    assert "samples" not in scores["energies"] and scores["protocol"]["samples"] is None


def test_a_table_for_people_and_requirements_for_scripts(rjem, trained):
    table = rjem("eval", trained["checkpoint"], *FLAGS)
    rows = [line.split("\t") for line in table.out.splitlines()]
    assert ["score", "value", "95% interval", "how"] in rows and any(row[0] == "ece" for row in rows)
    assert any(row[0].startswith("interpolations (60)") for row in rows)
    quiet = rjem("eval", "tiny", *FLAGS, "-q", "--require", "accuracy>=0,auroc_noise_log_p<=1,robust_accuracy_0.1>=0")
    assert quiet.code == 0 and 0 <= float(quiet.out) <= 1
    assert rjem("eval", "tiny", *FLAGS, "--require", "accuracy>1").code == 4


def test_ood_images_can_be_given_by_path(rjem, trained, tmp_path):
    write({f"{i}.png": png(8 * i, size=(9, 7)) for i in range(30)}, tmp_path / "textures")
    outcome = rjem("eval", "tiny", *FLAGS, "--ood", f"noise,{tmp_path / 'textures'}", "--json")
    assert f"read {tmp_path / 'textures'}: 30 images" in outcome.err
    found = json.loads(outcome.out)
    assert found["protocol"]["ood"]["sets"] == {"noise": 60, "textures": 30}
    assert 0 <= found["auroc_textures_log_p"] <= 1
    (tmp_path / "textures").rename(tmp_path / "my-textures")
    flags = ("--ood", f"{tmp_path / 'my-textures'}", "--require", "auroc_my-textures_log_p>=0")
    assert rjem("eval", "tiny", *FLAGS, *flags).code == 0
    for name in ("samples", "noise"):
        (tmp_path / "my-textures").rename(tmp_path / name)
        refused = rjem("eval", "tiny", *FLAGS, "--ood", f"constant,{tmp_path / name}")
        assert refused.code == 2 and f"another set is named {name}" in refused.error_line()
        (tmp_path / name).rename(tmp_path / "my-textures")
    alone = json.loads(rjem("eval", "tiny", *FLAGS, "--ood", "none", "--json").out)
    assert not [name for name in alone if name.startswith("auroc")] and len(alone["energies"]) == 3


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["tinny"], 3, "did you mean tiny"),
        (["tiny", "--metrics", "fid"], 2, "--metrics applies to samples only, but tiny is a checkpoint"),
        (["digits:test", "--ood", "noise"], 2, "--ood applies to checkpoints only, but digits:test holds samples"),
        (["tiny", "--ood", "noise,"], 2, "has an empty name"),
        (["tiny", "--ood", "nois"], 2, "did you mean noise"),
        (["tiny", "--ood", "svhn"], 3, "RJEM_OFFLINE"),
        (["tiny", "--require", "fid<3"], 2, "'fid' will not be computed"),
        (["tiny", "--eps", "8"], 2, "such as 8/255"),
        (["tiny", "--bins", "0"], 2, "1 or more"),
    ],
)
def test_invalid_options_are_one_line(rjem, trained, arguments, code, message):
    outcome = rjem("eval", *arguments)
    assert outcome.code == code and message in outcome.error_line()


def test_scores_are_shown_even_if_they_cannot_be_written(rjem, trained):
    outcome = rjem("eval", "tiny", *FLAGS, "--results", "/dev/full")
    assert outcome.code == 1 and "/dev/full" in outcome.error_line() and "accuracy\t" in outcome.out


def test_a_name_of_both_a_run_and_a_folder_is_refused(rjem, trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()
    outcome = rjem("eval", "tiny", *FLAGS)
    assert outcome.code == 2 and "give ./tiny" in outcome.error_line()
    assert "holds no images" in rjem("eval", "./tiny").error_line()


def test_training_images_that_moved_can_be_named(rjem, tmp_path):
    from tests.image_files import tree

    write(tree(per_class=20), tmp_path / "photos")
    flags = "--steps 2 --warmup-steps 1 --pgd-steps 1 --sgld-steps 1 --sample-steps 1 --eval-limit 9 --crop-pad 0 -q"
    assert rjem("train", "--data", tmp_path / "photos", "--run", "own", *flags.split()).code == 0
    (tmp_path / "photos").rename(tmp_path / "moved")
    gone = rjem("eval", "own", *FLAGS)
    assert gone.code == 3 and "give --data or --dataset" in gone.error_line()
    found = rjem("eval", "own", *FLAGS, "--data", tmp_path / "moved", "--json")
    assert found.code == 0 and json.loads(found.out)["energies"]["samples"]["count"] == 20
