"""Does the device compute what the CPU does? Each row is one check with its largest difference and the limit for it.

The law tests run on the CPU or on a pretend device, so these are checks of their own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
from torch import Tensor

import rjem_cli as rjem
from rjem_cli.config.training import TrainConfig
from rjem_cli.engine.attacks.pgd import is_success, pgd
from rjem_cli.engine.data.images import to_pixels
from rjem_cli.engine.data.load import load_digit_splits
from rjem_cli.engine.gradients import Evaluation, value_and_grad
from rjem_cli.engine.kernels import Kernels
from rjem_cli.engine.models.energy import energy
from rjem_cli.engine.models.frozen import FrozenLogits
from rjem_cli.engine.models.prior import fit_prior
from rjem_cli.engine.networks.build import build_model, place
from rjem_cli.engine.networks.wide_resnet import WideResNet
from rjem_cli.engine.noise import CHAIN_STREAM, random_words, standard_normal, uniform
from rjem_cli.engine.runtime import start_runtime
from rjem_cli.engine.sampling.pipeline import prior_start
from rjem_cli.engine.training.trainer import Trainer
from tests.benchmarks.gpu.parts import Bench, Row
from tests.benchmarks.gpu.sizes import Network

PRETRAINED = "cifar10-16"
NORMS = ("batch", "group", "none")
DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# A pass rounds to 24, 11, 8 and 11 bits. Gradients also differ where a rounding changes the sign of an activation.
LOGITS_LIMITS = {"fp32": 1e-5, "tf32": 1e-2, "bf16": 5e-2, "fp16": 1e-2}  # largest error over the largest logit
GRADIENT_LIMITS = {"fp32": 1e-3, "tf32": 1e-1, "bf16": 3e-1, "fp16": 1e-1}  # norm of the error over the norm
# Mean absolute difference, in the 255ths of a pixel. Chains amplify roundings: weights that differ by 2e-7 change
# samples by 0.005 on average, and by 3 at most.
SAMPLE_LIMIT = 0.05
PRIOR_LIMIT = 1e-6
NORMAL_LIMIT = 1e-5  # logarithms and cosines differ in the last bits
SUCCESS_LIMIT = 1  # images: steps follow the sign of a gradient, which a last bit can change
EPS, STEPS = 0.1, 20
REFERENCE_IMAGES = 32
REPEATED_STEPS = 5

Check = Callable[[], tuple[float, float]]  # the largest difference, and its limit


def run(bench: Bench) -> None:
    checks: Iterator[tuple[str, Check]] = all_checks(bench)
    for name, check in checks:
        bench.measure({"check": name}, partial(judge, check))


def judge(check: Check) -> Row:
    difference, limit = check()
    row = {"difference": difference, "limit": limit}
    return row if difference <= limit else {**row, "error": f"{difference:.3g} is beyond {limit:.3g}"}


def all_checks(bench: Bench) -> Iterator[tuple[str, Check]]:
    yield "Philox words, CPU and device", partial(compare_words, bench)
    yield "uniform noise, CPU and device", partial(compare_noise, bench, uniform, 0.0)
    yield "normal noise, CPU and device", partial(compare_noise, bench, standard_normal, NORMAL_LIMIT)
    yield "prior draws, CPU and device", partial(compare_prior, bench)
    for mode in ("energy", "combined"):
        yield f"{mode} samples, fp32, CPU and device, mean in 1/255", partial(compare_samples, bench, mode)
        yield f"{mode} samples twice on the device, pixels that differ", partial(repeat_samples, bench, mode)
    yield "successes of PGD, CPU and device, images", partial(compare_successes, bench)
    yield f"weights of {REPEATED_STEPS} steps twice, reproducible kernels", partial(repeat_training, bench)
    for norm in NORMS:
        reference = Reference.build(bench, norm)
        for precision in DTYPES if bench.on_cuda else ("fp32", "bf16", "fp16"):
            yield f"{norm} logits, {precision}, against fp64", partial(compare_logits, bench, reference, precision)
            yield f"{norm} dE/dx, {precision}, against fp64", partial(compare_gradients, bench, reference, precision)


# --- noise ---


def seeds(bench: Bench) -> Tensor:
    return torch.arange(bench.sizes.samples) + 2**40


def compare_words(bench: Bench) -> tuple[float, float]:
    host = random_words(seeds(bench), 1000, CHAIN_STREAM, 3)
    device = random_words(seeds(bench).to(bench.device), 1000, CHAIN_STREAM, 3)
    return sum(float((a != b.cpu()).sum()) for a, b in zip(host, device)), 0


def compare_noise(bench: Bench, draw: Callable[..., Tensor], limit: float) -> tuple[float, float]:
    host, device = (draw(part, (3, 32, 32), CHAIN_STREAM, 3) for part in (seeds(bench), seeds(bench).to(bench.device)))
    return largest(host, device), limit


def compare_prior(bench: Bench) -> tuple[float, float]:
    prior = rjem.load(PRETRAINED, device="cpu").checkpoint.prior
    labels = torch.arange(bench.sizes.samples) % 10
    host = prior_start(prior)(labels, seeds(bench))
    device = prior_start(prior.to(bench.device))(labels, seeds(bench).to(bench.device))
    return largest(host, device), PRIOR_LIMIT


def largest(host: Tensor, device: Tensor) -> float:
    return float((host.double() - device.cpu().double()).abs().max())


# --- networks ---


def random_network(norm: str) -> WideResNet:
    """With statistics of BatchNorm that are not those of a new network."""
    torch.manual_seed(0)
    model = build_model(Network(16, 2, norm).config(1, "fp32", "cpu"), channels=3, num_classes=10)
    with torch.no_grad():
        for _ in range(5):
            model.train()(torch.rand(8, 3, 32, 32) * 2 - 1)
    return model.eval()


class Reference(NamedTuple):
    """A network in fp32 on the host, images (B, 3, 32, 32), and its logits (B, K) and dE/dx in fp64."""

    model: WideResNet
    x: Tensor
    logits_BK: Tensor
    gradient: Tensor

    @classmethod
    def build(cls, bench: Bench, norm: str) -> Reference:
        model = random_network(norm)
        x = uniform(seeds(bench)[:REFERENCE_IMAGES], (3, 32, 32), CHAIN_STREAM) * 2 - 1
        exact = value_and_grad(copy.deepcopy(model).double(), energy, x.double())
        return cls(model, x, exact.logits_BK, exact.gradient)


def evaluate_on(bench: Bench, reference: Reference, precision: str) -> Evaluation:
    model, kernels = place(copy.deepcopy(reference.model), bench.device), Kernels(tf32=precision == "tf32")
    frozen = FrozenLogits(model, DTYPES[precision], kernels=kernels)
    return value_and_grad(frozen, energy, reference.x.to(bench.device))


def compare_logits(bench: Bench, reference: Reference, precision: str) -> tuple[float, float]:
    found, expected = evaluate_on(bench, reference, precision).logits_BK, reference.logits_BK
    return largest(expected, found) / float(expected.abs().max()), LOGITS_LIMITS[precision]


def compare_gradients(bench: Bench, reference: Reference, precision: str) -> tuple[float, float]:
    found, expected = evaluate_on(bench, reference, precision).gradient, reference.gradient
    return float((found.cpu().double() - expected).norm() / expected.norm()), GRADIENT_LIMITS[precision]


# --- samples and attacks ---


def sample_on(device: str, mode: str, count: int) -> Tensor:
    return rjem.sample(rjem.load(PRETRAINED, device=device, precision="fp32"), n=count, mode=mode).cpu()


def compare_samples(bench: Bench, mode: str) -> tuple[float, float]:
    host, device = (sample_on(name, mode, bench.sizes.samples) for name in ("cpu", str(bench.device)))
    return float((host - device).abs().mean()) * 127.5, SAMPLE_LIMIT


def repeat_samples(bench: Bench, mode: str) -> tuple[float, float]:
    first, second = (sample_on(str(bench.device), mode, bench.sizes.samples) for _ in range(2))
    return float((first != second).sum() + (to_pixels(first) != to_pixels(second)).sum()), 0


def compare_successes(bench: Bench) -> tuple[float, float]:
    """Of an attack on samples, which the network classifies well."""
    x, labels = sample_on("cpu", "combined", bench.sizes.samples), torch.arange(bench.sizes.samples) % 10
    counts = []
    for name in ("cpu", str(bench.device)):
        model = rjem.load(PRETRAINED, device=name, precision="fp32")
        on_device = x.to(model.device), labels.to(model.device)
        x_adv = pgd(model.logits_fn, *on_device, eps=EPS, steps=STEPS)
        counts.append(int(is_success(model.logits_fn(x_adv), on_device[1], targeted=False).sum()))
    bench.note(f"PGD with Linf {EPS} succeeds on {counts[0]} of {len(x)} samples on the CPU, {counts[1]} on the device")
    return abs(counts[0] - counts[1]), SUCCESS_LIMIT


# --- training ---


def repeat_training(bench: Bench) -> tuple[float, float]:
    """The largest difference between the weights of two runs."""
    first, second = (train_digits(bench) for _ in range(2))
    return max(largest(a, b) for a, b in zip(first, second)), 0


def train_digits(bench: Bench) -> list[Tensor]:
    splits = load_digit_splits(0.1, shifted=False)
    config = TrainConfig(
        **{"dataset": "digits", "depth": 10, "width": 1, "batch_size": 32, "buffer_size": 64, "crop_pad": 1},
        **{"pgd_steps": 3, "sgld_steps": 3, "steps": 100, "warmup_steps": 2, "lr": 1e-3, "precision": "fp32"},
        device=str(bench.device),
    )
    runtime = replace(start_runtime(config), reproducible=True)
    with TemporaryDirectory() as folder:
        trainer = Trainer(config, splits, runtime, Path(folder), lambda: fit_prior(splits.train, 0.99))
        for _ in range(REPEATED_STEPS):
            trainer.train_step()
    return [parameter.detach().cpu() for parameter in trainer.model.parameters()]
