"""Every test has its own RJEM_HOME and no network."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for variable in [name for name in os.environ if name.startswith("RJEM_")]:
        monkeypatch.delenv(variable)
    home = tmp_path / "rjem-home"
    monkeypatch.setenv("RJEM_HOME", str(home))
    monkeypatch.setenv("RJEM_OFFLINE", "1")
    return home
