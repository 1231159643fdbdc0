"""The results of a run on disk, to compare with another run."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from rjem_cli.engine.models.checkpoint import state_path
from rjem_cli.paths import checkpoints_in


def metrics_of(run_dir: Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl, without images_per_second."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "images_per_second"} for line in lines]


def result_digests(run_dir: Path) -> list[str]:
    """Digests of the last checkpoint, of its state, and of the metrics."""
    last = checkpoints_in(run_dir)[-1]
    contents = last.read_bytes(), state_path(last).read_bytes(), json.dumps(metrics_of(run_dir)).encode()
    return [hashlib.sha256(content).hexdigest() for content in contents]
