"""What is on the disk survives: damage, full disks, kills, and being tidied."""

from __future__ import annotations

import pytest
import torch

from rjem_cli import files
from rjem_cli.engine.models import tensor_file
from rjem_cli.engine.models.checkpoint import FORMAT, load_checkpoint, read_info, state_path
from rjem_cli.engine.training.checkpointing import ASIDE, STATE_FORMAT, latest_valid
from rjem_cli.engine.training.trainer import Trainer
from rjem_cli.errors import DataError, RjemError
from rjem_cli.paths import checkpoints_in
from tests.engine.training.test_trainer import train
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
def test_a_damaged_checkpoint_is_skipped_and_said(tmp_path, damage, part):
    whole, _ = train(tmp_path / "whole")
    train(tmp_path / "run", stop_at=5)  # checkpoints of steps 3 and 5
    newest = checkpoints_in(tmp_path / "run")[-1]
    damage(newest if part == "checkpoint" else state_path(newest))
    notes = []
    resumed, steps = train(tmp_path / "run", resume=True, notes=notes)
    assert steps == [4, 5, 6]
    assert resumed.checkpoint.read_bytes() == whole.checkpoint.read_bytes()
    assert metrics_of(tmp_path / "run") == metrics_of(tmp_path / "whole")
    if newest.name in {path.name for path in checkpoints_in(tmp_path / "run")}:
        pytest.fail("the damaged checkpoint is still in the way")
    if not newest.with_name(newest.name + ASIDE).exists():
        assert part == "checkpoint" and not notes  # a checkpoint that is gone is none
        return
    if notes[-1] == "resumes from step 3 instead":  # damaged tensors are found when they are loaded
        notes.pop()
    skipped, *aside = notes
    assert skipped.startswith("skipped: ") and "step-00000005" in skipped
    assert aside and all(note.startswith("set aside: ") for note in aside)  # not removed
    remains = {path.name for path in newest.parent.iterdir() if ASIDE in path.name}
    assert newest.name + ASIDE in remains and len(remains) == len(aside)


def test_a_run_without_a_whole_checkpoint_is_named(tmp_path):
    train(tmp_path, stop_at=2)
    for path in checkpoints_in(tmp_path):
        truncate(path)
    notes = []
    with pytest.raises(DataError, match="has no valid checkpoint"):
        latest_valid(tmp_path, notes.append)
    assert len(notes) == 2


def test_a_state_under_another_checkpoints_name_is_not_its_state(tmp_path):
    train(tmp_path, stop_at=2)
    older, newer = checkpoints_in(tmp_path)
    state_path(newer).write_bytes(state_path(older).read_bytes())
    assert latest_valid(tmp_path, lambda note: None) == older


def test_a_resume_reads_and_hashes_each_file_once(tmp_path, monkeypatch):
    train(tmp_path, stop_at=4)
    hashed, read = [], []
    digest, safe_open = tensor_file.digest, tensor_file.safe_open

    def counted(tensors, description):
        hashed.append(description["format"])
        return digest(tensors, description)

    class Counted:
        """A safetensors file that notes of which tensors the content is read."""

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

    class Begun(Exception):
        pass

    def begun(trainer):
        raise Begun

    monkeypatch.setattr(tensor_file, "digest", counted)
    monkeypatch.setattr(tensor_file, "safe_open", Counted)
    monkeypatch.setattr(Trainer, "train_step", begun)
    with pytest.raises(Begun):
        train(tmp_path, resume=True)
    assert sorted(kind for kind in hashed if kind in (FORMAT, STATE_FORMAT)) == [FORMAT, STATE_FORMAT]
    assert len(set(read)) == len(read) > 50


def test_what_a_kill_left_half_done_is_removed(tmp_path):
    train(tmp_path, stop_at=2)
    folder = tmp_path / "checkpoints"
    for name in (
        ".step-00000004.safetensors.x1",
        ".step-00000004.state.safetensors.y2",
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
    accuracies = iter([0.2, 0.9, 0.5, 0.9, 0.1, 0.3])
    monkeypatch.setattr(Trainer, "val_accuracy", lambda self: next(accuracies))
    train(tmp_path / "best", checkpoint_every=1, keep_last=1)
    kept = checkpoints_in(tmp_path / "best")
    assert [read_info(path).step for path in kept] == [4, 6] and read_info(kept[0]).val_accuracy == 0.9
    accuracies = iter([0.9, 0.1, 0.1, 0.1, 0.1, 0.1])
    train(tmp_path / "last", checkpoint_every=1, keep_last=3, keep_best=False)
    assert [read_info(path).step for path in checkpoints_in(tmp_path / "last")] == [4, 5, 6]


def test_a_disk_that_fills_up_ends_no_training_but_its_end(tmp_path, monkeypatch):
    free, notes = files.shutil.disk_usage(tmp_path), []

    def full_after(step):
        monkeypatch.setattr(files.shutil, "disk_usage", lambda folder: free._replace(free=0 if step() else free.free))

    told = []
    full_after(lambda: len(told) == 1)  # while the second of three checkpoints is due
    check = files.check_space

    def counted(*arguments):
        try:
            check(*arguments)
        finally:
            told.append(arguments)

    monkeypatch.setattr("rjem_cli.engine.training.checkpointing.check_space", counted)
    result, steps = train(tmp_path / "a", notes=notes)
    assert steps == [1, 2, 3, 4, 5, 6] and result.finished
    assert len(notes) == 1 and "has only 0.0 MB left; free some space" in notes[0] and "training goes on" in notes[0]
    full_after(lambda: len(told) >= 4)  # from the second checkpoint on
    with pytest.raises(RjemError, match="has 0.0 MB left.*the newest checkpoint is that of step 0"):
        train(tmp_path / "b")
    (left,) = checkpoints_in(tmp_path / "b")
    load_checkpoint(left, torch.device("cpu"))
    full_after(lambda: True)
    with pytest.raises(RjemError, match=r"needs \d\.\d MB and .* has 0.0 MB left"):  # before anything is trained
        train(tmp_path / "c")
    assert not checkpoints_in(tmp_path / "c")
