"""How the threads of a CPU wait for each other.

PyTorch's threads wait at the end of each parallel loop. libgomp, the OpenMP library of PyTorch on Linux, lets them spin
300,000 times, some milliseconds, before they sleep. On an idle machine that is fastest. On a machine with other work, a
thread that spins takes the core from the thread it waits for, and training takes many times as long.

So rjem watches how long its threads wait for a core, and while other work needs the cores it lets them spin 100 times
only. libgomp reads its spin count once, when it is loaded, but also counts threads: while there are more of them than
cores, it spins 100 times (manual of libgomp, GOMP_SPINCOUNT). A second team of threads, which does nothing, therefore
shortens the spin, and its end restores it. docs/measurements.md has the times.
"""

import ctypes
import os
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

SPIN_COUNT = 20_000  # as fast as 300,000 on an idle machine, and slows other work less until it is noticed
SPIN_VARIABLE = "GOMP_SPINCOUNT"
WAIT_VARIABLES = ("OMP_WAIT_POLICY", SPIN_VARIABLE)
CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")  # of a container: microseconds per period, and the period
TASKS = Path("/proc/self/task")  # one folder per thread
WATCH_SECONDS = 0.5
# share of the time in which threads could have run, but had no core: under 0.1 on an idle machine, 0.3 to 0.5 beside
# another training
BUSY_SHARE = 0.2
IDLE_SHARE = 0.05
WATCHER = "watch cores"  # name of the thread


def share_cores() -> None:
    """Set the environment of this process and watch it, unless the user chose how threads wait or PyTorch is loaded
    already. For a command, which owns its process; not for `import rjem_cli`."""
    if sys.platform != "linux" or "torch" in sys.modules:
        return
    if not any(os.environ.get(name) for name in WAIT_VARIABLES):
        os.environ[SPIN_VARIABLE] = str(SPIN_COUNT)
        with suppress(RuntimeError):  # no memory for a thread
            threading.Thread(target=watch_cores, name=WATCHER, daemon=True).start()
    if "OMP_NUM_THREADS" not in os.environ and (cores := limited_cores(CPU_LIMIT)):
        os.environ["OMP_NUM_THREADS"] = str(cores)


def limited_cores(path: Path) -> int | None:
    """How many cores the container may use; None if it may use all that it sees. More threads would only take turns."""
    try:
        quota, period = path.read_text(encoding="ascii").split()
        cores = max(1, round(int(quota) / int(period)))
    except (OSError, ValueError):  # no limit ("max"), or another system
        return None
    visible = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores if cores < visible else None


def watch_cores() -> None:
    """Shorten the spin of this process's threads while other work needs the cores. Never returns."""
    team_end: threading.Event | None = None
    before = core_times(TASKS)
    while True:
        time.sleep(WATCH_SECONDS)
        now = core_times(TASKS)
        share = waiting_share(before, now)
        before = now
        if team_end is None and share > BUSY_SHARE and "torch" in sys.modules:
            team_end = start_second_team()
        elif team_end is not None and share < IDLE_SHARE:
            team_end.set()
            team_end = None


def core_times(tasks: Path) -> tuple[int, int]:
    """Nanoseconds that this process's threads ran, and that they waited for a core; 0 if Linux does not report them."""
    ran = waited = 0
    with suppress(OSError, ValueError):
        for task in os.listdir(tasks):
            with suppress(OSError):  # the thread has ended
                times = (tasks / task / "schedstat").read_text(encoding="ascii").split()
                ran, waited = ran + int(times[0]), waited + int(times[1])
    return ran, waited


def waiting_share(before: tuple[int, int], now: tuple[int, int]) -> float:
    """The share of waiting in the time between two `core_times`, from 0 to 1. A thread that ended takes its times
    along, so differences below 0 count as 0."""
    ran, waited = (max(0, after - earlier) for after, earlier in zip(now, before))
    return waited / (ran + waited) if waited else 0.0


def start_second_team() -> threading.Event:
    """Have more OpenMP threads than cores until the event is set."""
    end = threading.Event()
    threading.Thread(target=hold_second_team, args=(end,), name="second team", daemon=True).start()
    return end


def hold_second_team(end: threading.Event) -> None:
    """Calls libgomp itself: a thread that is inside of PyTorch when Python ends would abort the process."""
    loaded = ctypes.CDLL(None)
    if hasattr(loaded, "GOMP_parallel"):  # the OpenMP library that PyTorch has loaded
        do_nothing = ctypes.cast(loaded.free, ctypes.c_void_p)  # free(NULL), in each thread of the team
        loaded.GOMP_parallel(do_nothing, None, ctypes.c_uint(loaded.omp_get_num_procs()), ctypes.c_uint(0))
        end.wait()


def describe_waiting() -> str:
    """How threads wait in this process, such as `OMP_WAIT_POLICY=passive (requested)`."""
    chosen = [f"{name}={os.environ[name]}" for name in WAIT_VARIABLES if os.environ.get(name)]
    if any(thread.name == WATCHER for thread in threading.enumerate()):
        return f"they spin {SPIN_COUNT} times (auto: 100 times while other work needs the cores)"
    return f"{', '.join(chosen)} (requested)" if chosen else "as PyTorch's default (nothing is set)"
