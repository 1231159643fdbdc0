"""Where a network runs, and what that changes in the process."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from rjem_cli.config import AttackConfig, GenerateConfig, TrainConfig
from rjem_cli.engine import runtime
from rjem_cli.engine.runtime import start_runtime

FAULTS_OF_A_PASS = """
import resource
import torch
from rjem_cli.config import RuntimeOptions
from rjem_cli.engine.runtime import start_runtime

start_runtime(RuntimeOptions(device="cpu"))

def fill():
    for _ in range(3):
        torch.ones(25_000_000)

fill()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
fill()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told to keep what is freed")
def test_a_pass_finds_the_memory_of_the_one_before():
    """100 MB are 24,000 pages, or 48 large ones."""
    found = subprocess.run([sys.executable, "-c", FAULTS_OF_A_PASS], capture_output=True, text=True, check=True)
    assert int(found.stdout) < 40


@pytest.mark.parametrize("units", [True, False])
def test_auto_takes_bf16_to_train_wide_networks_where_the_cpu_has_units_for_it(monkeypatch, units):
    """And nowhere else: samples and scores are the same on as many machines as can be."""
    monkeypatch.setattr(runtime, "has_bf16_units", lambda: units)
    configs = [TrainConfig(device="cpu", width=width) for width in (1, 2, 10)]
    configs += [GenerateConfig(device="cpu"), AttackConfig(device="cpu")]
    started = [start_runtime(config) for config in configs]
    assert [it.precision for it in started] == ["fp32", *(2 * ["bf16" if units else "fp32"]), "fp32", "fp32"]
    assert all(it.precision_reason.startswith("auto: ") for it in started)


def test_what_is_asked_for_is_taken(monkeypatch):
    monkeypatch.setattr(runtime, "has_bf16_units", lambda: True)
    for asked in ("fp32", "bf16"):
        started = start_runtime(TrainConfig(device="cpu", width=2, precision=asked))
        assert (started.precision, started.precision_reason) == (asked, "as asked")
