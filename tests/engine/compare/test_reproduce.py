"""The plan of a reproduction names the cost that training has."""

from __future__ import annotations

import pytest
import torch

from rjem_cli.config.common import RuntimeOptions
from rjem_cli.config.scoring import CompareConfig
from rjem_cli.config.training import TrainConfig
from rjem_cli.engine.compare.measure import count_steps
from rjem_cli.engine.compare.reproduce import build_trainings, passes_per_image
from rjem_cli.engine.data.load import load_digit_splits
from rjem_cli.engine.models.prior import fit_prior
from rjem_cli.engine.runtime import start_runtime
from rjem_cli.engine.training.trainer import Trainer


@pytest.mark.parametrize("changes", [{}, {"pgd_steps": 0}, {"px_weight": 0.0}, {"bn_statistics": "separate"}])
def test_passes_are_those_of_a_training_step(tmp_path, changes):
    """Images that go through the network with gradients, per image of a batch."""
    tiny = {"depth": 10, "width": 1, "batch_size": 8, "pgd_steps": 3, "sgld_steps": 2, "buffer_size": 16, "steps": 2}
    config = TrainConfig(**{**tiny, **changes})
    runtime = start_runtime(RuntimeOptions(device="cpu"))
    splits = load_digit_splits(0.1, shifted=False)
    trainer = Trainer(config, splits, runtime, tmp_path, lambda: fit_prior(splits.train))
    batches = []

    def count(module, inputs, output):
        if torch.is_grad_enabled():
            batches.append(len(inputs[0]))

    for network in (trainer.model, trainer.frozen.network):
        network.register_forward_hook(count)
    trainer.train_step()
    assert sum(batches) == passes_per_image(config) * config.batch_size


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({"dataset": "cifar10", "epochs": 3.0, "val_fraction": 0.1}, 3 * (45_000 // 64)),
        ({"dataset": "cifar10", "steps": 7}, 7),
        ({"dataset": "cifar10", "data": "images.tar", "epochs": 3.0}, None),
    ],
)
def test_the_length_of_a_plan_is_known_before_images_are_read(changes, steps):
    assert count_steps(TrainConfig(**{"batch_size": 64, **changes})) == steps


def test_models_differ_in_the_attack_and_the_energy_alone():
    jempp, robust, rjem = (training.config.to_dict() for training in build_trainings(CompareConfig(reproduce="table1")))
    assert {key for key in rjem if jempp[key] != rjem[key]} == {"run", "pgd_steps"} and jempp["pgd_steps"] == 0
    assert {key for key in rjem if robust[key] != rjem[key]} == {"run", "px_weight"} and robust["px_weight"] == 0


def test_a_run_is_named_after_its_images_seed_and_length(tmp_path, monkeypatch):
    (tmp_path / "pets.v2").mkdir()
    monkeypatch.chdir(tmp_path / "pets.v2")
    config = CompareConfig(reproduce="table1", data=".", train_steps=5, seeds=2)
    assert [training.name for training in build_trainings(config)][-1] == "table1-quickstart-pets-5-steps-rjem-1"
