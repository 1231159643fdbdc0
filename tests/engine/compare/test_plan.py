"""The cost that a plan names is the cost that training has."""

from __future__ import annotations

import pytest
import torch

from rjem_cli.config import RuntimeOptions, TrainConfig
from rjem_cli.engine.compare.reproduce import known_steps, passes_an_image
from rjem_cli.engine.data.digits import digit_splits
from rjem_cli.engine.runtime import start_runtime
from rjem_cli.engine.training.trainer import Trainer


@pytest.mark.parametrize("changes", [{}, {"pgd_steps": 0}, {"px_weight": 0.0}, {"bn_statistics": "separate"}])
def test_passes_are_those_of_a_training_step(tmp_path, changes):
    """Images through the network with gradients, per image of a batch."""
    tiny = {"depth": 10, "width": 1, "batch_size": 8, "pgd_steps": 3, "sgld_steps": 2, "buffer_size": 16, "steps": 2}
    config = TrainConfig(**{**tiny, **changes})
    trainer = Trainer(
        config,
        digit_splits(0.1, shifted=False),
        start_runtime(RuntimeOptions(device="cpu")),
        tmp_path,
        lambda progress: None,
    )
    passed = []

    def count(module, inputs, output):
        if torch.is_grad_enabled():
            passed.append(len(inputs[0]))

    for network in (trainer.model, trainer.frozen.network):
        network.register_forward_hook(count)
    trainer.train_step()
    assert sum(passed) == passes_an_image(config) * config.batch_size


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({"dataset": "cifar10", "epochs": 3.0, "val_fraction": 0.1}, 3 * (45_000 // 64)),
        ({"dataset": "cifar10", "steps": 7}, 7),
        ({"dataset": "cifar10", "data": "images.tar", "epochs": 3.0}, None),
    ],
)
def test_the_length_of_a_plan_is_known_before_images_are_read(changes, steps):
    assert known_steps(TrainConfig(**{"batch_size": 64, **changes})) == steps
