"""Where a network runs, and what that changes in the process."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
import torch

from rjem_cli.config.training import TrainConfig
from rjem_cli.engine.runtime import start_runtime

COUNT_PAGE_FAULTS = """
import resource
import torch
from rjem_cli.config.common import RuntimeOptions
from rjem_cli.engine.runtime import start_runtime

start_runtime(RuntimeOptions(device="cpu"))

def fill(times):
    for _ in range(times):
        torch.ones(25_000_000)

fill(10)  # malloc's cache may hold up to seven small pieces back, each of which splits the heap behind a large block
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
fill(3)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be set to keep freed memory")
def test_a_pass_reuses_the_memory_of_the_one_before():
    """100 MB are 24,000 pages, or 48 large ones."""
    done = subprocess.run([sys.executable, "-c", COUNT_PAGE_FAULTS], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 40


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_accuracies_are_never_measured_in_half_precision(dtype):
    started = start_runtime(TrainConfig(device="cpu", precision=dtype))
    assert started.dtype != torch.float32 and started.scoring().dtype == torch.float32
