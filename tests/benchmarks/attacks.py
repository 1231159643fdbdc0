"""Do rjem's attacks agree with those of foolbox, torchattacks and pyautoattack on the same model and images?

Prints one line per comparison: the robust accuracies in percent and the seconds of both. PGD starts from the image and
uses the last iterate, because the others can do that too. Run it alone on the machine, on a run of `rjem train`:

    pip install foolbox torchattacks pyautoattack
    python -m tests.benchmarks.attacks RUN [--data cifar10-test.tar.xz] [--eps 8/255] [--limit 500]
"""

from __future__ import annotations

import argparse
import copy
import itertools
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from rjem_cli.config.fields import parse_epsilon
from rjem_cli.config.scoring import AttackConfig
from rjem_cli.engine.attacks.robustness import AttackPlan, AttackSetup, attack_dataset, evaluate_clean
from rjem_cli.engine.batching import BatchSizer
from rjem_cli.engine.data.images import to_model
from rjem_cli.engine.models.checkpoint import load_checkpoint
from rjem_cli.engine.models.eval_images import AttackDataset, load_eval_images
from rjem_cli.engine.models.frozen import freeze
from rjem_cli.paths import find_checkpoint

CPU = torch.device("cpu")
BATCH = 125
STEPS = 20


class OnPixels(nn.Module):
    """The model for attacks on images in [0, 1]."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.model(2 * x - 1)


def attack_with_rjem(model: nn.Module, dataset: AttackDataset, eps: float, plan: AttackPlan) -> Tensor:
    """Which images are robust, bool (N,)."""
    setup = AttackSetup(model, model, plan, dataset, CPU, BatchSizer(BATCH))
    clean = evaluate_clean(setup)
    (result,) = attack_dataset(setup, clean, [eps])
    return result.robust(clean)


def attack_with(model: nn.Module, dataset: AttackDataset, attack: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The same with another library. `attack`: (x in [0, 1], labels) -> attacked x in [0, 1]."""
    robust = []
    for pixels, labels in zip(dataset.images.pixels.split(BATCH), dataset.images.labels.split(BATCH)):
        x = to_model(pixels)
        attacked = 2 * attack((x + 1) / 2, labels) - 1
        with torch.no_grad():
            robust.append((model(x).argmax(dim=1) == labels) & (model(attacked).argmax(dim=1) == labels))
    return torch.cat(robust)


def foolbox_pgd(model: nn.Module, eps: float, norm: str) -> Callable[[Tensor, Tensor], Tensor]:
    import foolbox

    kind = foolbox.attacks.LinfPGD if norm == "linf" else foolbox.attacks.L2PGD
    attack = kind(abs_stepsize=2.5 * eps / STEPS, steps=STEPS, random_start=False)
    wrapped = foolbox.PyTorchModel(OnPixels(model), bounds=(0, 1), device=CPU)
    return lambda x, labels: attack(wrapped, x, foolbox.criteria.Misclassification(labels), epsilons=eps)[1]


def torchattacks_pgd(model: nn.Module, eps: float, norm: str) -> Callable[[Tensor, Tensor], Tensor]:
    import torchattacks

    kind = torchattacks.PGD if norm == "linf" else torchattacks.PGDL2
    model = copy.deepcopy(model).to(memory_format=torch.contiguous_format)  # its L2 attack takes no other layout
    return kind(OnPixels(model), eps=eps, alpha=2.5 * eps / STEPS, steps=STEPS, random_start=False)


def autoattack_apgd(model: nn.Module, eps: float, norm: str) -> Callable[[Tensor, Tensor], Tensor]:
    from pyautoattack import AutoAttack

    name = "Linf" if norm == "linf" else "L2"
    attack = AutoAttack(OnPixels(model), norm=name, eps=eps, version="custom", attacks=["apgd-ce"], seed=0)
    attack.apgd.n_restarts = 1  # as in its standard version
    return lambda x, labels: attack.run_standard_evaluation(x, labels, batch_size=BATCH)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("--data")
    parser.add_argument("--eps", default=["0.1"], nargs="+", help="Linf radii; L2 uses 8 times as much")
    parser.add_argument("--limit", type=int, default=500)
    options = parser.parse_args()
    checkpoint = load_checkpoint(find_checkpoint(options.run), CPU)
    model = freeze(checkpoint.model)
    config = AttackConfig(limit=options.limit, data=options.data)
    images = load_eval_images(config, checkpoint.info)
    dataset = AttackDataset(images.images, images.indices, targets=None, seed=0)
    counts = f"{len(dataset)} of {images.total} images of {images.source}"
    print(f"{checkpoint.path.name}, {counts}, {torch.get_num_threads()} threads")
    pgd = AttackPlan(steps=STEPS, start="image", iterate="last")
    apgd = AttackPlan(steps=100, method="apgd")
    clean = evaluate_clean(AttackSetup(model, model, pgd, dataset, CPU, BatchSizer(BATCH)))
    print(f"clean accuracy {clean.correct.float().mean():.1%}")
    print("norm\teps\tattack\tagainst\tours %\ttheirs %\tdifference\tour s\ttheir s")
    rivals = (("PGD", pgd, foolbox_pgd), ("PGD", pgd, torchattacks_pgd), ("APGD-CE", apgd, autoattack_apgd))
    for norm, eps, (label, plan, rival) in itertools.product(("linf", "l2"), options.eps, rivals):
        radius = parse_epsilon(eps, "model") * (1 if norm == "linf" else 8)
        started = time.perf_counter()
        ours = attack_with_rjem(model, dataset, radius, replace(plan, norm=norm))
        middle = time.perf_counter()
        theirs = attack_with(model, dataset, rival(model, radius / 2, norm))
        seconds = (middle - started, time.perf_counter() - middle)
        percents = [100 * float(robust.float().mean()) for robust in (ours, theirs)]
        print(
            f"{norm}\t{radius:g}\t{label}\t{rival.__name__.split('_')[0]}\t{percents[0]:.1f}\t{percents[1]:.1f}\t"
            f"{percents[0] - percents[1]:+.1f}\t{seconds[0]:.1f}\t{seconds[1]:.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
