"""`rjem generate`: what it writes, how it resumes, and what it refuses."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import json
import os
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

from rjem_cli.engine.data.load import load_digit_splits
from rjem_cli.engine.sampling import generate as sampling
from rjem_cli.errors import RjemError
from rjem_cli.files import locked
from tests.image_files import tree, write


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

    one_call = run("one-call", "-n", 64, "--class", "4")
    for batch_size in (64, 16, 7):
        assert run(f"batch-{batch_size}", "-n", 64, "--batch-size", batch_size, "--class", "4") == one_call
    shards = [run(f"shard-{index}", "-n", 64, "--shard", f"{index}/4", "--class", "4") for index in range(4)]
    assert {name: content for shard in shards for name, content in shard.items()} == one_call
    shifted = run("shifted", "-n", 4, "--seed", 6, "--class", "4")
    assert list(shifted.values()) == list(one_call.values())[6:10]


def run_ranks(world_size, *arguments):
    """rjem in processes with the variables that torchrun sets, and nothing to connect to. Returns (code, stdout,
    stderr) of each."""
    variables = {"WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    command = [sys.executable, "-m", "rjem_cli", *map(str, arguments)]
    processes = [
        subprocess.Popen(
            command,
            env={**os.environ, **variables, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world_size)
    ]
    outputs = [process.communicate(timeout=120) for process in processes]
    return [(process.returncode, *output) for process, output in zip(processes, outputs)]


def test_each_process_of_torchrun_writes_a_shard_and_together_they_are_the_samples_of_one(rjem, trained, tmp_path):
    flags = ("-n", 61, "--seed", 3, "--noise-std", 0.02)
    for name in ("x.npz", "samples"):
        assert rjem("generate", *flags, "-o", tmp_path / name).code == 0
        (code, out, err), other = run_ranks(2, "generate", *flags, "-o", tmp_path / name)
        stem, suffix = os.path.splitext(name)
        first, second = (tmp_path / f"{stem}-{rank}of2{suffix}" for rank in range(2))
        assert (code, out) == (0, f"{first}\n"), err
        assert other == (0, "", "")  # only the main process reports
        ending = "" if suffix else "/"
        assert err.splitlines()[-1] == f"next: rjem eval {first}{ending} {second}{ending}"
    assert images(tmp_path / "samples-0of2") | images(tmp_path / "samples-1of2") == images(tmp_path / "samples")
    with np.load(tmp_path / "x.npz") as one, contextlib.ExitStack() as stack:
        shards = [stack.enter_context(np.load(tmp_path / f"x-{rank}of2.npz")) for rank in range(2)]
        for key in ("arr_0", "labels", "seeds"):
            assert np.array_equal(np.concatenate([shard[key] for shard in shards]), one[key])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("-o", "-"), "-o - cannot be used with torchrun"),
        (("--shard", "0/2"), "--shard cannot be used with torchrun"),
        (("-o", "."), "-o .: with torchrun, give the name of a new folder or file"),
    ],
)
def test_torchrun_needs_an_output_that_each_process_can_name(trained, flags, message):
    (code, out, err), other = run_ranks(2, "generate", *flags)
    assert (code, out) == (2, "") and err.startswith(f"rjem: {message}") and len(err.splitlines()) == 1
    assert other == (2, "", "")


def test_earlier_samples_are_replaced_only_with_overwrite_and_foreign_files_never(rjem, trained, tmp_path):
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


FORMATS = ["out", "out.npz", "out.tar"]


@pytest.mark.parametrize("name", FORMATS[1:])
def test_archives_hold_what_the_folder_holds(rjem, trained, tmp_path, name):
    for output in ("out", name):
        assert rjem("generate", "-n", 23, "-o", tmp_path / output).code == 0
    (pixels, labels), (expected, expected_labels) = read(tmp_path / name), read(tmp_path / "out")
    assert np.array_equal(pixels, expected) and labels == expected_labels == [index % 10 for index in range(23)]
    assert files_beside(tmp_path / name) == {"out", name}


def files_beside(output: Path) -> set[str]:
    """The names in its folder, without the test's home and hidden, empty locks."""
    return {path.name for path in output.parent.iterdir() if path.name != "rjem-home"} - {f".{output.name}.lock"}


def interrupt(rjem, monkeypatch, batch_count, *arguments):
    """Run a command whose chains fail after some batches."""
    original = sampling.join_blocks

    def fail(*args, **kwargs):
        yield from itertools.islice(original(*args, **kwargs), batch_count)
        raise RjemError("the power is gone")

    with monkeypatch.context() as patch:
        patch.setattr(sampling, "join_blocks", fail)
        assert rjem(*arguments).code == 1


@pytest.mark.parametrize("cut_bytes", [0, 1, 700])
def test_an_interrupted_folder_resumes_to_the_same_bytes(rjem, trained, tmp_path, monkeypatch, cut_bytes):
    out, expected = tmp_path / "out", tmp_path / "expected"
    flags = ("generate", "-n", 40, "--batch-size", 7, "-o")
    assert rjem(*flags, expected).code == 0
    interrupt(rjem, monkeypatch, 3, *flags, out)
    with (out / "labels.csv").open("r+b") as file:  # as a kill during a write leaves it
        file.truncate(max(0, os.path.getsize(out / "labels.csv") - cut_bytes))
    again = rjem(*flags, out)
    assert again.code == 0, again.err
    assert ("after 21 that were already there" in again.err) == (cut_bytes == 0)
    assert images(out) == images(expected)
    for name in ("grid.png", "labels.csv"):
        assert (out / name).read_bytes() == (expected / name).read_bytes()
    assert json.loads((out / "meta.json").read_text())["complete"] is True


def test_images_that_an_interrupted_call_wrote_beyond_its_rows_are_removed(rjem, trained, tmp_path, monkeypatch):
    out = tmp_path / "out"
    interrupt(rjem, monkeypatch, 3, "generate", "-n", 40, "--batch-size", 7, "-o", out)
    labels = (out / "labels.csv").read_bytes().splitlines(keepends=True)
    (out / "labels.csv").write_bytes(b"".join(labels[:15]))  # a kill after 21 images and 14 rows
    assert rjem("generate", "-n", 16, "-o", out).code == 0
    assert len(images(out)) == len(read(out)[0]) == 16


@pytest.mark.parametrize("name", FORMATS[1:])
def test_an_interrupted_archive_leaves_nothing_and_starts_again(rjem, trained, tmp_path, monkeypatch, name):
    flags = ("generate", "-n", 40, "--batch-size", 7, "-o", tmp_path / name)
    interrupt(rjem, monkeypatch, 3, *flags)
    assert files_beside(tmp_path / name) == set()
    again = rjem(*flags)
    assert again.code == 0 and "40 samples in" in again.err
    before = (tmp_path / name).read_bytes()
    interrupt(rjem, monkeypatch, 3, *flags, "--seed", 1, "--overwrite")
    assert (tmp_path / name).read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_call_leaves_no_part_of_an_npz(trained, tmp_path, number):
    out = tmp_path / "out.npz"
    command = [sys.executable, "-m", "rjem_cli", "generate", "-n", "100000", "--batch-size", "50", "-o", out]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if line.startswith("generating: "):
            break
    time.sleep(0.5)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert files_beside(out) == set()
    if number == signal.SIGTERM:
        assert process.returncode == 143
        assert f"{out} was not written (a folder can be resumed)" in errors.splitlines()[-1]


@pytest.mark.parametrize("name", FORMATS)
def test_the_samples_of_another_call_are_left_alone(rjem, trained, tmp_path, name):
    out = tmp_path / name
    assert rjem("generate", "-n", 4, "-o", out).code == 0
    before = read(out)[0]
    refused = rjem("generate", "-n", 4, "--seed", 9, "-o", out)
    assert refused.code == 2 and "add --overwrite" in refused.error_line()
    assert np.array_equal(read(out)[0], before)
    assert rjem("generate", "-n", 4, "--seed", 9, "-o", out, "--overwrite").code == 0
    assert not np.array_equal(read(out)[0], before)


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
@pytest.mark.parametrize("name", FORMATS)
def test_a_full_disk_is_one_line_and_the_call_can_be_repeated(trained, tmp_path, name):
    def run(limit: str, count: int = 60):
        flags = f"-n {count} --batch-size 10 -o {tmp_path / name}"
        command = f"trap '' XFSZ; {limit}; {sys.executable} -m rjem_cli generate {flags}"
        return subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120)

    if name == "out":
        run("true", 10)
        (tmp_path / name / "000030.png").mkdir()  # cannot be written
        failed = run("true")
        (tmp_path / name / "000030.png").rmdir()
    else:
        failed = run("ulimit -f 3")  # kilobytes: fails in the middle, as a full disk does
    assert failed.returncode == 1, failed.stderr
    lines = [line for line in failed.stderr.splitlines() if line.startswith("rjem: ")]
    assert len(lines) == 1 and "cannot write" in lines[0] and "Traceback" not in failed.stderr
    again = run("true")
    assert again.returncode == 0, again.stderr
    assert len(read(tmp_path / name)[0]) == 60


@pytest.mark.slow
def test_a_signal_finishes_the_batch_and_the_folder_can_be_resumed(trained, tmp_path):
    command = [sys.executable, "-m", "rjem_cli", "generate", "-n", "4000", "--sgld-steps", "50", "--batch-size", "50"]
    process = subprocess.Popen([*command, "-o", tmp_path / "out"], stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "out" / "000049.png").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143 and "run the same command again to resume" in errors.splitlines()[-1]
    with (tmp_path / "out" / "labels.csv").open() as file:
        assert len(file.readlines()) - 1 == len(images(tmp_path / "out")) > 0
    assert json.loads((tmp_path / "out" / "meta.json").read_text())["complete"] is False


def test_a_folder_with_images_named_like_samples_is_left_alone(rjem, trained, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "20240101.png").write_bytes(b"mine")
    for command in ("generate", "langevin"):
        for flags in ((), ("--overwrite",)):
            refused = rjem(command, "-n", 1, "-o", photos, *flags)
            assert refused.code == 2 and "give an empty folder" in refused.error_line()
    assert (photos / "20240101.png").read_bytes() == b"mine" and len(list(photos.iterdir())) == 1


@pytest.mark.parametrize("name", FORMATS)
def test_two_calls_cannot_write_one_output(rjem, trained, tmp_path, name):
    target = tmp_path / name / "meta.json" if name == "out" else tmp_path / name
    with locked(target, wait=False):
        refused = rjem("generate", "-n", 2, "-o", tmp_path / name)
    assert refused.code == 1 and "is in use by another process" in refused.error_line()
    assert rjem("generate", "-n", 2, "-o", tmp_path / name).code == 0
    locks = [path for path in tmp_path.rglob("*.lock") if "home" not in str(path)]
    assert [path.name for path in locks] == [f".{target.name}.lock"] and locks[0].stat().st_size == 0


def test_an_interrupted_folder_resumes_also_with_overwrite(rjem, trained, tmp_path, monkeypatch):
    out = tmp_path / "out"
    assert rjem("generate", "-n", 12, "--seed", 5, "-o", out).code == 0
    flags = ("generate", "-n", 20, "--batch-size", 5, "-o", out, "--overwrite")
    interrupt(rjem, monkeypatch, 2, *flags)
    again = rjem(*flags)
    assert again.code == 0 and "10 samples in" in again.err and "after 10 that were already there" in again.err
    assert len(read(out)[0]) == 20


def test_with_overwrite_fewer_samples_replace_those_of_an_unfinished_call(rjem, trained, tmp_path):
    out = tmp_path / "out"
    assert rjem("generate", "-n", 9, "-o", out).code == 0
    document = json.loads((out / "meta.json").read_text())
    (out / "meta.json").write_text(json.dumps({**document, "complete": False}))
    assert "holds more samples" in rjem("generate", "-n", 4, "-o", out).error_line()
    assert rjem("generate", "-n", 4, "-o", out, "--overwrite").code == 0 and len(images(out)) == 4


def test_changed_images_of_a_user_make_another_call(rjem, trained, tmp_path):
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


@pytest.mark.parametrize("init", ["noise", "data", "buffer", "user"])
def test_chains_start_from_what_init_names(rjem, trained, tmp_path, init):
    assert rjem("generate", "-n", 3, "--class", "1,2", "--sgld-steps", 0, "-o", tmp_path / "user").code == 0
    start = tmp_path / "user" if init == "user" else init
    outcome = rjem("generate", "-n", 7, "--init", start, "--sgld-steps", 0, "-o", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    assert (f"read {start}: 3 images, 2 classes (1, 2)" in outcome.err) == (init == "user")
    samples, labels = read(tmp_path / "out")
    if init == "noise":
        assert 100 < samples.mean() < 155 and samples.std() > 60
    if init in ("data", "buffer"):
        assert all((image == samples[0]).mean() < 1 for image in samples[1:])
        train = load_digit_splits(0.1, shifted=False).train
        pixels = torch.from_numpy(samples.astype(np.uint8))[:, None]
        same = (pixels[:, None] == train.pixels[None]).flatten(2).all(dim=2)
        assert same.any(dim=1).all() == (init == "data")
        if init == "data":
            assert train.labels[same.float().argmax(dim=1)].tolist() == labels
    if init == "user":  # not grid.png, although it is in the folder
        expected = read(tmp_path / "user")[0]
        assert np.array_equal(samples, expected[[0, 1, 2, 0, 1, 2, 0]])


def test_a_user_s_image_that_does_not_fit_is_named(rjem, trained, tmp_path):
    Image.new("RGB", (9, 8), "red").save(tmp_path / "large.png")
    (tmp_path / "cut.png").write_bytes(b"no image")
    for init, code, message in (
        (tmp_path / "large.png", 1, "large.png are 9x8; this checkpoint takes 8x8"),
        (tmp_path / "cut.png", 1, "cut.png is corrupt or not an image"),
        (tmp_path / "nowhere.png", 3, "nowhere.png does not exist"),
        ("priro", 2, "--init 'priro' is not a known start or a file; did you mean prior?"),
        ("~nosuchuser/x.png", 2, "there is no such home folder"),
    ):
        outcome = rjem("generate", "-n", 1, "--init", init, "-o", tmp_path / "out")
        assert (outcome.code, message in outcome.error_line()) == (code, True), outcome.err


def test_a_run_by_name_folder_or_file_and_the_newest_by_default(rjem, trained, own_home):
    for named in ([], ["tiny"], [own_home / "runs/tiny"], [trained["checkpoint"]]):
        outcome = rjem("generate", *named, "--dry-run")
        assert outcome.code == 0 and trained["checkpoint"] in outcome.err


def test_a_checkpoint_alone_gives_the_same_bytes_in_an_empty_home(rjem, tmp_path, monkeypatch):
    """Without the training images, and without anything cached."""
    write(tree(per_class=20), tmp_path / "photos")
    flags = "--depth 10 --width 1 --steps 2 --warmup-steps 1 --pgd-steps 1 --sgld-steps 1 --sample-steps 2 --crop-pad 0"
    trained = rjem("train", "--data", tmp_path / "photos", "--run", "own", *flags.split(), "--eval-limit", 9, "-q")
    shutil.copy(trained.out.strip(), tmp_path / "shared.safetensors")
    assert rjem("generate", "own", "-n", 6, "--mode", "combined", "-o", tmp_path / "a").code == 0
    shutil.rmtree(tmp_path / "photos")
    monkeypatch.setenv("RJEM_HOME", str(tmp_path / "elsewhere"))
    outcome = rjem("generate", tmp_path / "shared.safetensors", "-n", 6, "--mode", "combined", "-o", tmp_path / "b")
    assert outcome.code == 0, outcome.err
    assert images(tmp_path / "a") == images(tmp_path / "b")


def test_the_temperature_of_the_prior_scales_the_starts_and_is_recorded(rjem, trained, tmp_path):
    flags = ("-n", 4, "--sgld-steps", 0, "--class", "3")
    for name, temperature in (("mean", 0), ("own", 1), ("default", None)):
        given = () if temperature is None else ("--prior-temperature", temperature)
        assert rjem("generate", *flags, *given, "-o", tmp_path / name).code == 0
    assert len(set(images(tmp_path / "mean").values())) == 1  # all are the mean of their class
    assert len(set(images(tmp_path / "own").values())) == 4
    assert images(tmp_path / "own") == images(tmp_path / "default")
    assert json.loads((tmp_path / "mean/meta.json").read_bytes())["plan"]["prior_temperature"] == 0
    refused = rjem("generate", "--init", "noise", "--prior-temperature", 0.5)
    assert refused.code == 2 and "--prior-temperature needs --init prior" in refused.error_line()


def test_files_with_names_like_our_temporary_ones_are_left_alone(rjem, trained, tmp_path):
    (tmp_path / "out.npz.new").write_text("mine")
    assert rjem("generate", "-n", 2, "-o", tmp_path / "out.npz").code == 0
    assert (tmp_path / "out.npz.new").read_text() == "mine"
    (tmp_path / "link.npz").symlink_to(tmp_path / "nowhere")
    refused = rjem("generate", "-n", 2, "-o", tmp_path / "link.npz")
    assert refused.code == 2 and "is a link or a device" in refused.error_line()
    assert (tmp_path / "link.npz").is_symlink()


def test_json_is_one_document(rjem, trained, tmp_path):
    outcome = rjem("generate", "-n", 1, "-o", tmp_path / "out", "--json")
    assert json.loads(outcome.out)["output"] == str(tmp_path / "out")


def test_no_checkpoint_yet(rjem):
    outcome = rjem("generate")
    assert outcome.code == 3 and "no checkpoint in" in outcome.error_line() and "rjem train" in outcome.err


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
        ([pickle], 2, "is not a checkpoint of rjem"),
        ([tmp_path / "text.safetensors"], 1, "is not a valid safetensors file"),
        (["-o", "samples.zip"], 2, "give a folder, a .npz, a .tar or -"),
        (["-o", tmp_path / ".npz"], 2, "give a folder, a .npz, a .tar or -"),
        (["--attack-eps", 0.1], 2, "--attack-eps needs --mode attack or combined, not energy"),
        (["--contrast", 0.5, "--mode", "attack"], 2, "--contrast needs --mode combined, not attack"),
        (["--langevin-noise", "--mode", "attack"], 2, "--langevin-noise needs --mode energy or combined, not attack"),
        (["--shard", "4/4"], 2, "--shard '4/4': give i/k"),
        (["--class", "none", "--mode", "attack"], 2, "--class none has no class to attack towards"),
        (["--eps-space", "byte"], 2, "--eps-space 'byte' is unknown"),
        (["-o", tmp_path / "file"], 2, "is a file; give a folder"),
        (["-o", tmp_path / "file" / "below"], 1, "cannot create folder"),
        (["-o", "/proc/nowhere"], 1, "cannot create folder"),
    ):
        outcome = rjem("generate", *arguments)
        assert outcome.code == code, (arguments, outcome)
        assert message in outcome.error_line()
