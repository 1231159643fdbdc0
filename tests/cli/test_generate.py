import csv
import io
import itertools
import json
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rjem_cli.engine.data.digits import load_digit_splits
from rjem_cli.engine.sampling import job as sampling
from rjem_cli.errors import RjemError
from rjem_cli.files import locked


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

    whole = run("whole", "-n", 64, "--class", "4")
    for batch_size in (64, 16, 7):
        assert run(f"batch-{batch_size}", "-n", 64, "--batch-size", batch_size, "--class", "4") == whole
    shards = [run(f"shard-{index}", "-n", 64, "--shard", f"{index}/4", "--class", "4") for index in range(4)]
    assert {name: content for shard in shards for name, content in shard.items()} == whole
    shifted = run("shifted", "-n", 4, "--seed", 6, "--class", "4")
    assert list(shifted.values()) == list(whole.values())[6:10]


def test_earlier_samples_are_replaced_only_when_asked_and_foreign_files_never(rjem, trained, tmp_path):
    out = tmp_path / "out"
    assert rjem("generate", "-n", 4, "-o", out).code == 0
    for flags, message in ((["-n", 2], "holds more samples than -n 2"), (["--seed", 7], "samples of another call")):
        again = rjem("generate", "-o", out, *flags)
        assert again.code == 2 and message in again.error_line() and "add --overwrite" in again.err
        assert len(images(out)) == 4
    assert rjem("generate", "-n", 2, "-o", out, "--overwrite").code == 0
    assert len(images(out)) == 2
    (out / "thesis.txt").write_text("mine")
    refused = rjem("generate", "-n", 2, "-o", out, "--overwrite")
    assert refused.code == 2 and "thesis.txt" in refused.error_line() and (out / "thesis.txt").exists()


def read(output: Path) -> tuple[np.ndarray, list[int]]:
    """(pixels (N, H, W), labels) of a folder, a .npz or a .tar."""
    if output.suffix == ".npz":
        with np.load(output) as archive:
            assert json.loads(archive["meta"].item())["samples"] == [0, len(archive["arr_0"])]
            return archive["arr_0"][..., 0], archive["labels"].tolist()
    if output.suffix == ".tar":
        with tarfile.open(output) as tar:
            contents = {member.name: tar.extractfile(member).read() for member in tar}
        assert "request" in json.loads(contents.pop("__meta.json__"))
        pngs = [Image.open(io.BytesIO(content)) for name, content in contents.items() if name.endswith(".png")]
        return np.stack([np.asarray(png) for png in pngs]), [
            int(content) for name, content in contents.items() if name.endswith(".cls")
        ]
    with (output / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return np.stack([np.asarray(Image.open(output / row["file"])) for row in rows]), [int(r["label"]) for r in rows]


FORMS = ["out", "out.npz", "out.tar"]


@pytest.mark.parametrize("form", FORMS[1:])
def test_archives_hold_what_the_folder_holds(rjem, trained, tmp_path, form):
    for output in ("out", form):
        assert rjem("generate", "-n", 23, "-o", tmp_path / output).code == 0
    (pixels, labels), (expected, expected_labels) = read(tmp_path / form), read(tmp_path / "out")
    assert np.array_equal(pixels, expected) and labels == expected_labels == [index % 10 for index in range(23)]
    assert not list(tmp_path.glob("*.part")) and not list(tmp_path.glob("*.new"))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("damage", [0, 1, 700])
def test_an_interrupted_call_goes_on_and_ends_with_the_same_bytes(rjem, trained, tmp_path, monkeypatch, form, damage):
    flags = ("-n", 40, "--batch-size", 7)
    assert rjem("generate", *flags, "-o", tmp_path / f"whole-{form}").code == 0
    original, out = sampling.generate, tmp_path / form

    def dies(*args, **kwargs):
        batches = original(*args, **kwargs)
        yield from (next(batches) for _ in range(3))
        raise RjemError("the power is gone")

    with monkeypatch.context() as patch:
        patch.setattr(sampling, "generate", dies)
        assert rjem("generate", *flags, "-o", out).code == 1
    torn = {"out": out / "labels.csv"}.get(form, tmp_path / f"{form}.part")
    with torn.open("r+b") as file:  # as a kill in the middle of a write leaves it
        file.truncate(max(0, torn.stat().st_size - damage))
    again = rjem("generate", *flags, "-o", out)
    assert again.code == 0, again.err
    if damage == 0:
        assert "behind 21 that were there" in again.err
    if form == "out":
        assert images(out) == images(tmp_path / "whole-out")
        assert (out / "grid.png").read_bytes() == (tmp_path / "whole-out/grid.png").read_bytes()
        assert (out / "labels.csv").read_bytes() == (tmp_path / "whole-out/labels.csv").read_bytes()
        assert json.loads((out / "meta.json").read_text())["complete"] is True
    else:
        assert out.read_bytes() == (tmp_path / f"whole-{form}").read_bytes()


@pytest.mark.parametrize("form", FORMS)
def test_an_output_of_another_call_is_left_alone(rjem, trained, tmp_path, form):
    out = tmp_path / form
    assert rjem("generate", "-n", 4, "-o", out).code == 0
    before = read(out)[0]
    refused = rjem("generate", "-n", 4, "--seed", 9, "-o", out)
    assert refused.code == 2 and "add --overwrite" in refused.error_line()
    assert np.array_equal(read(out)[0], before)
    assert rjem("generate", "-n", 4, "--seed", 9, "-o", out, "--overwrite").code == 0
    assert not np.array_equal(read(out)[0], before)


@pytest.mark.parametrize("form", ["out.npz", "out.tar"])
@pytest.mark.parametrize("content", [b"not ours\n", bytes(5000), b"{}\n" + bytes(600), b"x" * 3_000_000])
def test_a_part_of_something_else_is_no_part_of_ours(rjem, trained, tmp_path, form, content):
    part = tmp_path / f"{form}.part"
    part.write_bytes(content)
    outcome = rjem("generate", "-n", 4, "-o", tmp_path / form)
    assert outcome.code == 2 and "was left by another call" in outcome.error_line()
    assert part.read_bytes() == content
    assert rjem("generate", "-n", 4, "-o", tmp_path / form, "--overwrite").code == 0


@pytest.mark.slow
def test_a_stream_on_stdout_is_a_tar_and_nothing_else(trained, tmp_path):
    def run(command: str):
        return subprocess.run(["bash", "-c", command], capture_output=True, timeout=120)

    rjem = f"{sys.executable} -m rjem_cli generate -n 20 -o - "
    listed = run(f"set -o pipefail; {rjem} | tar t")
    assert listed.returncode == 0, listed.stderr
    assert len(listed.stdout.splitlines()) == 1 + 2 * 20
    cut = run(f"{rjem} | head -c 1000 | wc -c")
    assert cut.stdout.strip() == b"1000" and b"Traceback" not in cut.stderr and b"Exception" not in cut.stderr
    full = run(f"{rjem} > /dev/full")
    assert full.returncode == 1 and full.stderr.splitlines()[-1].startswith(b"rjem: cannot write standard output")
    both = run(f"{rjem} --json")
    assert both.returncode == 2 and both.stderr.startswith(b"rjem: -o - and --json")


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_a_full_disk_is_one_line_and_the_call_goes_on_when_there_is_room(trained, tmp_path, form):
    def run(limit: str, count: int = 60):
        flags = f"-n {count} --batch-size 10 -o {tmp_path / form}"
        command = f"trap '' XFSZ; {limit}; {sys.executable} -m rjem_cli generate {flags}"
        return subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120)

    if form == "out":
        run("true", 10)
        (tmp_path / form / "000030.png").mkdir()  # a place that cannot be written, in the middle
        failed = run("true")
        (tmp_path / form / "000030.png").rmdir()
    else:
        failed = run("ulimit -f 3")  # kilobytes: fails in the middle, as a full disk does
    assert failed.returncode == 1, failed.stderr
    lines = [line for line in failed.stderr.splitlines() if line.startswith("rjem: ")]
    assert len(lines) == 1 and "cannot write" in lines[0] and "Traceback" not in failed.stderr
    again = run("true")
    assert again.returncode == 0, again.stderr
    assert len(read(tmp_path / form)[0]) == 60


@pytest.mark.slow
def test_a_signal_finishes_the_batch_and_the_same_call_goes_on(trained, tmp_path):
    command = [sys.executable, "-m", "rjem_cli", "generate", "-n", "4000", "--sgld-steps", "50", "--batch-size", "50"]
    process = subprocess.Popen([*command, "-o", tmp_path / "out"], stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "out" / "000049.png").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143 and "the same command goes on" in errors.splitlines()[-1]
    with (tmp_path / "out" / "labels.csv").open() as file:
        assert len(file.readlines()) - 1 == len(images(tmp_path / "out")) > 0
    assert json.loads((tmp_path / "out" / "meta.json").read_text())["complete"] is False


def test_names_that_look_like_samples_prove_nothing(rjem, trained, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "20240101.png").write_bytes(b"mine")
    for command in ("generate", "langevin"):
        for flags in ((), ("--overwrite",)):
            refused = rjem(command, "-n", 1, "-o", photos, *flags)
            assert refused.code == 2 and "give an empty folder" in refused.error_line()
    assert (photos / "20240101.png").read_bytes() == b"mine" and len(list(photos.iterdir())) == 1


@pytest.mark.parametrize("form", FORMS)
def test_two_calls_cannot_write_one_output(rjem, trained, tmp_path, form):
    target = tmp_path / form / "meta.json" if form == "out" else tmp_path / f"{form}.part"
    with locked(target, wait=False):
        refused = rjem("generate", "-n", 2, "-o", tmp_path / form)
    assert refused.code == 1 and "is in use by another process" in refused.error_line()
    assert rjem("generate", "-n", 2, "-o", tmp_path / form).code == 0
    left = [path for path in tmp_path.rglob("*.lock") if "home" not in str(path)]
    assert [path.name for path in left] == [f".{target.name}.lock"] and left[0].stat().st_size == 0  # hidden, and empty


@pytest.mark.parametrize("form", FORMS)
def test_with_overwrite_too_an_interrupted_call_goes_on(rjem, trained, tmp_path, monkeypatch, form):
    out = tmp_path / form
    assert rjem("generate", "-n", 12, "--seed", 5, "-o", out).code == 0

    def dies(*args, **kwargs):
        yield from itertools.islice(generate(*args, **kwargs), 2)
        raise RjemError("the power is gone")

    flags = ("generate", "-n", 20, "--batch-size", 5, "-o", out, "--overwrite")
    generate = sampling.generate
    with monkeypatch.context() as patch:
        patch.setattr(sampling, "generate", dies)
        assert rjem(*flags).code == 1
    again = rjem(*flags)
    assert again.code == 0 and "10 samples in" in again.err and "behind 10 that were there" in again.err
    assert len(read(out)[0]) == 20


def test_with_overwrite_fewer_samples_than_an_unfinished_call_left_are_made_anew(rjem, trained, tmp_path):
    out = tmp_path / "out"
    assert rjem("generate", "-n", 9, "-o", out).code == 0
    document = json.loads((out / "meta.json").read_text())
    (out / "meta.json").write_text(json.dumps({**document, "complete": False}))
    assert "holds more samples" in rjem("generate", "-n", 4, "-o", out).error_line()
    assert rjem("generate", "-n", 4, "-o", out, "--overwrite").code == 0 and len(images(out)) == 4


def test_changed_images_of_a_user_are_another_call(rjem, trained, tmp_path):
    for seed in (0, 7):
        start = ("generate", "-n", 2, "--sgld-steps", 0, "--seed", seed)
        assert rjem(*start, "-o", tmp_path / "own", "--overwrite").code == 0
        outcome = rjem("generate", "-n", 4, "--init", tmp_path / "own", "-o", tmp_path / "out")
        assert outcome.code == (0 if seed == 0 else 2), outcome.err
    assert "samples of another call" in outcome.error_line()


def test_the_number_of_threads_changes_no_byte(rjem, trained, tmp_path):
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            flags = ("-n", 60, "--mode", "combined", "--noise-std", 0.02, "--sgld-steps", 40)
            assert rjem("generate", *flags, "-o", tmp_path / str(threads)).code == 0
    finally:
        torch.set_num_threads(before)
    assert images(tmp_path / "1") == images(tmp_path / "2") == images(tmp_path / "3")


@pytest.mark.parametrize("init", ["noise", "data", "buffer", "own"])
def test_chains_begin_where_init_says(rjem, trained, tmp_path, init):
    assert rjem("generate", "-n", 3, "--class", "1,2", "--sgld-steps", 0, "-o", tmp_path / "own").code == 0
    start = tmp_path / "own" if init == "own" else init
    outcome = rjem("generate", "-n", 7, "--init", start, "--sgld-steps", 0, "-o", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    drawn = read(tmp_path / "out")[0]
    if init == "noise":
        assert 100 < drawn.mean() < 155 and drawn.std() > 60
    if init in ("data", "buffer"):
        assert all((image == drawn[0]).mean() < 1 for image in drawn[1:])
        images_of_class = load_digit_splits(0.1, shifted=False).train
        shown = torch.from_numpy(drawn.astype(np.uint8))[:, None]
        same = (shown[:, None] == images_of_class.pixels[None]).flatten(2).all(dim=2)
        assert same.any(dim=1).all() == (init == "data")
        if init == "data":
            found = images_of_class.labels[same.float().argmax(dim=1)]
            assert found.tolist() == read(tmp_path / "out")[1]
    if init == "own":  # grid.png is of another size; only the three samples are images of theirs
        expected = read(tmp_path / "own")[0]
        assert np.array_equal(read(tmp_path / "out")[0], expected[[0, 1, 2, 0, 1, 2, 0]])


def test_a_user_s_image_that_does_not_fit_is_named(rjem, trained, tmp_path):
    Image.new("RGB", (9, 8), "red").save(tmp_path / "large.png")
    (tmp_path / "cut.png").write_bytes(b"no image")
    for init, code, message in (
        (tmp_path / "large.png", 1, "large.png are 9x8; this checkpoint takes 8x8"),
        (tmp_path / "cut.png", 1, "cut.png is corrupt or not an image"),
        (tmp_path / "nowhere.png", 3, "nowhere.png is not there"),
        ("priro", 2, "--init 'priro' is unknown and no file; did you mean prior?"),
        ("~nosuchuser/x.png", 2, "there is no such home folder"),
    ):
        outcome = rjem("generate", "-n", 1, "--init", init, "-o", tmp_path / "out")
        assert (outcome.code, message in outcome.error_line()) == (code, True), outcome.err


def test_a_run_by_name_folder_or_file_and_the_newest_by_default(rjem, trained, own_home):
    for named in ([], ["tiny"], [own_home / "runs/tiny"], [trained["checkpoint"]]):
        outcome = rjem("generate", *named, "--dry-run")
        assert outcome.code == 0 and trained["checkpoint"] in outcome.err


def test_the_prior_is_fitted_again_when_the_cache_is_gone(rjem, trained, own_home, tmp_path):
    assert rjem("generate", "-n", 2, "-o", tmp_path / "a").code == 0
    for entry in (own_home / "cache" / "priors").glob("*.safetensors"):
        entry.unlink()
    assert rjem("generate", "-n", 2, "-o", tmp_path / "b").code == 0
    assert images(tmp_path / "a") == images(tmp_path / "b")


def test_a_home_that_cannot_be_written_needs_no_kept_prior(rjem, trained, own_home, tmp_path):
    assert rjem("generate", "-n", 2, "-o", tmp_path / "a").code == 0
    shutil.rmtree(own_home / "cache" / "priors")
    (own_home / "cache" / "priors").write_text("in the way")
    outcome = rjem("generate", "-n", 2, "-o", tmp_path / "b")
    assert outcome.code == 0, outcome.err
    assert images(tmp_path / "a") == images(tmp_path / "b")


def test_files_with_names_like_our_temporary_ones_are_left_alone(rjem, trained, tmp_path):
    (tmp_path / "out.npz.new").write_text("mine")
    assert rjem("generate", "-n", 2, "-o", tmp_path / "out.npz").code == 0
    assert (tmp_path / "out.npz.new").read_text() == "mine"
    (tmp_path / "link.npz").symlink_to(tmp_path / "nowhere")
    refused = rjem("generate", "-n", 2, "-o", tmp_path / "link.npz")
    assert refused.code == 2 and "exists already" in refused.error_line() and (tmp_path / "link.npz").is_symlink()


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
        (["-o", "samples.zip"], 2, "give a folder, a .npz, a .tar or -"),
        (["--shard", "4/4"], 2, "--shard '4/4': give i/k"),
        (["--class", "none", "--mode", "attack"], 2, "--class none has nothing to attack towards"),
        (["--eps-space", "byte"], 2, "--eps-space 'byte' is unknown"),
        (["-o", tmp_path / "file"], 2, "is a file; give a folder"),
        (["-o", tmp_path / "file" / "below"], 1, "cannot create folder"),
        (["-o", "/proc/nowhere"], 1, "cannot create folder"),
    ):
        outcome = rjem("generate", *arguments)
        assert outcome.code == code, (arguments, outcome)
        assert message in outcome.error_line()
