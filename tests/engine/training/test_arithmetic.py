"""A run keeps the precision that it started with, and all its processes have the same."""

from __future__ import annotations

import pytest
import torch

from rjem_cli.config.training import TrainConfig
from rjem_cli.engine.distributed import Distributed
from rjem_cli.engine.training import arithmetic
from rjem_cli.engine.training.arithmetic import start_training_runtime
from rjem_cli.engine.training.checkpointing import read_precision
from rjem_cli.paths import checkpoints_in
from tests.engine.training.test_run import TINY, train

AUTO = TrainConfig(**TINY)


@pytest.fixture
def chosen(monkeypatch):
    """A list; its last element is what a new run gets here."""
    precisions = ["fp32"]
    monkeypatch.setattr(arithmetic, "choose_precision", lambda options, device: (precisions[-1], "auto: chosen"))
    return precisions


def test_a_resumed_run_keeps_its_precision(tmp_path, chosen):
    chosen.append("bf16")
    train(tmp_path / "run", stop_at=3)
    chosen.append("fp32")  # the machine is another one, or its cache was removed
    newest = checkpoints_in(tmp_path / "run")[-1]
    runtime = start_training_runtime(AUTO, newest)
    assert runtime.dtype == torch.bfloat16 and runtime.precision_reason == "auto: as this run was trained so far"
    resumed, _ = train(tmp_path / "run", resume=True)
    chosen.append("bf16")
    uninterrupted, _ = train(tmp_path / "uninterrupted")
    assert resumed.checkpoint.read_bytes() == uninterrupted.checkpoint.read_bytes()


def test_a_requested_precision_and_another_kind_of_device_change_it(tmp_path, chosen, monkeypatch):
    chosen.append("bf16")
    train(tmp_path, stop_at=3)
    newest = checkpoints_in(tmp_path)[-1]
    assert read_precision(newest, "cpu") == "bf16" and read_precision(newest, "cuda") is None
    monkeypatch.undo()
    assert start_training_runtime(TrainConfig(**TINY, precision="fp32"), newest).precision_reason == "requested"
    assert start_training_runtime(AUTO).precision == "fp32"


def test_the_main_process_chooses_for_all(chosen, monkeypatch):
    """The others neither measure nor read."""
    chosen.append("bf16")
    sent = []

    def broadcast(process, value):
        sent.append(value if process.is_main else None)
        return sent[0]

    monkeypatch.setattr(Distributed, "broadcast", broadcast)
    first = start_training_runtime(AUTO, None, Distributed(rank=0, world_size=2))
    chosen.clear()
    second = start_training_runtime(AUTO, None, Distributed(rank=1, world_size=2))
    assert {(runtime.precision, runtime.precision_reason) for runtime in (first, second)} == {("bf16", "auto: chosen")}
