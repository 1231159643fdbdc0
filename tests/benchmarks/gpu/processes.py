"""Two processes by torchrun, one GPU each: their images per second and weights against one process, and what happens
when one is killed."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from rjem_cli.paths import checkpoints_in
from tests.benchmarks.gpu.parts import PRETEND, Bench, Row, Skipped
from tests.benchmarks.rank_throughput import noise_images
from tests.image_files import write

ROOT = Path(__file__).parents[3]
WEIGHT_LIMIT = 1e-3
EQUAL_STEPS = 5
START_SECONDS, END_SECONDS = 60, 11 * 60  # NCCL gives up after ten minutes
LOST = "another process of this run has ended or does not answer; resume the run with --resume"


def run_ranks(bench: Bench) -> None:
    need_devices(bench)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        write(noise_images(), home / "noise")
        norms = ("group", "batch") if bench.on_cuda else ("group",)
        for norm in norms:
            bench.measure(
                {"what": f"weights after {EQUAL_STEPS} steps", "norm": norm},
                partial(compare_weights, bench, norm, home),
            )
        for norm in norms:
            bench.measure({"what": "images per second", "norm": norm}, partial(compare_rates, bench, norm, home))


def need_devices(bench: Bench) -> None:
    if bench.sizes.processes < 2:
        raise Skipped("not at these sizes")
    if bench.on_cuda and torch.cuda.device_count() < 2 and not bench.is_pretend:
        raise Skipped("one GPU only")


# --- runs ---


def launch(bench: Bench, processes: int, home: Path, *flags: object) -> subprocess.Popen[str]:
    """`rjem train` in one process, or under torchrun."""
    torchrun = ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m", "--"]
    modules = [PRETEND] if bench.is_pretend else []
    network = bench.sizes.rank_network
    command = [sys.executable, "-m", *(torchrun if processes > 1 else []), *modules, "rjem_cli", "train"]
    command += ["--data", home / "noise", "--depth", network.depth, "--width", network.width]
    command += ["--batch-size", bench.sizes.rank_batch, "--buffer-size", 2 * bench.sizes.rank_batch]
    command += [
        "--sample-steps",
        1,
        "--attack-steps",
        1,
        "--eval-limit",
        1,
        "--val-fraction",
        0,
        "--lr",
        0.02,
        "--optimizer",
        "sgd",
    ]
    command += ["--device", bench.device.type, *flags]
    threads = os.environ.get("OMP_NUM_THREADS", "1")
    environment = {**os.environ, "RJEM_HOME": str(home), "OMP_NUM_THREADS": threads}
    return subprocess.Popen(
        list(map(str, command)), cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen[str], seconds: float) -> tuple[int, list[str]]:
    """(exit code, rjem's lines of errors). Raises TimeoutExpired after ending the processes."""
    try:
        _, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.terminate()  # torchrun ends its processes
        raise
    return process.returncode, [line for line in err.splitlines() if line.startswith("rjem: ")]


def train(bench: Bench, processes: int, home: Path, name: str, *flags: object) -> Path:
    """The folder of a run. Raises RuntimeError if it fails."""
    process = launch(bench, processes, home, "--run", name, *flags)
    code, lines = finish(process, max(30.0, bench.seconds_left()))
    if code:
        raise RuntimeError(f"{processes} processes ended with {code}: {' '.join(lines)}")
    return home / "runs" / name


def compare_weights(bench: Bench, norm: str, home: Path) -> Row:
    """Without the training attack, whose steps follow the sign of a last bit."""
    flags = ("--norm-layer", norm, "--precision", "fp32", "--pgd-steps", 0, "--steps", EQUAL_STEPS, "--warmup-steps", 1)
    flags = (*flags, "--sgld-steps", 2, "--log-every", 1)
    one, two = (
        safetensors.torch.load_file(checkpoints_in(train(bench, count, home, f"{norm}-{count}", *flags))[-1])
        for count in (1, bench.sizes.processes)
    )
    difference = max(float((one[name] - two[name]).abs().max()) for name in one)
    row: Row = {"precision": "fp32", "difference": difference, "limit": WEIGHT_LIMIT}
    if not difference <= WEIGHT_LIMIT:
        row["error"] = f"weights differ by {difference:.2g}"
    return row


def compare_rates(bench: Bench, norm: str, home: Path) -> Row:
    sizes = bench.sizes
    precision = "bf16" if bench.on_cuda else "fp32"
    flags: tuple[Any, ...] = ("--norm-layer", norm, "--precision", precision)
    flags = (*flags, "--steps", sizes.rank_steps, "--log-every", max(2, sizes.rank_steps // 8))
    flags = (*flags, "--pgd-steps", sizes.pgd_steps, "--sgld-steps", sizes.sgld_steps)
    rates = [
        images_per_second(train(bench, count, home, f"rate-{norm}-{count}", *flags)) for count in (1, sizes.processes)
    ]
    return {
        "precision": precision,
        "one, images/s": rates[0],
        "two, images/s": rates[1],
        "times as fast": rates[1] / rates[0],
    }


def images_per_second(run_dir: Path) -> float:
    """Without the first line, which includes the start."""
    lines = list(map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines()))
    rates = [line["images_per_second"] for line in lines if "images_per_second" in line]
    return statistics.median(rates[1:] or rates)


# --- a lost process ---


def run_kill(bench: Bench) -> None:
    need_devices(bench)
    for rank in (1,) if bench.on_cuda else (1, 0):
        bench.measure({"killed rank": rank}, partial(kill_rank, bench, rank))


def kill_rank(bench: Bench, rank: int) -> Row:
    """Seconds until the run ends, and its error. Only the main process reports."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        write(noise_images(), home / "noise")
        flags = ("--norm-layer", "group", "--steps", 10**6, "--checkpoint-every", 5, "--sample-every", 10**6)
        flags = (*flags, "--pgd-steps", 1, "--sgld-steps", 1)
        process = launch(bench, bench.sizes.processes, home, "--run", "lost", *flags)
        try:
            wait_for(home / "runs" / "lost" / "checkpoints" / "step-00000005.safetensors", process)
            os.kill(ranks_of(process.pid)[rank], signal.SIGKILL)
            started = time.monotonic()
            code, lines = finish(process, END_SECONDS)
        finally:
            process.terminate()
    row = {"seconds to end": time.monotonic() - started, "exit code": code, "message": " ".join(lines)}
    expected = [LOST] if rank else []
    is_right = code != 0 and len(lines) == len(expected) and all(part in line for part, line in zip(expected, lines))
    return row if is_right else {**row, "error": "not one line about a lost process, or exit code 0"}


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    """Raises TimeoutError after START_SECONDS, RuntimeError if the process ends before."""
    deadline = time.monotonic() + START_SECONDS
    while not path.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"no {path.name} after {START_SECONDS} s")
        if process.poll() is not None:
            raise RuntimeError(f"the run ended with {process.returncode} before it was killed")
        time.sleep(0.1)


def ranks_of(launcher: int) -> list[int]:
    """The processes that torchrun started, from Linux's /proc."""
    return [int(pid) for pid in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()]
