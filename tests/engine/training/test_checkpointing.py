"""Checkpoints on disk: damage, full disks, leftovers of kills, and which ones are kept."""

from __future__ import annotations

import contextlib
import threading

import pytest
import torch

from rjem_cli import files
from rjem_cli.engine.callbacks import noop
from rjem_cli.engine.models import tensor_file
from rjem_cli.engine.models.checkpoint import FORMAT, load_checkpoint, read_info, state_path
from rjem_cli.engine.models.tensor_file import read_tensors, write_tensors
from rjem_cli.engine.training import run
from rjem_cli.engine.training.checkpointing import STATE_FORMAT, Snapshot, latest_valid, read_precision
from rjem_cli.engine.training.trainer import Trainer
from rjem_cli.errors import ConfigError, DataError, RjemError
from rjem_cli.paths import QUARANTINE_SUFFIX, checkpoints_in, parse_step
from tests.engine.training.test_run import train
from tests.pretend_cuda import PretendCuda
from tests.run_results import metrics_of


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [flip, truncate, empty, lambda path: path.unlink()])
@pytest.mark.parametrize("part", ["checkpoint", "state"])
def test_a_damaged_checkpoint_is_quarantined_and_an_older_one_is_used(tmp_path, damage, part):
    uninterrupted, _ = train(tmp_path / "uninterrupted")
    train(tmp_path / "run", stop_at=5)  # checkpoints of steps 3 and 5
    newest = checkpoints_in(tmp_path / "run")[-1]
    damage(newest if part == "checkpoint" else state_path(newest))
    remaining = [path.name for path in (newest, state_path(newest)) if path.exists()]
    warnings = []
    resumed, steps = train(tmp_path / "run", resume=True, warnings=warnings)
    assert steps == [4, 5, 6]
    assert resumed.checkpoint.read_bytes() == uninterrupted.checkpoint.read_bytes()
    assert metrics_of(tmp_path / "run") == metrics_of(tmp_path / "uninterrupted")
    assert newest not in checkpoints_in(tmp_path / "run")
    if newest.name not in remaining:  # a checkpoint that does not exist is not damaged
        assert not warnings
        return
    assert warnings[0].startswith("skipped: ") and "step-00000005" in warnings[0]
    quarantined = {path.name for path in newest.parent.iterdir() if QUARANTINE_SUFFIX in path.name}
    assert quarantined == {name + QUARANTINE_SUFFIX for name in remaining}
    assert all(any(line == f"renamed {name} to {name}{QUARANTINE_SUFFIX}" for line in warnings) for name in remaining)


def test_a_run_without_a_valid_checkpoint_is_refused(tmp_path):
    train(tmp_path, stop_at=2)
    for path in checkpoints_in(tmp_path):
        truncate(path)
    warnings = []
    with pytest.raises(DataError, match="has no valid checkpoint"):
        latest_valid(tmp_path, warnings.append)
    assert len(warnings) == 2


def test_the_state_of_another_checkpoint_is_damage(tmp_path):
    train(tmp_path, stop_at=2)
    older, newer = checkpoints_in(tmp_path)
    state_path(newer).write_bytes(state_path(older).read_bytes())
    assert latest_valid(tmp_path, noop) == older


def test_a_resume_reads_and_hashes_each_file_once(tmp_path, monkeypatch):
    train(tmp_path, stop_at=4)
    hashed, read = [], []
    digest, safe_open = tensor_file.digest, tensor_file.safe_open

    def count_digest(tensors, description):
        if tensors:  # a description alone is hashed too
            hashed.append(description.get("format"))
        return digest(tensors, description)

    class RecordingFile:
        """A safetensors file that records which tensors are read."""

        def __init__(self, path, framework):
            self.file, self.path = safe_open(path, framework=framework), path

        def __enter__(self):
            return self

        def __exit__(self, *error):
            return None

        def __getattr__(self, name):
            return getattr(self.file, name)

        def get_tensor(self, name):
            read.append((self.path, name))
            return self.file.get_tensor(name)

    class Started(Exception):
        pass

    def start(trainer):
        raise Started

    monkeypatch.setattr(tensor_file, "digest", count_digest)
    monkeypatch.setattr(tensor_file, "safe_open", RecordingFile)
    monkeypatch.setattr(Trainer, "train_step", start)
    with pytest.raises(Started):
        train(tmp_path, resume=True)
    assert sorted(name for name in hashed if name in (FORMAT, STATE_FORMAT)) == [FORMAT, STATE_FORMAT]
    assert len(set(read)) == len(read) > 50


def test_leftovers_of_a_kill_are_removed_and_other_files_are_kept(tmp_path):
    train(tmp_path, stop_at=2)
    folder = tmp_path / "checkpoints"
    for name in (
        ".step-00000004.safetensors.abcd1234",
        ".step-00000004.state.safetensors.wxyz5678",
        "step-00000004.state.safetensors",
    ):
        (folder / name).write_bytes(b"half")
    (folder / "mine.txt").write_text("mine")
    (folder / "step-99999999.safetensors").symlink_to("/nowhere")
    (folder / "step-00000001.safetensors").mkdir()
    train(tmp_path, resume=True)
    names = {path.name for path in folder.iterdir() if path.suffix != ".lock"}
    pairs = {f"step-0000000{step}{kind}.safetensors" for step in (3, 6) for kind in ("", ".state")}
    assert names == pairs | {"mine.txt", "step-99999999.safetensors", "step-00000001.safetensors"}


def test_the_newest_and_the_best_are_kept(tmp_path, monkeypatch):
    def kept_steps(name, accuracies, **options):
        values = iter(accuracies)
        monkeypatch.setattr(run, "val_accuracy", lambda trainer: next(values))
        train(tmp_path / name, checkpoint_every=1, **options)
        return [parse_step(path) for path in checkpoints_in(tmp_path / name)]

    assert kept_steps("best", [0.2, 0.9, 0.5, 0.9, 0.1, 0.3], keep_last=1) == [4, 6]
    assert read_info(checkpoints_in(tmp_path / "best")[0]).val_accuracy == 0.9
    assert kept_steps("last", [0.9, 0.1, 0.1, 0.1, 0.1, 0.1], keep_last=3, keep_best=False) == [4, 5, 6]


def test_checkpoints_saved_by_the_clock_do_not_replace_the_newest_scheduled_one(tmp_path, monkeypatch):
    """Else a run that diverges could only return to its last few steps."""
    monkeypatch.setattr(run.Clock, "minutes_since_save", lambda self: 1e9)
    train(tmp_path, stop_at=3, checkpoint_every=100, keep_last=1)
    assert [parse_step(path) for path in checkpoints_in(tmp_path)] == [0, 3]


def test_a_full_disk_ends_a_run_only_at_its_last_checkpoint(tmp_path, monkeypatch):
    usage, check, checks, warnings = files.shutil.disk_usage(tmp_path), files.check_space, [], []

    def fill_disk(is_full):
        free = usage._replace(free=0)
        monkeypatch.setattr(files.shutil, "disk_usage", lambda folder: free if is_full() else usage)

    def check_space(*arguments):
        try:
            check(*arguments)
        finally:
            checks.append(arguments)

    monkeypatch.setattr("rjem_cli.engine.training.checkpointing.check_space", check_space)
    fill_disk(lambda: len(checks) == 1)  # at the second of three checkpoints
    result, steps = train(tmp_path / "a", warnings=warnings)
    assert steps == [1, 2, 3, 4, 5, 6] and result.finished
    assert len(warnings) == 1 and "has only 0.0 MB left" in warnings[0] and "training continues" in warnings[0]
    fill_disk(lambda: len(checks) >= 4)  # from the second checkpoint on
    with pytest.raises(RjemError, match="has only 0.0 MB left.*the newest checkpoint is that of step 0"):
        train(tmp_path / "b")
    (path,) = checkpoints_in(tmp_path / "b")
    load_checkpoint(path, torch.device("cpu"))
    fill_disk(lambda: True)
    with pytest.raises(RjemError, match=r"needs \d\.\d MB, but .* has only 0.0 MB left"):  # before the first step
        train(tmp_path / "c")
    assert not checkpoints_in(tmp_path / "c")


def test_a_gpu_trains_on_while_a_checkpoint_is_written(tmp_path, monkeypatch):
    """And the checkpoint is that of its step, not of a later one."""
    write, train_step, trained_on = Snapshot.write, Trainer.train_step, threading.Event()

    def write_late(snapshot, path):
        assert snapshot.info.step != 3 or trained_on.wait(60)
        write(snapshot, path)

    def take_step(trainer):
        scalars = train_step(trainer)
        if trainer.step == 5:
            trained_on.set()
        return scalars

    with PretendCuda():
        train(tmp_path / "expected", device="cuda", keep_last=9)
        monkeypatch.setattr(Snapshot, "write", write_late)
        monkeypatch.setattr(Trainer, "train_step", take_step)
        train(tmp_path / "late", device="cuda", keep_last=9)
    expected, late = (checkpoints_in(tmp_path / name) for name in ("expected", "late"))
    assert [path.name for path in expected] == [path.name for path in late] and len(late) == 3
    for one, other in zip(expected, late):
        assert one.read_bytes() == other.read_bytes() and state_path(one).read_bytes() == state_path(other).read_bytes()


@pytest.mark.parametrize(("failing_step", "steps_on_disk"), [(3, [0, 6]), (6, [0, 3])])
def test_a_checkpoint_that_fails_beside_the_training_is_reported(tmp_path, monkeypatch, failing_step, steps_on_disk):
    write, warnings = Snapshot.write, []

    def fail(snapshot, path):
        if snapshot.info.step == failing_step:
            raise RjemError("the disk is full")
        write(snapshot, path)

    monkeypatch.setattr(Snapshot, "write", fail)
    last = failing_step == 6
    with PretendCuda(), pytest.raises(RjemError, match="is that of step 3") if last else contextlib.nullcontext():
        train(tmp_path, device="cuda", keep_last=9, warnings=warnings)
    assert [parse_step(path) for path in checkpoints_in(tmp_path)] == steps_on_disk
    told = ["the disk is full; training continues, and saves again at the next checkpoint"]
    assert warnings == ([] if last else told)


def test_a_checkpoint_that_fails_is_reported_even_if_training_ends_with_another_error(tmp_path, monkeypatch):
    train_step, warnings = Trainer.train_step, []

    def fail(snapshot, path):
        raise RjemError("the disk is full")

    def take_step(trainer):
        if trainer.step == 4:
            raise ConfigError("something else")
        return train_step(trainer)

    with PretendCuda():
        train(tmp_path, device="cuda", stop_at=0)  # a run with the checkpoint of its start
        monkeypatch.setattr(Snapshot, "write", fail)
        monkeypatch.setattr(Trainer, "train_step", take_step)
        with pytest.raises(ConfigError, match="something else"):
            train(tmp_path, device="cuda", resume=True, warnings=warnings)
    assert warnings == ["the disk is full"]


@pytest.mark.parametrize("forged", [{"precision": None}, {"precision": "fp8"}, {"precision": "tf32"}, {"device": "x"}])
def test_a_state_with_a_forged_precision_is_skipped(tmp_path, forged):
    train(tmp_path, stop_at=5)
    older, newest = checkpoints_in(tmp_path)
    tensors, description = read_tensors(state_path(newest))
    sha256 = write_tensors(state_path(newest), tensors, description | forged)
    tensors, description = read_tensors(newest)
    write_tensors(newest, tensors, description | {"info": description["info"] | {"state_sha256": sha256}})
    warnings = []
    assert latest_valid(tmp_path, warnings.append) == older
    (warning,) = warnings
    assert warning.startswith("skipped: ") and "has an unknown device or precision" in warning
    with pytest.raises(DataError, match="has an unknown device or precision"):
        read_precision(newest, "cpu")
