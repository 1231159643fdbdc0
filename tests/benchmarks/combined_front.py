"""How should the combined mode sample? One setting changes at a time; each is scored beside energy, the prior and the
paper's setting.

    python -m tests.benchmarks.combined_front cifar10-16 --reference cifar10.tar:train -n 1000 --folder front

Samples are kept in the folder, so a stopped call resumes. The last lines are the table of `rjem compare`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

BASE = {"attack-eps": 0.1, "attack-steps": 5, "contrast": 0.9, "attack-confidence": 1, "sgld-steps": 50}


def flags(options: dict[str, float]) -> list[str]:
    return [text for name, value in options.items() for text in (f"--{name}", f"{value:g}")]


CHANGES: dict[str, dict[str, float]] = {
    "base": {},
    "eps-0.05": {"attack-eps": 0.05},
    "eps-0.2": {"attack-eps": 0.2},
    "attack-20": {"attack-steps": 20},
    "contrast-0.8": {"contrast": 0.8},
    "contrast-1": {"contrast": 1},
    "confidence-0.5": {"attack-confidence": 0.5},
    "confidence-0.9": {"attack-confidence": 0.9},
    "eps-0.2-confidence-0.5": {"attack-eps": 0.2, "attack-confidence": 0.5},
    "chain-10": {"sgld-steps": 10},
    "chain-20": {"sgld-steps": 20},
    "chain-100": {"sgld-steps": 100},
    "chain-20-confidence-0.5": {"sgld-steps": 20, "attack-confidence": 0.5},
    "chain-20-eps-0.05": {"sgld-steps": 20, "attack-eps": 0.05},
    "chain-20-eps-0.05-contrast-1": {"sgld-steps": 20, "attack-eps": 0.05, "contrast": 1},
    "prior-0.8": {"prior-temperature": 0.8},
    "prior-1.2": {"prior-temperature": 1.2},
}
SETTINGS = {
    "prior": ["--sgld-steps", "0"],
    "energy-chain-50": ["--sgld-steps", "50"],
    "energy-chain-10": ["--sgld-steps", "10"],
    "energy-chain-20": ["--sgld-steps", "20"],
    "paper": ["--mode", "combined", "--paper"],
    **{f"combined-{name}": ["--mode", "combined", *flags(BASE | change)] for name, change in CHANGES.items()},
}


def rjem(*arguments: str) -> None:
    command = [sys.executable, "-m", "rjem_cli", *arguments]
    if code := subprocess.run(command).returncode:
        sys.exit(code)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--reference", required=True)
    parser.add_argument("--folder", type=Path, default=Path("front"))
    parser.add_argument("--only", nargs="+", choices=SETTINGS, default=list(SETTINGS), metavar="SETTING")
    parser.add_argument("--features", default="judge")
    parser.add_argument("-n", default="1000")
    options = parser.parse_args()
    options.folder.mkdir(exist_ok=True)
    files = []
    for name in options.only:
        files.append(str(options.folder / f"{name}.npz"))
        if not Path(files[-1]).exists():
            rjem("generate", options.model, "-n", options.n, *SETTINGS[name], "-o", files[-1], "-q")
    scoring = ("--reference", options.reference, "--features", options.features, "--allow-few", "-q")
    rjem("compare", *files, *scoring)


if __name__ == "__main__":
    main()
