"""Record what rjem computes, through its command line alone, and compare two recordings.

    python tests/golden/golden.py record before.json
    python tests/golden/golden.py record after.json --rjem '/path/to/other/.venv/bin/rjem'
    python tests/golden/golden.py compare before.json after.json

A recording holds, for two small networks that it trains itself on embedded data: their weights and metrics, the bytes
of `generate` in each mode, and the JSON of `attack`, `langevin`, `eval` and `compare`; and the values of every preset.
Durations, dates, paths, and digests of files that hold names of options are left out. Two recordings of one tree on one
machine are equal. `compare` prints what differs, lists renamed keys, and exits with 1 if a value differs.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from safetensors.numpy import load_file

PRESETS = ("cifar10-small", "jempp", "quickstart", "rjem", "robust", "standard", "svhn-small")
DATA = {"no data": "", "digits": "--dataset digits", "cifar10": "--dataset cifar10", "svhn": "--dataset svhn"}
STEPS = 30
TRAINING = {
    "batch-sgd": "--norm-layer batch --optimizer sgd --lr 0.02 --crop-pad 1 --flip --noise-std 0.01 --energy-l2 0.01",
    "group-adam": "--norm-layer group --norm l2 --adv-eps 0.5 --bn-statistics separate --no-augment-energy",
}
COMMON = (
    f"--preset quickstart --dataset digits --device cpu --precision fp32 --steps {STEPS} --batch-size 32 --pgd-steps 3 "
    "--sgld-steps 4 --buffer-size 100 --warmup-steps 5 --log-every 5 --checkpoint-every 10 --sample-every 15 "
    "--sample-steps 6 --attack-steps 4 --eval-limit 100"
)
NETWORK = next(iter(TRAINING))
GENERATED = {
    "energy": "--mode energy --noise-std 0.05",
    "attack": "--mode attack",
    "combined": "--mode combined --class 3,8",
    "unconditional": "--class none --init noise --sgld-steps 5",
    "data": "--init data --sgld-steps 2",
    "buffer": "--init buffer --sgld-steps 2 --seed 7",
}
DOCUMENTS = {
    "attack/pgd": f"attack {NETWORK} --limit 60 --eps 0.1,0.3 --steps 5 --restarts 2",
    "attack/apgd": f"attack {NETWORK} --limit 60 --eps 0.2 --method apgd --steps 12 --loss margin",
    "attack/targeted": "attack group-adam --limit 60 --eps 0.5 --steps 5 --targeted random --iterate last",
    "langevin": f"langevin {NETWORK} -n 6 --sgld-steps 8 --record 4 --noise-std 0.02 --class 1,7 -o chains",
    "eval/samples": "eval energy.npz --allow-few --features judge --is-splits 2",
    "eval/checkpoint": f"eval {NETWORK} --limit 60 --eps 0.1 --steps 3 --samples 40 --ood noise,constant",
    "compare": f"compare {' '.join(TRAINING)} energy.npz --mode energy,combined --samples 80 --limit 40 --steps 2 "
    "--is-splits 2 --allow-few --features judge --published",
}
# differs between runs, or is a digest of a file that holds names of options
LEFT_OUT = {
    "time",
    "seconds",
    "seconds_per_1000",
    "images_per_second",
    "device",
    "versions",
    "path",
    "checkpoint_sha256",
}
LEFT_OUT |= {"config_sha256", "request", "weights_sha256", "best_checkpoint", "grid", "rjem"}

SHOWN = 10  # differences of each kind and section

Recording = dict[str, Any]


class Recorder:
    """Runs commands in an empty folder with an RJEM_HOME of its own."""

    def __init__(self, rjem: list[str], folder: Path):
        self.rjem, self.folder, self.home = rjem, folder, folder / "home"
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RJEM_")}
        self.environment = {**kept, "RJEM_HOME": str(self.home), "RJEM_OFFLINE": "1", "OMP_WAIT_POLICY": "passive"}

    def run(self, command: str) -> str:
        """Its stdout. Raises SystemExit with its stderr if it fails."""
        print(f"+ rjem {command}", file=sys.stderr, flush=True)
        words = [*self.rjem, *shlex.split(command)]
        done = subprocess.run(words, cwd=self.folder, env=self.environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{done.stderr}\nrjem {command} exited with {done.returncode}")
        return done.stdout

    def document(self, command: str) -> Any:
        return self.plain(json.loads(self.run(f"{command} --json")))

    def plain(self, value: Any) -> Any:
        """Without what differs between runs."""
        if isinstance(value, dict):
            kept = {key: part for key, part in value.items() if key not in LEFT_OUT}
            if isinstance(checkpoint := kept.get("checkpoint"), dict):
                kept["checkpoint"] = {key: part for key, part in checkpoint.items() if key != "sha256"}
            return {self.plain(key): self.plain(part) for key, part in kept.items()}
        if isinstance(value, list):
            return [self.plain(part) for part in value if not (isinstance(part, str) and part in LEFT_OUT)]
        if not isinstance(value, str) or re.fullmatch("[0-9a-f]{64}", value):
            return value
        return re.sub("[0-9a-f]{32,}", "DIGEST", value.replace(str(self.folder.resolve()), "FOLDER"))


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def array_digest(array: np.ndarray) -> str:
    return f"{array.dtype} {array.shape} {sha256(np.ascontiguousarray(array).tobytes())}"


def record(rjem: list[str]) -> Recording:
    with tempfile.TemporaryDirectory() as folder:
        recorder = Recorder(rjem, Path(folder))
        found: Recording = {"environment": recorder.plain(json.loads(recorder.run("env --json"))["cpu"])}
        for preset in PRESETS:
            found[f"config/{preset}"] = yaml.safe_load(recorder.run(f"train --preset {preset} --print-config"))
        for name, flags in DATA.items():
            found[f"config/default for {name}"] = yaml.safe_load(recorder.run(f"train {flags} --print-config"))
        for name, flags in TRAINING.items():
            found[f"training/{name}"] = recorder.document(f"train --run {name} {COMMON} {flags}")
            found |= trained(recorder.home / "runs" / name, recorder, name)
        for name, flags in GENERATED.items():
            recorder.run(f"generate {NETWORK} -n 60 {flags} -o {name}.npz")
            with np.load(recorder.folder / f"{name}.npz") as arrays:
                found[f"generate/{name}"] = {key: array_digest(arrays[key]) for key in ("arr_0", "labels", "seeds")}
        recorder.run(f"generate {NETWORK} -n 12 --shard 1/2 -o out")
        files = [path for path in sorted((recorder.folder / "out").iterdir()) if path.suffix in (".png", ".csv")]
        found["generate/folder"] = {path.name: sha256(path.read_bytes()) for path in files}
        for name, command in DOCUMENTS.items():
            found[name] = recorder.document(command)
        found["langevin/energies.csv"] = list(
            csv.reader(io.StringIO((recorder.folder / "chains/energies.csv").read_text()))
        )
        return found


def trained(run: Path, recorder: Recorder, name: str) -> Recording:
    """Metrics, weights and state of a run."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    files = {"weights": f"step-{STEPS:08d}.safetensors", "state": f"step-{STEPS:08d}.state.safetensors"}
    found = {f"metrics/{name}": recorder.plain(lines)}
    for kind, file in files.items():
        arrays = load_file(run / "checkpoints" / file)
        found[f"{kind}/{name}"] = {key: array_digest(array) for key, array in sorted(arrays.items())}
    return found


def flat(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(path, value) of every leaf."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if parts is None or not value:
        yield path, value
        return
    for key, part in parts:
        yield from flat(part, (*path, str(key)))


Leaves = dict[tuple[str, ...], Any]


def rename_keys(first: Leaves, second: Leaves) -> tuple[Leaves, dict[tuple[str, str], int]]:
    """`first` with the names of `second`, and how many values each rename concerns. A key counts as renamed if its old
    name is nowhere in `second`, its new one nowhere in `first`, and all values under both names are equal."""
    found: dict[tuple[str, str], int] = {}
    while pair := next((pair for pair in candidates(first, second) if is_rename(*pair, first, second)), None):
        old, new = pair
        found[pair] = sum(old in path for path in first)
        first = {replaced(path, old, new): value for path, value in first.items()}
    return first, found


def candidates(first: Leaves, second: Leaves) -> Iterator[tuple[str, str]]:
    """(old, new) of paths in one recording only that differ in one key; an index of a list is no key."""
    gone, added = first.keys() - second.keys(), second.keys() - first.keys()
    for path in sorted(gone):
        for other in sorted(added):
            differing = [(a, b) for a, b in zip(path, other) if a != b] if len(path) == len(other) else []
            if len(differing) == 1 and not any(word.isdigit() for word in differing[0]):
                yield differing[0]


def is_rename(old: str, new: str, first: Leaves, second: Leaves) -> bool:
    if any(old in path for path in second) or any(new in path for path in first):
        return False
    mapped = [(path, replaced(path, old, new)) for path in first if old in path]
    return all(first[path] == second[other] for path, other in mapped if other in second)


def replaced(path: tuple[str, ...], old: str, new: str) -> tuple[str, ...]:
    return tuple(new if word == old else word for word in path)


def compare(before: Recording, after: Recording, say: Callable[[str], None] = print) -> bool:
    """Whether all values are equal apart from names of keys. `say` gets a readable report."""
    same = True
    for name in sorted(before.keys() | after.keys()):
        if name not in before or name not in after:
            say(f"{name}: only in the {'second' if name in after else 'first'} recording")
            same = False
            continue
        second = dict(flat(after[name]))
        first, names = rename_keys(dict(flat(before[name])), second)
        changed = [path for path in first if path in second and first[path] != second[path]]
        gone, added = sorted(first.keys() - second.keys()), sorted(second.keys() - first.keys())
        if changed or gone or added:
            counts = f"{len(changed)} changed, {len(gone)} gone, {len(added)} new"
            say(f"{name}: {counts} of {len(first)} values")
            same = False
        elif names:
            say(f"{name}: equal except for renamed keys")
        lines = [f"renamed {old} -> {new} ({count} values)" for (old, new), count in names.items()]
        lines += [f"{'.'.join(path)}: {first[path]!r} -> {second[path]!r}" for path in changed[:SHOWN]]
        lines += [f"{'.'.join(path)}: {first[path]!r} is gone" for path in gone[:SHOWN]]
        lines += [f"{'.'.join(path)}: {second[path]!r} is new" for path in added[:SHOWN]]
        for line in lines:
            say(f"  {line}")
    say("equal" if same else "the recordings differ")
    return same


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record", help="run the commands and write what they gave to FILE")
    recording.add_argument("file", type=Path)
    recording.add_argument("--rjem", default=f"{sys.executable} -m rjem_cli", help="the command to record")
    comparing = commands.add_parser("compare", help="compare two recordings")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    given = parser.parse_args()
    if given.command == "record":
        given.file.write_text(json.dumps(record(shlex.split(given.rjem)), indent=1))
        return 0
    return 0 if compare(*(json.loads(path.read_text()) for path in (given.before, given.after))) else 1


if __name__ == "__main__":
    sys.exit(main())
