"""How to watch a run: its live table, its curves, and its TensorBoard events."""

from __future__ import annotations

import sys

import pytest
from PIL import Image

from rjem_cli.cli.resume import shell_name
from rjem_cli.cli.training_output import MetricsTable
from tests.conftest import TINY_FLAGS


def test_the_live_table_shows_each_metric_with_its_history():
    table = MetricsTable()
    for step in range(5):
        table.add({"energy_data": -float(step), "val_accuracy": step / 4, "unknown": 1.0})
        table.add({})
    rows = {name: (now, history) for name, now, history in table.table()[2]}
    assert rows == {"accuracy (val)": ("100.0%", "▁▃▅▆█"), "E(x) of data": ("-4", "█▆▅▃▁")}


def test_curves_are_drawn_of_a_finished_and_of_a_stopped_run(rjem, own_home):
    for name, flags in {"ends": (), "stopped": ("--steps", 10_000, "--max-time", "5s")}.items():
        outcome = rjem("train", "--run", name, *TINY_FLAGS, *flags)
        assert outcome.code == 0
        with Image.open(own_home / "runs" / name / "curves.png") as picture:
            assert picture.width > 500


def test_without_the_package_tensorboard_the_run_is_refused_with_the_remedy(rjem, own_home, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    outcome = rjem("train", "--run", "watched", "--tensorboard", *TINY_FLAGS)
    assert outcome.code == 3 and "pip install tensorboard" in outcome.error_line()
    assert not (own_home / "runs" / "watched" / "config.yaml").exists()


def test_a_run_with_events_resumes_without_the_package(rjem, own_home, monkeypatch):
    assert rjem("train", "--run", "seen", *TINY_FLAGS).code == 0
    (own_home / "runs" / "seen" / "tensorboard").mkdir()
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    outcome = rjem("train", "--resume", "seen", "--steps", 4)
    assert outcome.code == 0 and "warning: this run no longer logs to TensorBoard" in outcome.err


def test_event_files_hold_scalars_histograms_and_images(rjem, own_home):
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    flags = ("--tensorboard", "--sample-every", 2)
    assert rjem("train", "--run", "watched", *TINY_FLAGS, *flags).code == 0
    assert rjem("train", "--resume", "watched", "--steps", 6).code == 0  # keeps logging
    found = accumulators.EventAccumulator(str(own_home / "runs" / "watched" / "tensorboard"))
    found.Reload()
    assert [event.step for event in found.Scalars("training/energy_data")] == [1, 2, 3, 4, 5, 6]
    assert {"energy/data", "energy/chains"} <= set(found.Tags()["histograms"])
    assert found.Histograms("energy/data")[0].histogram_value.num == 16
    assert {"samples", "grid"} <= set(found.Tags()["images"])


def test_a_run_is_named_as_commands_find_it(own_home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run, other = own_home / "runs" / "my run", tmp_path / "elsewhere"
    assert shell_name(run) == "'my run'" and shell_name(other) == str(other)
    (tmp_path / "my run").mkdir()  # something else here is called so
    assert shell_name(run) == f"'{run}'"
