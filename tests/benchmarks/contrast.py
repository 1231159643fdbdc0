"""Which contrast should the combined mode have? Judged by a plain classifier of the same data.

For each model and contrast: FD, the Fréchet distance between 2,000 samples and the training images in the judge's
features (2,000 test images are the floor, the prior the ceiling); the share that 1-NN on training pixels reads as the
class asked for; and the share of components at -1 or 1 before and after the chain.

    rjem train --preset quickstart --px-weight 0 --pgd-steps 0 --seed 7 --run judge
    for s in 0 1 2; do rjem train --preset quickstart --seed $s --run digits-$s; done
    python tests/benchmarks/contrast.py judge digits-0 digits-1 digits-2
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict

import numpy as np
import torch
from scipy.linalg import sqrtm
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from rjem_cli.engine.accuracy import evenly_spaced
from rjem_cli.engine.data.images import ImageSet, to_model, to_pixels
from rjem_cli.engine.data.load import load_splits
from rjem_cli.engine.models.checkpoint import load_checkpoint
from rjem_cli.engine.models.frozen import freeze
from rjem_cli.engine.models.prior import fit_prior
from rjem_cli.engine.sampling.pipeline import SamplePlan, Sampler, contrast, langevin, prior_start, targeted_pgd
from rjem_cli.paths import find_checkpoint

CPU = torch.device("cpu")
COUNT, BLOCK = 2000, 50
CONTRASTS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


class Judge:
    """FD in the last hidden layer of a plain classifier, and 1-NN."""

    def __init__(self, run: str):
        checkpoint = load_checkpoint(find_checkpoint(run), CPU)
        self.splits = load_splits(checkpoint.info.training_options())
        self.model = freeze(checkpoint.model)
        self.model.head = torch.nn.Identity()
        self.reference = self.statistics(self.splits.train.pixels)
        train = self.splits.train
        self.reader = KNeighborsClassifier(1).fit(train.pixels.flatten(1).numpy(), train.labels.numpy())

    def statistics(self, pixels: Tensor) -> tuple[np.ndarray, np.ndarray]:
        with torch.no_grad():
            features = torch.cat([self.model(to_model(part)) for part in pixels.split(500)]).double().numpy()
        return features.mean(axis=0), np.cov(features, rowvar=False)

    def fd(self, pixels: Tensor) -> float:
        (mean, cov), (other_mean, other_cov) = self.statistics(pixels), self.reference
        cross = sqrtm(cov @ other_cov).real
        return float(((mean - other_mean) ** 2).sum() + np.trace(cov + other_cov - 2 * cross))

    def read(self, pixels: Tensor, labels: Tensor) -> float:
        return float(np.mean(self.reader.predict(pixels.flatten(1).numpy()) == labels.numpy()))


def saturation_of(x: Tensor) -> float:
    return float((x.abs() >= 1).float().mean())


def draw(sampler: Sampler) -> tuple[Tensor, Tensor]:
    """(x, labels) of COUNT samples, classes in turn."""
    seeds = torch.arange(COUNT)
    return torch.cat([sampler(part % 10, part) for part in seeds.split(BLOCK)]), seeds % 10


def recipes(run: str, prior: Sampler, chain_steps: list[int]) -> Iterator[tuple[str, str, Sampler]]:
    """(mode, contrast and steps, sampler), as the checkpoint's config says but for contrast and chain length."""
    checkpoint = load_checkpoint(find_checkpoint(run), CPU)
    model, plan = freeze(checkpoint.model), SamplePlan.from_config(checkpoint.info.config, "combined")
    attack = targeted_pgd(model, eps=plan.attack_eps, steps=plan.attack_steps, norm=plan.norm)
    yield "prior", "-", prior
    yield "attack", "-", prior >> attack
    for steps in chain_steps:
        chain = langevin(model, steps=steps, **asdict(plan.sgld))
        yield "energy", f"-, {steps}", prior >> chain
        for scale in CONTRASTS:
            yield "combined", f"{scale}, {steps}", prior >> attack >> contrast(scale) >> chain


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("judge")
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--chain-steps", type=int, nargs="+", default=[10, 50])
    options = parser.parse_args()
    judge = Judge(options.judge)
    prior = prior_start(fit_prior(judge.splits.train))
    test: ImageSet = evenly_spaced(judge.splits.test, COUNT)
    print("run\tmode\tcontrast, steps\tFD\tread %\tsaturated %")
    print(f"-\ttest set\t-\t{judge.fd(test.pixels):.2f}\t{100 * judge.read(test.pixels, test.labels):.1f}\t-")
    for run in options.runs:
        for mode, setting, sampler in recipes(run, prior, options.chain_steps):
            x, labels = draw(sampler)
            pixels = to_pixels(x)
            scores = f"{judge.fd(pixels):.2f}\t{100 * judge.read(pixels, labels):.1f}\t{100 * saturation_of(x):.1f}"
            print(f"{run}\t{mode}\t{setting}\t{scores}", flush=True)


if __name__ == "__main__":
    main()
