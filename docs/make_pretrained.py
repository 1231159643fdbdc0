"""Makes a pretrained model of a run on CIFAR-10, in the package's folder of pretrained models:

python docs/make_pretrained.py RUN cifar10-16 [attack_eps=0.1 ...]

The run was trained with --val-fraction 0 on `--data`, an archive of CIFAR-10 in class folders. The model is recorded as
one of the built-in data set of the same images, without paths. `option=value` changes how it samples by default. The
sha256 in card.yaml is updated; the rest of the card is written by hand.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import torch
import yaml

from rjem_cli import paths
from rjem_cli.config.training import SamplingOptions, TrainConfig
from rjem_cli.engine.data.images import ImageSet
from rjem_cli.engine.data.load import load_splits, resize
from rjem_cli.engine.data.remote_file import sha256_hex
from rjem_cli.engine.models.checkpoint import CONFIG_FILE, checkpoint_tensors, load_checkpoint, write_checkpoint
from rjem_cli.engine.training.run import SUMMARY_FILE
from rjem_cli.files import write_atomically, write_json

CHANNEL_MEANS = torch.tensor([0.49139968, 0.48215841, 0.44653091])  # of CIFAR-10's training images, as published


def load_cifar10(config: TrainConfig) -> ImageSet:
    """The training images in their own size. Ends the script for other images, or for a part of them."""
    train = load_splits(replace(config, image_size=None)).train
    means = train.pixels.double().mean(dim=(0, 2, 3)) / 255
    if len(train) != 50_000 or not torch.allclose(means.float(), CHANNEL_MEANS, atol=1e-6):
        sys.exit(f"{config.data}: {len(train)} images with channel means {means.tolist()} are not CIFAR-10's")
    return train


def make_pretrained(run: str, name: str, changes: dict[str, str]) -> Path:
    """Returns the path of the written checkpoint."""
    source = paths.find_checkpoint(run)
    run_dir = paths.find_run_dir(source)
    if run_dir is None:
        sys.exit(f"{run} is not a run")
    checkpoint = load_checkpoint(source, torch.device("cpu"))
    allowed = {name: changes[name] for name in SamplingOptions.__dataclass_fields__ if name in changes}
    if allowed != changes:
        sys.exit(f"{sorted(changes)}: only sampling options can be changed")
    values = checkpoint.info.config.to_dict() | {"data": None, "dataset": "cifar10", "run": None} | allowed
    config = TrainConfig.from_dict(values)
    digest = resize(load_cifar10(checkpoint.info.config), config.image_size).sort().digest()
    changed = {"config": config, "data_name": "cifar10", "data_digest": digest}
    info = replace(checkpoint.info, **changed, user_images=False, state_sha256=None)

    folder = paths.PRETRAINED_DIR / name
    shutil.rmtree(paths.checkpoints_dir(folder), ignore_errors=True)
    paths.checkpoints_dir(folder).mkdir(parents=True)
    path = paths.checkpoint_path(folder, info.step)
    write_checkpoint(path, checkpoint_tensors(checkpoint.model, checkpoint.prior), info)
    write_atomically(folder / CONFIG_FILE, yaml.safe_dump(config.to_dict(), sort_keys=False).encode())
    summary = json.loads((run_dir / SUMMARY_FILE).read_bytes())
    scores = {name: summary[name] | {"dataset": "cifar10:test"} for name in ("test_accuracy", "robust_accuracy")}
    write_json(folder / SUMMARY_FILE, summary | scores | {"best_checkpoint": None})
    return path


def update_card(path: Path) -> None:
    """Write the checkpoint's sha256 into card.yaml."""
    card = path.parent.parent / paths.CARD_FILE
    rest = re.sub(r"^sha256:.*\n", "", card.read_text() if card.exists() else "", flags=re.MULTILINE)
    card.write_text(f"sha256: {sha256_hex(path.read_bytes())}\n{rest}")


if __name__ == "__main__":
    given = dict(argument.split("=", 1) for argument in sys.argv[3:])
    written = make_pretrained(sys.argv[1], sys.argv[2], given)
    update_card(written)
    print(written)
