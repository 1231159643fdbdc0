"""A training batch: every image keeps its own label, whatever is done to its pixels."""

import pytest
import torch

from rjem_cli.config.training import TrainConfig
from rjem_cli.engine.data.images import ImageSet, Splits
from rjem_cli.engine.runtime import start_runtime
from rjem_cli.engine.training.trainer import Trainer

LEVELS_PER_CLASS = 25


@pytest.mark.parametrize("step", [0, 3])
@pytest.mark.parametrize("augment_energy", [True, False])
def test_each_image_of_a_batch_has_its_own_label(tmp_path, step, augment_energy):
    labels = torch.arange(40) % 10
    pixels = (
        (LEVELS_PER_CLASS * labels)[:, None, None, None].expand(-1, 1, 8, 8).to(torch.uint8)
    )  # the level is the label
    images = ImageSet(pixels, labels, tuple("0123456789"))
    config = TrainConfig(
        depth=10, width=1, batch_size=16, px_weight=0, crop_pad=2, augment_energy=augment_energy, device="cpu"
    )
    trainer = Trainer(config, Splits("levels", images, images, images), start_runtime(config), tmp_path, fit_prior=None)
    trainer.step = step
    batch = trainer.next_batch()
    assert len(batch.labels.unique()) > 1
    for x in (batch.x, batch.x_energy):
        levels = (x.mean(dim=(1, 2, 3)) + 1) * 127.5
        assert torch.equal((levels / LEVELS_PER_CLASS).round().long(), batch.labels)
