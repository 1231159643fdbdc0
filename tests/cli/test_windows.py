"""rjem runs without the names that Windows' `os` and `signal` lack."""

from __future__ import annotations

import os
import signal

import pytest

from tests.conftest import TINY_FLAGS
from tests.image_files import tree, write

ABSENT = {
    os: ("sysconf", "getloadavg", "posix_fadvise", "POSIX_FADV_DONTNEED"),
    signal: ("SIGHUP",),
}


@pytest.fixture
def like_windows(monkeypatch):
    for module, names in ABSENT.items():
        for name in names:
            monkeypatch.delattr(module, name, raising=False)


def test_images_are_read_and_a_run_is_trained_sampled_from_and_scored(rjem, like_windows, tmp_path):
    write(tree(per_class=20), tmp_path / "photos.zip")
    flags = [*TINY_FLAGS[2:], "--data", tmp_path / "photos.zip", "--preset", "quickstart"]
    for arguments in (
        ("train", "--run", "one", *flags),
        ("train", "--run", "one", "--resume", "auto", *flags, "--steps", 4),
        ("generate", "one", "-n", 6, "-o", tmp_path / "out"),
        ("attack", "one", "--eps", 0.1, "--steps", 2, "--dry-run"),
        ("eval", "one", "--eps", 0.1, "--steps", 2, "--samples", 4),
        ("langevin", "one", "-n", 2, "--sgld-steps", 2, "-o", tmp_path / "chains"),
        ("compare", "one", "--mode", "none", "--limit", 5, "--steps", 1),
        ("env",),
    ):
        outcome = rjem(*arguments)
        assert outcome.code == 0, outcome.err
