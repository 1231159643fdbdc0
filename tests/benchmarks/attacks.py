"""Do our attacks agree with those of foolbox, torchattacks and pyautoattack, on the same model and images?

Prints one line a comparison: robust accuracy of ours and theirs, in percent, and the seconds of both. PGD starts from
the image and takes the last iterate, as the others can. Run it alone on the machine, on a run of `rjem train`:

    pip install foolbox torchattacks pyautoattack
    python tests/benchmarks/attacks.py RUN [--data cifar10-test.tar.xz] [--eps 8/255] [--limit 500]
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from rjem_cli.config import AttackConfig
from rjem_cli.config.fields import parse_epsilon
from rjem_cli.engine.attacks.eval_data import load_eval_images
from rjem_cli.engine.attacks.robustness import AttackDataset, AttackPlan, attack_images, evaluate_clean
from rjem_cli.engine.batching import BatchSizer
from rjem_cli.engine.data.images import to_model
from rjem_cli.engine.models.checkpoint import load_checkpoint
from rjem_cli.engine.models.frozen import freeze
from rjem_cli.paths import find_checkpoint

CPU = torch.device("cpu")
BATCH = 125
STEPS = 20


class OnPixels(nn.Module):
    """The model for attacks that think in [0, 1]."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.model(2 * x - 1)


def ours(model: nn.Module, chosen: AttackDataset, eps: float, plan: AttackPlan) -> Tensor:
    clean = evaluate_clean(model, plan, chosen, CPU, BatchSizer(BATCH))
    (result,) = attack_images(model, plan, chosen, clean, [eps], device=CPU, batches=BatchSizer(BATCH))
    return (clean.predictions == chosen.images.labels) & ~result.hit


def theirs(model: nn.Module, chosen: AttackDataset, attack: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """`attack` maps (x in [0, 1], labels) to attacked x in [0, 1]."""
    standing = []
    for pixels, labels in zip(chosen.images.pixels.split(BATCH), chosen.images.labels.split(BATCH)):
        x = (to_model(pixels) + 1) / 2
        attacked = attack(x, labels)
        with torch.no_grad():
            right = [model(images).argmax(dim=1) == labels for images in (to_model(pixels), 2 * attacked - 1)]
        standing.append(right[0] & right[1])
    return torch.cat(standing)


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
    chosen, name, of = load_eval_images(config, checkpoint.info, None)
    print(f"{checkpoint.path.name}, {len(chosen)} of {of} images of {name}, {torch.get_num_threads()} threads")
    pgd = AttackPlan(steps=STEPS, start="image", iterate="last")
    apgd = AttackPlan(steps=100, method="apgd")
    right = (
        (evaluate_clean(model, pgd, chosen, CPU, BatchSizer(BATCH)).predictions == chosen.images.labels).float().mean()
    )
    print(f"clean accuracy {100 * float(right):.1f} %")
    print("norm\teps\tattack\tagainst\tours %\ttheirs %\tdifference\tour s\ttheir s")
    for norm, eps in ((norm, eps) for norm in ("linf", "l2") for eps in options.eps):
        radius = parse_epsilon(eps, "model") * (1 if norm == "linf" else 8)
        for label, plan, rival in (
            ("PGD", pgd, foolbox_pgd),
            ("PGD", pgd, torchattacks_pgd),
            ("APGD-CE", apgd, autoattack_apgd),
        ):
            plan = AttackPlan(**{**vars(plan), "norm": norm})
            started = time.perf_counter()
            mine = ours(model, chosen, radius, plan)
            middle = time.perf_counter()
            other = theirs(model, chosen, rival(model, radius / 2, norm))
            seconds = (middle - started, time.perf_counter() - middle)
            shares = [100 * float(standing.float().mean()) for standing in (mine, other)]
            rival_name = rival.__name__.split("_")[0]
            print(
                f"{norm}\t{radius:g}\t{label}\t{rival_name}\t{shares[0]:.1f}\t{shares[1]:.1f}\t"
                f"{shares[0] - shares[1]:+.1f}\t{seconds[0]:.1f}\t{seconds[1]:.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
