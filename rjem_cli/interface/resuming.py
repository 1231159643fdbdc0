"""Going on with a run that was stopped, and the words for how to."""

from __future__ import annotations

from pathlib import Path

from rjem_cli import paths
from rjem_cli.interface.console import Console
from rjem_cli.interface.settings import Layer


def newest_checkpoint(run_dir: Path, console: Console) -> Path:
    """The newest that is whole; says which are not. Raises DataError where there is none."""
    from rjem_cli.engine.training.checkpoints import newest_valid

    return newest_valid(run_dir, console.say)


def run_layer(checkpoint: Path) -> Layer:
    """A resumed run starts from the config inside its checkpoint instead of a preset."""
    from rjem_cli.engine.model.checkpoint import placed, read_info

    info = placed(read_info(checkpoint), checkpoint)
    return Layer(f"run {checkpoint.parent.parent.name}", info.config.to_dict())


def how_to_go_on(run_dir: Path) -> str:
    name = run_dir.name if run_dir.parent in (paths.runs_dir(), paths.runs_dir().resolve()) else str(run_dir)
    return f"go on with: rjem train --resume {name}"
