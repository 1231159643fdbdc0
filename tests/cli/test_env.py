"""What a report of a bug needs is told, with reasons."""

from __future__ import annotations

import json

import torch

from rjem_cli import __version__


def test_versions_devices_choices_and_places(rjem, own_home, monkeypatch):
    monkeypatch.setenv("RJEM_ADV_EPS", "0.2")
    found = json.loads(rjem("env", "--json").out)
    assert found["rjem"] == __version__ and found["packages"]["torch"] == torch.__version__
    assert found["home"] == str(own_home) and found["offline"] is True
    assert found["variables"] == {"RJEM_ADV_EPS": "0.2", "RJEM_HOME": str(own_home), "RJEM_OFFLINE": "1"}
    assert found["cpu"]["threads"] == torch.get_num_threads() and len(found["gpus"]) == torch.cuda.device_count()
    assert all("(" in choice for choice in found["auto"].values())
    assert "pytest" not in found["packages"] and "pyautoattack" in found["packages"]


def test_a_pipe_gets_lines(rjem):
    outcome = rjem("env")
    rows = dict(line.split("\t") for line in outcome.out.splitlines())
    assert rows["what"] == "value" and rows["rjem"] == __version__ and "precision of scores" in rows
