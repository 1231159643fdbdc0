"""How many samples of each class does a classifier assign to that class? The judge is an ordinary classifier that rjem
trains on the same images and caches; "itself" is the network that made the samples.

    python -m tests.benchmarks.recognition cifar10-16 --data cifar10.tar -n 1000
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

import rjem_cli as rjem
from rjem_cli.config.training import DataOptions
from rjem_cli.engine.data.load import load_splits
from rjem_cli.engine.inference import Model
from rjem_cli.engine.metrics.judge import train_judge
from rjem_cli.engine.runtime import scoring_runtime

BATCH = 250


def shares(model: Model, x: Tensor, labels: Tensor) -> list[float]:
    """By class, the share of its images that the model assigns to it."""
    with torch.no_grad():
        correct = torch.cat([model(part).argmax(dim=1).cpu() for part in x.split(BATCH)]) == labels
    return [correct[labels == label].double().mean().item() for label in range(len(model.class_names))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--data", help="the training images in a new place")
    parser.add_argument("-n", type=int, default=1000)
    options = parser.parse_args()
    model, runtime = rjem.load(options.model), scoring_runtime("auto")
    config = model.info.config
    data = options.data or config.data
    images = DataOptions(data=data, dataset=config.dataset, image_size=config.image_size, val_fraction=0.0)
    judge = Model.from_checkpoint(train_judge(load_splits(images), runtime).checkpoint, runtime)
    print("\t".join(["mode", "by", "all", *model.class_names]))
    for mode in ("energy", "combined"):
        x = rjem.sample(model, n=options.n, mode=mode)
        labels = torch.arange(options.n) % len(model.class_names)
        for name, classifier in (("itself", model), ("judge", judge)):
            found = shares(classifier, x, labels)
            mean = sum(found) / len(found)
            print("\t".join([mode, name, *(f"{share:.0%}" for share in (mean, *found))]), flush=True)


if __name__ == "__main__":
    main()
