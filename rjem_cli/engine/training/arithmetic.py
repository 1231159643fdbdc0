"""The arithmetic of a training run. The main process chooses it for all, and a resumed run keeps it: a run that changed
it would not be the same as an uninterrupted one."""

from pathlib import Path

import torch

from rjem_cli.config.common import RuntimeOptions
from rjem_cli.config.training import TrainConfig
from rjem_cli.engine.distributed import SINGLE, Distributed
from rjem_cli.engine.precision import choose_precision
from rjem_cli.engine.runtime import Runtime, start_runtime
from rjem_cli.engine.training.checkpointing import read_precision


def start_training_runtime(
    config: TrainConfig, checkpoint: Path | None = None, distributed: Distributed = SINGLE
) -> Runtime:
    """The runtime of a run that starts, or is resumed from `checkpoint`. Raises as `start_runtime` does, and DataError
    for a damaged checkpoint."""

    def choose(options: RuntimeOptions, device: torch.device) -> tuple[str, str]:
        trained = read_precision(checkpoint, device.type) if checkpoint else None
        if options.precision == "auto" and trained:
            return trained, "auto: as this run was trained so far"
        return choose_precision(options, device)

    def choose_for_all(options: RuntimeOptions, device: torch.device) -> tuple[str, str]:
        return distributed.broadcast(choose(options, device) if distributed.is_main else ("", ""))

    return start_runtime(config, choose=choose_for_all)
