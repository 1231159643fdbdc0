"""Does memory grow with the number of samples? Peak resident memory of `rjem generate` for -n 1000 and -n 20000.

python tests/benchmarks/memory.py RUN [any flags of rjem generate]
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COUNTS = (1000, 20_000)


def peak_of(command: list[str]) -> tuple[float, float]:
    """(MiB, seconds) of a child process."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(command)} ended with {os.waitstatus_to_exitcode(status)}")
    return usage.ru_maxrss / 1024, time.perf_counter() - started


def main() -> None:
    run, *flags = sys.argv[1:]
    print("form\tsamples\tpeak MiB\tseconds")
    with tempfile.TemporaryDirectory() as folder:
        for form in ("folder", "npz", "tar"):
            for count in COUNTS:
                output = Path(folder) / (f"{count}" if form == "folder" else f"{count}.{form}")
                command = [sys.executable, "-m", "rjem_cli", "generate", run, "-n", str(count), "-q", "-o", str(output)]
                peak, seconds = peak_of([*command, *flags])
                print(f"{form}\t{count}\t{peak:.0f}\t{seconds:.1f}", flush=True)


if __name__ == "__main__":
    main()
