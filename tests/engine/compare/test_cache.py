"""Measurements are cached, and a cache that cannot be written is reported before the work."""

from __future__ import annotations

import pytest

from rjem_cli.engine.compare.cache import load_or_measure
from rjem_cli.errors import RjemError


def test_a_measurement_is_made_once_and_again_if_its_file_is_damaged(tmp_path):
    path, calls = tmp_path / "cache" / "a.json", []

    def measure():
        calls.append(1)
        return {"value": len(calls)}

    assert [load_or_measure(path, measure)["value"] for _ in range(2)] == [1, 1]
    path.write_text(path.read_text().replace('"value": 1', '"value": 3'))
    assert load_or_measure(path, measure)["value"] == 2


def test_a_cache_that_cannot_be_written_is_reported_before_the_work(tmp_path):
    (tmp_path / "file").write_text("")

    def measure():
        raise AssertionError("measured")

    with pytest.raises(RjemError, match="cannot create folder"):
        load_or_measure(tmp_path / "file" / "cache" / "a.json", measure)
