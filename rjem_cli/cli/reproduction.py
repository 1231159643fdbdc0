"""The runs behind the paper's table, as configs: one preset, and what makes each model of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from rjem_cli import paths
from rjem_cli.config import SCALES, CompareConfig, TrainConfig
from rjem_cli.config.sources import ConfigSource, preset_source, resolve

MODELS: dict[str, dict[str, Any]] = {
    "jempp": {"pgd_steps": 0},  # the energy model without the attack
    "robust": {"px_weight": 0.0},  # the attack without the energy model
    "rjem": {},
}


def run_configs(config: CompareConfig) -> list[tuple[str, str, TrainConfig]]:
    """(the run's name, its model, its settings) for each seed and model: the same network, data, seed and budget."""
    wanted: dict[str, Any] = {"data": paths.absolute(config.data), "test_data": paths.absolute(config.test_data)}
    wanted |= {
        "dataset": config.dataset,
        "steps": config.train_steps,
        "device": config.device,
        "eval_limit": config.limit,
    }
    given = {name: value for name, value in wanted.items() if value is not None}
    place = [Path(config.data).name.split(".")[0]] if config.data else [config.dataset] if config.dataset else []
    length = [f"{config.train_steps}-steps"] if config.train_steps else []
    found = []
    base = preset_source(SCALES[config.scale].preset)
    for seed in range(config.seeds):
        for model, changes in MODELS.items():
            sources = [base, ConfigSource("--reproduce", {**given, **changes, "seed": seed})]
            name = "-".join(["table1", config.scale, *place, *length, model, str(seed)])
            found.append((name, model, replace(resolve(TrainConfig, sources).config, run=name)))
    return found
