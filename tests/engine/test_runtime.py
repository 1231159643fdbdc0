"""Where a network runs, and what that changes in the process."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told to keep what is freed")
def test_a_pass_finds_the_memory_of_the_one_before():
    """100 MB are 24,000 pages, or 48 large ones."""
    found = subprocess.run([sys.executable, "-c", FAULTS_OF_A_PASS], capture_output=True, text=True, check=True)
    assert int(found.stdout) < 40
