"""Every test has its own RJEM_HOME and no network."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "rjem-home"
    monkeypatch.setenv("RJEM_HOME", str(home))
    monkeypatch.setenv("RJEM_OFFLINE", "1")
    for variable in ("RJEM_SEED", "RJEM_DEVICE", "RJEM_ADV_EPS"):
        monkeypatch.delenv(variable, raising=False)
    return home
