"""How fast is rjem beside JEM++, torchattacks, foolbox and a plain loop?

All of them take turns in one process on the CPU, in fp32, on the same images, with networks of one size. Each peer runs
its own code and its own network layout. A ratio is the median over the rounds of the ratio within a round, with
quartiles. The FLOP ratio counts convolutions only: it says whether both do the same network work.

JEM++ has no licence, so its code is not here. Give a checkout of github.com/sndnyang/JEMPP. Its training step is an
iteration of its own `main`; its data loader is replaced by one batch in memory, so its augmentation is not timed, while
rjem's is. torchattacks and foolbox are left out if they are not installed. foolbox computes the gradients of weights
that require one, as most users' do.

    pip install torchattacks foolbox
    python -m tests.benchmarks.peers --jempp ../JEMPP
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib
import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import flop_registry

from rjem_cli.config.training import TrainConfig
from rjem_cli.engine.attacks.pgd import pgd
from rjem_cli.engine.attacks.robustness import AttackPlan, AttackSetup, attack_dataset, evaluate_clean
from rjem_cli.engine.batching import BatchSizer
from rjem_cli.engine.cpu_speed import cpu_name
from rjem_cli.engine.data.images import to_model
from rjem_cli.engine.models.eval_images import AttackDataset
from rjem_cli.engine.networks.build import build_model, place
from rjem_cli.engine.networks.wide_resnet import WideResNet
from rjem_cli.engine.runtime import Runtime, start_runtime
from rjem_cli.engine.sampling.pipeline import SamplePlan, build_sampler, prior_start
from rjem_cli.engine.training.estimate import dummy_prior, dummy_splits
from rjem_cli.engine.training.trainer import Trainer
from tests.benchmarks.attacks import STEPS, OnPixels, foolbox_pgd
from tests.benchmarks.plain_loop import PlainLoop
from tests.benchmarks.speed import SHAPE, FlopCounter, build_peak, build_trainer, quartiles

WORKS = ("training", "chains", "samples", "attack", "pgd")
EPS = 2 * 8 / 255  # model units
HEADER = (
    "work (rjem's call)\tpeer\trjem\tpeer\tunit\ttime, rjem / peer (quartiles)\tFLOPs, rjem / peer\t"
    "rjem's share of the peak (quartiles)\tpeak, GFLOP/s"
)
CONVOLUTIONS = (torch.ops.aten.convolution, torch.ops.aten.convolution_backward)
OPTIONAL_MODULES = ("matplotlib", "matplotlib.pyplot", "tensorboardX", "torchvision", "torchvision.transforms", "tqdm")

Call = Callable[[], object]
Attack = Callable[[Tensor, Tensor], Tensor]  # x in [0, 1] (B, C, H, W), labels (B,) -> attacked x in [0, 1]


class ConvolutionFlops(FlopCounter):
    formulas = {operation: flop_registry[operation] for operation in CONVOLUTIONS}  # noqa: RUF012


@dataclass
class Contestant:
    """`call` None: one iteration of JEM++'s training loop."""

    name: str
    call: Call | None
    flops: int = 0
    seconds: list[float] = field(default_factory=list)


@dataclass
class Work:
    """`units` of work, by rjem and by its peers. `peaks`: FLOP/s of a large convolution after each round."""

    name: str
    unit: str
    units: int
    ours: Contestant
    peers: list[Contestant]
    peaks: list[float] = field(default_factory=list)

    def rows(self) -> Iterator[str]:
        ours = self.ours
        share = quartiles([ours.flops / own / peak for own, peak in zip(ours.seconds, self.peaks)])
        for peer in self.peers:
            ratio = quartiles([own / other for own, other in zip(ours.seconds, peer.seconds)])
            cells = [f"{self.name} ({ours.name})", peer.name]
            cells += [f"{self.units / statistics.median(each.seconds):.3g}" for each in (ours, peer)]
            cells += [self.unit, spread(ratio), f"{ours.flops / peer.flops:.2f}", spread(share)]
            yield "\t".join([*cells, f"{statistics.median(self.peaks) / 1e9:.0f}"])


def spread(three: list[float]) -> str:
    return "{1:.2f} ({0:.2f}-{2:.2f})".format(*three)


def take_turns(works: list[Work], rounds: int, peak: Callable[[], float]) -> Iterator[None]:
    """A round that warms up and counts FLOPs, then `rounds` timed ones, with the order reversed each time. Yields where
    JEM++'s training loop has its turn: that loop takes one step, then asks for the next value."""
    for number, work in itertools.product(range(-1, rounds), works):
        order = [work.ours, *work.peers]
        for each in reversed(order) if number % 2 else order:
            with ConvolutionFlops() if number < 0 else contextlib.nullcontext() as counter:
                started = time.perf_counter()
                if each.call is None:
                    yield
                else:
                    each.call()
                seconds = time.perf_counter() - started
            if counter is not None:
                each.flops = counter.total
            else:
                each.seconds.append(seconds)
        if number >= 0:
            work.peaks.append(peak())


# --- JEM++ ---


class Finished(Exception):
    """Ends JEM++'s training loop."""


class JemPlusPlus:
    """JEM++'s own code, from a checkout. `plain` has the priors of its chains."""

    def __init__(self, path: Path, config: TrainConfig, plain: PlainLoop):
        self.args = jempp_arguments(config)
        module = self.module = import_jempp(path)
        module.args, module.tqdm = self.args, lambda batches: batches
        module.conditionals[:] = plain.priors
        self.model, self.buffer = module.get_model_and_buffer(self.args, self.args.device)

    def sample(self, labels: Tensor | None = None) -> object:
        """SGLD on E(x) from the replay buffer, as in training; with labels on E(x, y) from the prior."""
        args, buffer = self.args, self.buffer if labels is None else []
        return self.module.sample_q(self.model, buffer, labels, args.n_steps, args.in_steps, args)

    def train(self, turns: Iterator[None], x: Tensor, labels: Tensor) -> None:
        """Run its `main`, with `turns` as the data loader."""

        def batches() -> Iterator[tuple[Tensor, Tensor]]:
            for _ in turns:
                yield x, labels
            raise Finished

        module = self.module
        module.get_data = lambda args: (batches(), itertools.repeat((x, labels)), None, None)
        module.init_from_centers = lambda args: self.buffer
        with contextlib.suppress(Finished):
            module.main(self.args)
            sys.exit("JEM++'s training loop ended early")


def import_jempp(path: Path) -> Any:
    """Its training script as a module. What it imports for plots, logs and data sets only may be missing."""
    for name in OPTIONAL_MODULES:
        try:
            importlib.import_module(name)
        except ImportError:
            sys.modules[name] = MagicMock()
    threads = torch.get_num_threads()
    sys.path.insert(0, str(path.resolve()))
    try:
        return importlib.import_module("train_jempp")
    except ImportError as error:
        sys.exit(f"--jempp {path} is not a checkout of JEM++: {error}")
    finally:
        sys.path.pop(0)
        torch.set_num_threads(threads)  # the script sets it to 2


def jempp_arguments(config: TrainConfig) -> SimpleNamespace:
    """The command line of its published run, with the sizes of `config`."""
    same = ("depth", "width", "optimizer", "lr", "weight_decay", "batch_size", "buffer_size", "seed")
    return SimpleNamespace(
        **{name: getattr(config, name) for name in same},
        **{"dataset": "cifar10", "n_classes": SHAPE.classes, "model": "yopo", "norm": config.norm_layer},
        **{"dropout_rate": 0.0, "uncond": False, "load_path": None, "clf_only": False, "class_cond_p_x_sample": False},
        **{"n_epochs": 1, "decay_epochs": [], "warmup_iters": config.warmup_steps, "print_every": sys.maxsize},
        **{"p_x_weight": 1.0, "p_y_given_x_weight": 1.0, "p_x_y_weight": 0.0, "plc": "alltrain1", "pid": 0},
        **{"n_steps": config.sgld_steps, "in_steps": config.inner_steps, "pyld_lr": config.sgld_step_size},
        **{"sgld_lr": 0.0, "sgld_std": config.noise_std, "eps": config.grad_clip, "reinit_freq": config.reinit_prob},
        device=torch.device("cpu"),
    )


# --- training and sampling ---


def energy_works(config: TrainConfig, trainer: Trainer, plain: PlainLoop, jempp: JemPlusPlus | None) -> dict[str, Work]:
    count, steps = config.batch_size, config.sgld_steps
    images, buffer = dummy_splits(SHAPE, count).train, trainer.buffer
    assert buffer is not None, "the p(x) term has a buffer"
    labels, seeds = torch.arange(count) % SHAPE.classes, torch.arange(count)
    frozen = trainer.runtime.frozen(trainer.model)
    plan = replace(SamplePlan.from_config(config, "energy"), sgld_steps=steps)
    sampler = build_sampler(plan, prior_start(trainer.prior), frozen)

    def peers(plain_call: Call, jempp_call: Call | None) -> list[Contestant]:
        return [Contestant("JEM++", jempp_call)] * (jempp is not None) + [Contestant("plain loop", plain_call)]

    training = peers(lambda: plain.train_step(images.pixels[:count], images.labels[:count]), None)
    chains = peers(lambda: plain.negatives(count, steps), jempp and jempp.sample)
    samples = peers(lambda: plain.sgld(plain.prior_starts(count), steps), jempp and partial(jempp.sample, labels))
    rjem = {
        "training": Contestant("Trainer", trainer.train_step),
        "chains": Contestant("sample_negatives", lambda: trainer.sample_negatives(frozen, buffer)),
        "samples": Contestant("sampler", lambda: sampler(labels, seeds)),
    }
    return {
        "training": Work(f"training step, {steps} SGLD steps", "images/s", count, rjem["training"], training),
        "chains": Work(f"{steps} SGLD steps from the buffer", "steps/s", steps, rjem["chains"], chains),
        "samples": Work(f"class samples, {steps} SGLD steps", "images/s", count, rjem["samples"], samples),
    }


# --- attacks ---


def robust(model: nn.Module, attack: Attack, x: Tensor, labels: Tensor) -> Tensor:
    """Which of the images x (B, C, H, W) in [0, 1] are robust, bool (B,)."""
    on_pixels = OnPixels(model)
    with torch.no_grad():
        correct = on_pixels(x).argmax(dim=1) == labels
    attacked = attack(x, labels)
    with torch.no_grad():
        return correct & (on_pixels(attacked).argmax(dim=1) == labels)


def torchattacks_pgd(model: nn.Module, eps: float) -> Attack:
    import torchattacks

    attack: Attack = torchattacks.PGD(
        OnPixels(model), eps=eps, alpha=2.5 * eps / STEPS, steps=STEPS, random_start=False
    )
    return attack


def attack_peers(model: WideResNet, folded: nn.Module) -> Iterator[tuple[str, nn.Module, Attack]]:
    """(name, network, attack) of each installed library. `model` has PyTorch's own memory layout."""
    networks = (("", model), (", rjem's folded network", folded))
    for name, build in (("torchattacks", torchattacks_pgd), ("foolbox", partial(foolbox_pgd, norm="linf"))):
        try:
            importlib.import_module(name)
        except ImportError as error:
            print(f"left out: {name}, which is not installed ({error})")
            continue
        for suffix, network in networks:
            yield name + suffix, network, build(network, eps=EPS / 2)


def attack_works(config: TrainConfig, runtime: Runtime, plain: PlainLoop) -> dict[str, Work]:
    """On images that the network classifies correctly."""
    count = config.batch_size
    model = build_model(config, SHAPE.image_shape[0], SHAPE.classes).eval()
    frozen = runtime.frozen(place(copy.deepcopy(model), runtime.device))
    images = dummy_splits(SHAPE, count).train.subset(torch.arange(count))
    x = to_model(images.pixels)
    with torch.no_grad():
        labels = model(x).argmax(dim=1)
    dataset = AttackDataset(replace(images, labels=labels), torch.arange(count), targets=None, seed=0)
    plan = AttackPlan(steps=STEPS, start="image", iterate="last")
    setup = AttackSetup(frozen, frozen, plan, dataset, runtime.device, BatchSizer(count))

    def attack() -> Tensor:
        clean = evaluate_clean(setup)
        (result,) = attack_dataset(setup, clean, [EPS])
        return result.robust(clean)

    whole, bare, pixels = [], [], (x + 1) / 2
    for name, network, peer in attack_peers(model, frozen.network):
        bare.append(Contestant(name, partial(peer, pixels, labels)))
        if network is model:
            whole.append(Contestant(name, partial(robust, network, peer, pixels, labels)))
    bare.append(Contestant("plain loop", lambda: plain.pgd(x, labels, STEPS)))
    loop = partial(pgd, frozen, x, labels, eps=EPS, steps=STEPS)
    ours = Contestant("attack_dataset", attack), Contestant("pgd", loop)
    return {
        "attack": Work(f"robust accuracy, PGD-{STEPS}", "images/s", count, ours[0], whole),
        "pgd": Work(f"PGD-{STEPS}", "images/s", count, ours[1], bare),
    }


def measure(config: TrainConfig, runtime: Runtime, options: argparse.Namespace, folder: Path) -> list[Work]:
    """The selected works, timed."""
    prior = dummy_prior(SHAPE, variance=1)
    trainer, plain = build_trainer(config, prior, runtime, folder), PlainLoop(config, prior, runtime.device)
    jempp = JemPlusPlus(options.jempp, config, plain) if options.jempp else None
    found = energy_works(config, trainer, plain, jempp) | attack_works(config, runtime, plain)
    works = [found[name] for name in options.only.split(",")]
    turns = take_turns(works, options.rounds, build_peak(runtime, config.batch_size))
    if jempp is None:
        print("left out: JEM++; give a checkout with --jempp")
        list(turns)
    else:
        jempp.train(turns, *trainer.next_batch()[::2])
    return works


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jempp", type=Path, help="a checkout of JEM++")
    parser.add_argument("--depth", type=int, default=16)
    parser.add_argument("--width", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--sgld-steps", type=int, default=10)
    parser.add_argument("--statistics", default="separate", choices=("separate", "joint"), help="of rjem's BatchNorm")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default=",".join(WORKS), help="a subset of %(default)s")
    options = parser.parse_args()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # JEM++ takes a GPU if there is one
    sizes = {name: getattr(options, name) for name in ("depth", "width", "batch_size", "sgld_steps")}
    config = TrainConfig(**sizes, pgd_steps=0, bn_statistics=options.statistics, device="cpu", precision="fp32")
    runtime = start_runtime(config)
    with contextlib.redirect_stdout(sys.stderr), tempfile.TemporaryDirectory() as folder:
        works = measure(config, runtime, options, Path(folder))
    where = f"{cpu_name()}, fp32, {torch.get_num_threads()} threads, torch {torch.__version__}"
    print(f"WRN-{config.depth}-{config.width}, batch {config.batch_size}; {where}; {options.rounds} rounds")
    print(HEADER)
    for row in itertools.chain.from_iterable(work.rows() for work in works):
        print(row)


if __name__ == "__main__":
    main()
