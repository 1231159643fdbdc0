"""Runs the parts one after another. `python -m tests.benchmarks.gpu --help` lists the options."""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from rjem_cli.engine.runtime import choose_device
from tests.benchmarks import gpu
from tests.benchmarks.gpu import correctness, cuda_graph, levers, memory_use, precisions, processes, throughput
from tests.benchmarks.gpu.parts import Bench, Part, Result, log, run_part
from tests.benchmarks.gpu.report import driver_version, git_commit, write_report
from tests.benchmarks.gpu.sizes import SIZES

KILL_SECONDS = 750.0  # NCCL's timeout of ten minutes, and the start

PARTS = (
    Part("tests", "does the GPU compute what the CPU does?", correctness.run),
    Part("speed", "steps per second, and the share of the measured peak", throughput.run, 2.5),
    Part("levers", "each optimization alone, on and off in turns", levers.run, 2.5),
    Part("graph", "chains as CUDA graphs", cuda_graph.run, 0.8),
    Part("precision", "training in each precision from the same seed", precisions.run, 1.2),
    Part("memory", "peak memory beside its estimate", memory_use.run, 1.2),
    Part("ranks", "two processes against one", processes.run_ranks, 1.5),
    Part("kill", "a killed process ends the other", processes.run_kill, seconds=KILL_SECONDS, by_default=False),
)


def probe(bench: Bench) -> None:
    """The row of the machine. Raises AbsentError for a device that does not exist."""
    device, _ = choose_device(str(bench.device))
    properties = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
    bench.measure({}, lambda: describe_device(bench, properties))


def describe_device(bench: Bench, properties: Any) -> dict[str, Any]:
    threads = f"{torch.get_num_threads()} threads"
    if properties is None:
        return {"device": f"{bench.device}, {threads}", "torch": torch.__version__}
    return {
        "device": f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, {torch.cuda.device_count()} visible",
        "capability": f"{properties.major}.{properties.minor}, {properties.multi_processor_count} multiprocessors",
        "driver": driver_version(),
        "torch": f"{torch.__version__}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}",
    }


def parse_options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.gpu", description=gpu.__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("gpu-results"), help="folder of gpu.json and gpu.md")
    parser.add_argument("--seconds", type=float, default=600, help="of all parts together")
    default = ",".join(part.name for part in PARTS if part.by_default)
    parser.add_argument("--only", default=default, help=f"of {', '.join(part.name for part in PARTS)}")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu")
    parser.add_argument("--sizes", choices=SIZES, help="default: full with CUDA, small on a CPU")
    options = parser.parse_args(arguments)
    unknown = set(options.only.split(",")) - {part.name for part in PARTS}
    if unknown:
        parser.error(f"--only {options.only}: unknown part {', '.join(sorted(unknown))}")
    options.sizes = options.sizes or ("small" if options.device == "cpu" else "full")
    return options


def run_parts(options: argparse.Namespace, document: dict[str, Any], folder: Path) -> list[Result]:
    """Time that a part does not use goes to those after it."""
    selected = [part for part in PARTS if part.name in options.only.split(",")]
    deadline, results = time.monotonic() + options.seconds, []
    for index, part in enumerate(selected):
        share = part.weight / sum(other.weight for other in selected[index:])
        seconds = part.seconds or max(0.0, share * (deadline - time.monotonic()))
        results.append(run_part(part, options.device, SIZES[options.sizes], seconds, folder))
        write_report(options.out, document, results)
        last = results[-1]
        log(f"{part.name}: {last.status} in {last.seconds:.0f} s{f': {last.reason}' if last.reason else ''}")
    return results


def main(arguments: list[str] | None = None) -> int:
    """0 if no part failed."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parse_options(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        machine = run_part(Part("machine", "", probe), options.device, SIZES[options.sizes], 120, Path(folder))
        if machine.status != "done":
            log(f"--device {options.device}: {machine.reason}")
            return 2
        document = {
            "command": shlex.join(["python", "-m", "tests.benchmarks.gpu", *arguments]),
            "commit": git_commit(),
            **machine.rows[0],
            "sizes": options.sizes,
            "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        }
        results = run_parts(options, document, Path(folder))
    log(f"wrote {options.out / 'gpu.json'} and {options.out / 'gpu.md'}")
    return int(any(result.status == "failed" for result in results))


if __name__ == "__main__":
    sys.exit(main())
