"""Record what rjem computes, through its command line alone, and compare two recordings.

    python tests/golden/golden.py record before.json
    python tests/golden/golden.py record after.json --rjem '/path/to/other/.venv/bin/rjem'
    python tests/golden/golden.py compare before.json after.json

A recording trains two small networks on embedded data. It holds their weights and metrics, the bytes of `generate` in
each mode, the JSON of `attack`, `langevin`, `eval` and `compare`, and the values of every preset. It leaves out
durations, dates, paths, and digests of files that contain names of options. Two recordings of one tree on one
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
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from safetensors.numpy import load_file

PRESETS = ("cifar10-16", "cifar10-small", "jempp", "quickstart", "rjem", "robust", "standard", "svhn-small")
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
Leaves = dict[tuple[str, ...], str]  # values as JSON, by path: 1, 1.0 and true differ, and NaN equals itself


class RecordingError(Exception):
    """A known failure, worded as one line."""


class Recorder:
    """Runs commands in an empty folder with an RJEM_HOME of its own."""

    def __init__(self, rjem: list[str], folder: Path):
        self.rjem, self.folder, self.home = rjem, folder, folder / "home"
        dropped = ("RJEM_", "OMP_NUM_THREADS")  # the number of threads changes the last bits
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
        self.environment |= {"RJEM_HOME": str(self.home), "RJEM_OFFLINE": "1", "OMP_WAIT_POLICY": "passive"}
        if "PYTHONPATH" in os.environ:  # relative paths would mean another folder
            entries = os.environ["PYTHONPATH"].split(os.pathsep)
            self.environment["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, filter(None, entries)))

    def run(self, command: str) -> str:
        """The command's stdout. Raises RecordingError if it fails."""
        print(f"+ rjem {command}", file=sys.stderr, flush=True)
        words = [*self.rjem, *shlex.split(command)]
        done = subprocess.run(words, cwd=self.folder, env=self.environment, capture_output=True, text=True)
        if done.returncode:
            print(done.stderr, file=sys.stderr)
            raise RecordingError(f"rjem {command} failed with exit code {done.returncode}")
        return done.stdout

    def document(self, command: str) -> Any:
        return self.normalize(json.loads(self.run(f"{command} --json")))

    def normalize(self, value: Any) -> Any:
        """Without values that differ between runs."""
        if isinstance(value, dict):
            kept = {key: part for key, part in value.items() if key not in LEFT_OUT}
            if isinstance(checkpoint := kept.get("checkpoint"), dict):
                kept["checkpoint"] = {key: part for key, part in checkpoint.items() if key != "sha256"}
            return {self.normalize(key): self.normalize(part) for key, part in kept.items()}
        if isinstance(value, list):
            return [self.normalize(part) for part in value if not (isinstance(part, str) and part in LEFT_OUT)]
        if not isinstance(value, str) or re.fullmatch("[0-9a-f]{64}", value):
            return value
        return re.sub("[0-9a-f]{32,}", "DIGEST", value.replace(str(self.folder.resolve()), "FOLDER"))


def parse_command(text: str) -> list[str]:
    """The words of --rjem, with absolute paths because it runs in another folder. Raises RecordingError."""
    try:
        program, *words = shlex.split(text)
    except ValueError as error:
        raise RecordingError(f"--rjem {text!r} is not a command: {error}") from None
    path = shutil.which(program)
    if path is None:
        raise RecordingError(f"--rjem {text}: no program {program!r}")
    return [os.path.abspath(path), *(os.path.abspath(word) if os.path.isfile(word) else word for word in words)]


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def array_digest(array: np.ndarray) -> str:
    return f"{array.dtype} {array.shape} {sha256(np.ascontiguousarray(array).tobytes())}"


def record(rjem: list[str]) -> Recording:
    with tempfile.TemporaryDirectory() as folder:
        recorder = Recorder(rjem, Path(folder))
        recording: Recording = {"environment": recorder.normalize(json.loads(recorder.run("env --json"))["cpu"])}
        for preset in PRESETS:
            recording[f"config/{preset}"] = yaml.safe_load(recorder.run(f"train --preset {preset} --print-config"))
        for name, flags in DATA.items():
            recording[f"config/default for {name}"] = yaml.safe_load(recorder.run(f"train {flags} --print-config"))
        for name, flags in TRAINING.items():
            recording[f"training/{name}"] = recorder.document(f"train --run {name} {COMMON} {flags}")
            recording |= describe_run(recorder.home / "runs" / name, recorder, name)
        for name, flags in GENERATED.items():
            recorder.run(f"generate {NETWORK} -n 60 {flags} -o {name}.npz")
            with np.load(recorder.folder / f"{name}.npz") as arrays:
                recording[f"generate/{name}"] = {key: array_digest(arrays[key]) for key in ("arr_0", "labels", "seeds")}
        recorder.run(f"generate {NETWORK} -n 12 --shard 1/2 -o out")
        files = [path for path in sorted((recorder.folder / "out").iterdir()) if path.suffix in (".png", ".csv")]
        recording["generate/folder"] = {path.name: sha256(path.read_bytes()) for path in files}
        for name, command in DOCUMENTS.items():
            recording[name] = recorder.document(command)
        recording["langevin/energies.csv"] = list(
            csv.reader(io.StringIO((recorder.folder / "chains/energies.csv").read_text()))
        )
        return recording


def describe_run(run: Path, recorder: Recorder, name: str) -> Recording:
    """The metrics, weights and state of a run."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    files = {"weights": f"step-{STEPS:08d}.safetensors", "state": f"step-{STEPS:08d}.state.safetensors"}
    recording: Recording = {f"metrics/{name}": recorder.normalize(lines)}
    for kind, file in files.items():
        arrays = load_file(run / "checkpoints" / file)
        recording[f"{kind}/{name}"] = {key: array_digest(array) for key, array in sorted(arrays.items())}
    return recording


def flatten(value: Any, path: tuple[str, ...] = ()) -> Leaves:
    """Every leaf of a document."""
    if not isinstance(value, (dict, list)) or not value:
        return {path: json.dumps(value)}
    leaves: Leaves = {}
    for key, part in value.items() if isinstance(value, dict) else enumerate(value):
        leaves |= flatten(part, (*path, str(key)))
    return leaves


def rename_keys(first: Leaves, second: Leaves) -> tuple[Leaves, dict[tuple[str, str], int]]:
    """`first` with the names of `second`, and the number of values of each rename. A key is renamed if its old name is
    nowhere in `second`, its new one nowhere in `first`, and all values under both names are equal."""
    renames: dict[tuple[str, str], int] = {}
    while pair := next((pair for pair in find_candidates(first, second) if is_rename(*pair, first, second)), None):
        renames[pair] = sum(pair[0] in path for path in first)
        first = {replace_key(path, *pair): value for path, value in first.items()}
    return first, renames


def find_candidates(first: Leaves, second: Leaves) -> Iterator[tuple[str, str]]:
    """(old, new) for paths in one recording only that differ in one key. The index of a list is not a key."""
    gone, added = first.keys() - second.keys(), second.keys() - first.keys()
    for path in sorted(gone):
        for other in sorted(added):
            differing = [(a, b) for a, b in zip(path, other) if a != b] if len(path) == len(other) else []
            if len(differing) == 1 and not any(word.isdigit() for word in differing[0]):
                yield differing[0]


def is_rename(old: str, new: str, first: Leaves, second: Leaves) -> bool:
    if any(old in path for path in second) or any(new in path for path in first):
        return False
    renamed = {replace_key(path, old, new): value for path, value in first.items() if old in path}
    return all(value == second[path] for path, value in renamed.items() if path in second)


def replace_key(path: tuple[str, ...], old: str, new: str) -> tuple[str, ...]:
    return tuple(new if word == old else word for word in path)


def compare(before: Recording, after: Recording, log: Callable[[str], None] = print) -> bool:
    """Whether all values are equal apart from names of keys. `log` gets a readable report."""
    equal = True
    for name in sorted(before.keys() | after.keys()):
        if name not in before or name not in after:
            log(f"{name}: only in the {'second' if name in after else 'first'} recording")
            equal = False
            continue
        second = flatten(after[name])
        first, names = rename_keys(flatten(before[name]), second)
        changed = [path for path in first if path in second and first[path] != second[path]]
        gone, added = sorted(first.keys() - second.keys()), sorted(second.keys() - first.keys())
        if changed or gone or added:
            log(f"{name}: {len(changed)} changed, {len(gone)} gone, {len(added)} new of {len(first)} values")
            equal = False
        elif names:
            log(f"{name}: equal except for renamed keys")
        lines = [f"renamed {old} -> {new} ({count} values)" for (old, new), count in names.items()]
        lines += [f"{'.'.join(path)}: {first[path]} -> {second[path]}" for path in changed[:SHOWN]]
        lines += [f"{'.'.join(path)}: {first[path]} is gone" for path in gone[:SHOWN]]
        lines += [f"{'.'.join(path)}: {second[path]} is new" for path in added[:SHOWN]]
        for line in lines:
            log(f"  {line}")
    log("equal" if equal else "the recordings differ")
    return equal


def read_recording(path: Path) -> Recording:
    """Raises RecordingError for a file that is missing, damaged or empty."""
    try:
        recording = json.loads(path.read_text())
    except OSError as error:
        raise RecordingError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise RecordingError(f"{path} is not a recording: {error}; record it again") from None
    if not isinstance(recording, dict) or not recording:
        raise RecordingError(f"{path} is not a recording: it is empty or holds no sections; record it again")
    return recording


def check_writable(path: Path) -> None:
    """Fail before the commands run. Raises RecordingError."""
    if path.is_dir():
        raise RecordingError(f"cannot write {path}: it is a folder")
    if not path.parent.is_dir():
        raise RecordingError(f"cannot write {path}: there is no folder {path.parent}")
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent):
            pass
        if path.exists():
            path.open("r+").close()
    except OSError as error:
        raise RecordingError(f"cannot write {path}: {error.strerror}") from None


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0 for equal recordings, 1 for different ones, 2 for an error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record", help="run the commands and write their results to FILE")
    recording.add_argument("file", type=Path)
    recording.add_argument("--rjem", default=f"{sys.executable} -m rjem_cli", help="the command to record")
    comparing = commands.add_parser("compare", help="compare two recordings")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    options = parser.parse_args(arguments)
    try:
        if options.command == "record":
            check_writable(options.file)
            options.file.write_text(json.dumps(record(parse_command(options.rjem)), indent=1))
            return 0
        return 0 if compare(read_recording(options.before), read_recording(options.after)) else 1
    except RecordingError as error:
        print(f"golden: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
