"""How the threads of a CPU wait for each other. It is decided before PyTorch is loaded, which reads it once.

PyTorch's threads wait at the end of each parallel loop. libgomp, the OpenMP library of PyTorch on Linux, lets them spin
300,000 times before they sleep. On a machine with other work, a thread that spins takes the core from the thread it
waits for, and training beside other work takes many times as long. A thread that sleeps at once leaves the core
free, but takes long to wake up. 5,000 spins, about 0.1 ms, are a compromise (docs/measurements.md).
"""

import os
import sys
from pathlib import Path

SPIN_COUNT = 5_000
SPIN_VARIABLE = "GOMP_SPINCOUNT"
WAIT_VARIABLES = ("OMP_WAIT_POLICY", SPIN_VARIABLE)
CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")  # of a container: microseconds per period, and the period


def share_cores() -> None:
    """Set the environment of this process, unless the user did or PyTorch is loaded already. For a command, which owns
    its process; not for `import rjem_cli`."""
    if sys.platform != "linux" or "torch" in sys.modules:
        return
    if not any(name in os.environ for name in WAIT_VARIABLES):
        os.environ[SPIN_VARIABLE] = str(SPIN_COUNT)
    if "OMP_NUM_THREADS" not in os.environ and (cores := limited_cores(CPU_LIMIT)):
        os.environ["OMP_NUM_THREADS"] = str(cores)


def limited_cores(path: Path) -> int | None:
    """How many cores the container may use, if fewer than it sees. More threads would wait for each other in turns."""
    try:
        quota, period = path.read_text(encoding="ascii").split()
        cores = max(1, round(int(quota) / int(period)))
    except (OSError, ValueError):  # no limit ("max"), or another system
        return None
    visible = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores if cores < visible else None


def describe_waiting() -> str:
    """What is set in this process, such as `GOMP_SPINCOUNT=5000 (auto)`."""
    chosen = [f"{name}={os.environ[name]}" for name in WAIT_VARIABLES if name in os.environ]
    if chosen == [f"{SPIN_VARIABLE}={SPIN_COUNT}"]:
        return f"{chosen[0]} (auto: short, so that jobs side by side do not block each other)"
    return f"{', '.join(chosen)} (requested)" if chosen else "as PyTorch's default (nothing is set)"
