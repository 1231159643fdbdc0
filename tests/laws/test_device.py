"""The device law: everything that a step, a chain, an attack or a score computes with is on one device, the host waits
for it only where that is stated, and scores are in fp32. On a pretend CUDA device, so no GPU is needed."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import partial

import pytest
import torch

from rjem_cli.config.sampling import GenerateConfig
from rjem_cli.config.training import ModelOptions, TrainConfig
from rjem_cli.engine.accuracy import accuracy
from rjem_cli.engine.attacks import robustness
from rjem_cli.engine.attacks.apgd import apgd
from rjem_cli.engine.attacks.pgd import pgd, random_start
from rjem_cli.engine.attacks.robustness import DROP_EVERY, AttackPlan, AttackSetup
from rjem_cli.engine.batching import BatchSizer
from rjem_cli.engine.data.images import to_model
from rjem_cli.engine.data.load import load_digit_splits
from rjem_cli.engine.metrics.ood import compute_outputs
from rjem_cli.engine.models.eval_images import AttackDataset
from rjem_cli.engine.models.frozen import FrozenLogits
from rjem_cli.engine.models.graphs import EAGER_RUNS
from rjem_cli.engine.models.prior import ClassGaussianPrior, fit_prior
from rjem_cli.engine.networks.build import build_model
from rjem_cli.engine.runtime import scoring_runtime, start_runtime
from rjem_cli.engine.sampling import pipeline
from rjem_cli.engine.sampling.generate import generate
from rjem_cli.engine.sampling.request import resolve_request
from rjem_cli.engine.training import trainer as trainer_module
from rjem_cli.engine.training.evaluation import compute_energies, val_accuracy
from rjem_cli.engine.training.replay_buffer import ReplayBuffer
from rjem_cli.engine.training.trainer import Trainer
from tests.pretend_cuda import PretendCuda

TINY = {
    "dataset": "digits",
    "depth": 10,
    "width": 1,
    "batch_size": 8,
    "steps": 20,
    "lr": 1e-3,
    "warmup_steps": 2,
    "pgd_steps": 3,
    "sgld_steps": 2,
    "buffer_size": 32,
    "crop_pad": 1,
    "reinit_prob": 0.5,
    "device": "cuda",
}
STEP_SYNCS = {("synchronize", "engine/training/guard.py"): 1}
HOST_STATE = {"average.n_averaged", "step", "images_seen", "divergences"}


@pytest.fixture(scope="module")
def splits():
    return load_digit_splits(0.1, shifted=False)


@pytest.fixture(scope="module")
def prior(splits):
    return fit_prior(splits.train, 0.99)


@pytest.fixture
def cuda():
    with PretendCuda() as device:
        yield device


@pytest.fixture
def build_trainer(cuda, splits, prior, tmp_path):
    """A trainer after one step, so that what is created lazily exists."""

    def build(**changes) -> Trainer:
        config = TrainConfig(**{**TINY, **changes})
        trainer = Trainer(config, splits, start_runtime(config), tmp_path, lambda: prior)
        trainer.train_step()
        return trainer

    return build


def frozen_model(trainer):
    return trainer.runtime.frozen(trainer.sampling_model())


@pytest.fixture(params=["batch", "group", "none"])
def norm(request):
    return request.param


@pytest.fixture(params=[torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
def network(cuda, request, norm):
    return FrozenLogits(build_model(ModelOptions(depth=10, width=1, norm_layer=norm), 1, 10).to("cuda"), request.param)


def record_step(cuda, trainer):
    with cuda.recording() as record:
        trainer.train_step()
    return record


# --- training ---

VARIANTS = {
    "tf32": {},
    "fp32": {"precision": "fp32"},
    "bf16": {"precision": "bf16"},
    "fp16": {"precision": "fp16"},
    "group norm": {"norm_layer": "group", "precision": "bf16"},
    "no norm, Adam, clipped": {"norm_layer": "none", "optimizer": "adam", "max_grad_norm": 1.0},
    "L2, separate statistics": {"norm": "l2", "bn_statistics": "separate"},
    "noisy chains": {"noise_std": 0.01},
    "no noise, no augmentation": {"input_noise_std": 0.0, "augment_energy": False, "crop_pad": 0, "flip": False},
    "energy penalty, no EMA": {"energy_l2": 0.1, "ema_decay": 0.0},
    "robust classifier": {"px_weight": 0.0},
    "clean images": {"pgd_steps": 0},
}


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_a_step_synchronizes_once_and_its_state_is_on_the_device(cuda, build_trainer, changes):
    trainer = build_trainer(**changes)
    record = record_step(cuda, trainer)
    assert record.syncs_by_file() == STEP_SYNCS
    assert all(copy.non_blocking for copy in record.copies if copy.direction == "h2d")
    assert record.layout_copies == []
    on_host = {name for name, tensor in trainer.state().items() if not tensor.is_cuda}
    assert {name for name in on_host if not name.endswith(".step")} <= HOST_STATE  # Adam's step counts


# Upper limits for the kernels of a step with 3 PGD and 2 SGLD passes and no restarts of chains. Each launch takes the
# host some microseconds, which bounds small networks. Lower a limit when a change saves launches.
LAUNCH_LIMITS = {  # with and without CUDA graphs
    ("fp32", True): 245,
    ("bf16", True): 290,
    ("group norm", True): 290,
    ("fp32", False): 545,
    ("bf16", False): 610,
    ("group norm", False): 620,
}


@pytest.mark.parametrize(("variant", "graphs"), LAUNCH_LIMITS)
def test_a_step_stays_below_its_number_of_launches(cuda, build_trainer, variant, graphs):
    """For any batch size, and for later steps, after those that record graphs."""
    counts = set()
    for batch_size in (8, 16):
        trainer = build_trainer(**VARIANTS[variant], batch_size=batch_size, reinit_prob=0.0, cuda_graphs=graphs)
        for _ in range(EAGER_RUNS):
            trainer.train_step()
        counts |= {record_step(cuda, trainer).launch_count for _ in range(3)}
    assert len(counts) == 1 and counts.pop() <= LAUNCH_LIMITS[variant, graphs]


def test_restarts_of_chains_launch_kernels_per_class_and_not_per_chain(cuda, prior):
    counts = []
    for restarts in (200, 400):  # all classes are among them
        buffer = ReplayBuffer(torch.zeros(restarts, 1, 8, 8, device="cuda"), prior.to(torch.device("cuda")), 1.0)
        with cuda.recording() as record:
            buffer.sample(restarts, torch.Generator().manual_seed(0))
        counts.append(record.launch_count)
    assert counts[0] == counts[1] <= 100


def test_every_setting_of_precision_is_that_of_the_products(cuda, build_trainer):
    for precision in ("fp32", "tf32", "bf16", "fp16"):
        trainer = build_trainer(precision=precision, reinit_prob=0.0)
        assert record_step(cuda, trainer).arithmetics == {precision}


# --- samplers ---


@pytest.fixture(params=[0.99, 1.0], ids=["low rank", "Cholesky"])
def any_prior(request, splits):
    return fit_prior(splits.train, request.param)


def all_starts(prior: ClassGaussianPrior, splits):
    images = splits.train.to(torch.device("cuda"))
    return {
        "prior": pipeline.prior_start(prior, 0.8),
        "noise": pipeline.noise_start(splits.train.image_shape),
        "data": pipeline.random_image_start(images.pixels, images.labels),
        "buffer": pipeline.random_image_start(images.pixels),
        "images": pipeline.image_start(images.pixels, 0),
    }


def test_a_sampler_never_synchronizes(cuda, network, splits, prior):
    seeds = torch.arange(8).to("cuda")
    stages = pipeline.targeted_pgd(network, eps=0.5, steps=1, confidence=0.9) >> pipeline.contrast(0.7)
    stages >>= pipeline.langevin(network, steps=1, noise_std=0.1)
    stages >>= pipeline.langevin(network, steps=1, conditional=False)
    for name, start in all_starts(prior.to(torch.device("cuda")), splits).items():
        for labels in (torch.arange(8), torch.arange(8).to("cuda")):
            if name == "prior" and labels.is_cuda:
                continue  # it groups images by class on the host
            with cuda.recording() as record:
                x = (start >> stages)(labels, seeds)
            assert x.is_cuda and record.syncs == [], name


def test_the_replay_buffer_and_its_prior_never_synchronize(cuda, any_prior):
    images = torch.zeros(40, *any_prior.image_shape, device="cuda")
    buffer = ReplayBuffer(images, any_prior.to(images.device), reinit_prob=0.5)
    with cuda.recording() as record:
        starts, indices = buffer.sample(16, torch.Generator().manual_seed(0))
        buffer.store(indices, starts)
        pipeline.prior_start(buffer.prior)(torch.arange(8), indices[:8])
    assert starts.is_cuda and indices.is_cuda and record.syncs == []
    assert record.copies and all(copy.non_blocking for copy in record.copies)
    with cuda.recording() as record:
        buffer.reset(0.5, torch.Generator().manual_seed(1))  # after a divergence only
    assert len(record.syncs) <= 1


def test_draws_of_the_prior_are_fp32_or_fp64(cuda, build_trainer):
    for precision in ("tf32", "bf16"):
        prior = build_trainer(precision=precision).prior
        seeds = torch.arange(8).to("cuda")
        with cuda.recording() as record:
            pipeline.prior_start(prior)(torch.arange(8), seeds)
            ReplayBuffer.from_prior(prior, 8, 0.5, torch.Generator())
        assert record.products and record.arithmetics <= {"fp32", "fp64"}


def test_generate_copies_each_batch_to_the_host_once(cuda, build_trainer):
    trainer = build_trainer()
    options = GenerateConfig(count=40, block_size=20, noise_std=0.01, sgld_steps=2)
    request = resolve_request(options, trainer.info, "cuda")
    sampler = pipeline.build_sampler(request.plan, pipeline.prior_start(trainer.prior), frozen_model(trainer))
    with cuda.recording() as record:
        batches = list(generate(sampler, request, skip=0, batch_size=20, device=trainer.runtime.device))
    assert len(batches) == 2 and not any(batch.pixels.is_cuda for batch in batches)
    copies = [copy for copy in record.copies if copy.direction == "d2h"]
    assert [copy.bytes for copy in copies] == [batch.pixels.nbytes for batch in batches]
    assert {file for _, file in record.syncs_by_file()} == {"engine/sampling/generate.py"}
    assert len(record.syncs) <= 2 * len(batches)  # the check for values that are not finite, and the copy


# --- attacks ---


@pytest.mark.parametrize("ball", ["linf", "l2"])
@pytest.mark.parametrize("attack", [pgd, apgd])
def test_an_attack_from_a_random_start_never_synchronizes(cuda, network, attack, ball):
    seeds, labels = torch.arange(4, device="cuda"), torch.zeros(4, dtype=torch.long, device="cuda")
    x = torch.rand(4, 1, 8, 8).to("cuda")
    with cuda.recording() as record:
        for loss in ("ce", "margin"):
            start = random_start(x, seeds, 0.1, ball)
            x_adv = attack(network, x, labels, eps=0.1, steps=5, norm=ball, loss=loss, start=start)
    assert x_adv.is_cuda and record.syncs == [] and record.copies == []


@pytest.mark.parametrize("plan", [AttackPlan(steps=11), AttackPlan(method="apgd", norm="l2", steps=11)])
def test_robust_accuracy_synchronizes_a_stated_number_of_times(cuda, build_trainer, splits, plan):
    frozen, images = frozen_model(build_trainer()), splits.test.subset(torch.arange(20))
    arguments = to_model(images.pixels), images.labels, torch.arange(20), torch.device("cuda"), BatchSizer(20)
    with cuda.recording() as record:
        result = robustness.attack_images(frozen, plan, 0.01, *arguments)
    kinds = Counter(sync.kind for sync in record.syncs)
    assert 1 <= kinds["nonzero"] <= 1 + plan.steps // DROP_EVERY
    assert kinds["item"] == 1  # gradients that are not finite
    assert kinds["device to host"] == len(result)
    assert kinds["host to device, blocking"] == 3  # images, labels, seeds
    assert kinds.total() == kinds["nonzero"] + 1 + len(result) + 3


# --- scores ---


def test_scores_are_fp32_in_a_run_of_any_precision_and_arrive_on_the_host(cuda, build_trainer, splits):
    trainer = build_trainer(precision="tf32", reinit_prob=0.0)
    images = splits.test.subset(torch.arange(20))
    dataset = AttackDataset(images, torch.arange(20), None, seed=0)
    x, device, sizer = to_model(images.pixels), trainer.runtime.device, BatchSizer(20)

    with cuda.recording() as record:
        model = trainer.runtime.scoring().frozen(trainer.model)
        assert 0 <= accuracy(model, images, device).value <= 1
        setup = AttackSetup(model, model, AttackPlan(steps=2), dataset, device, sizer)
        clean = robustness.evaluate_clean(setup)
        list(robustness.attack_dataset(setup, replace(clean, attacked=torch.ones(20, dtype=torch.bool)), [0.1]))
        outputs = compute_outputs(model, x, device, sizer)
    assert record.products and record.arithmetics == {"fp32"}
    assert not any(part.is_cuda for part in outputs)
    assert record_step(cuda, trainer).arithmetics == {"tf32"}  # training is not changed by it


def test_an_attack_searches_in_its_precision_and_is_judged_in_fp32(cuda, build_trainer, splits):
    trainer, images = build_trainer(), splits.test.subset(torch.arange(20))
    exact, search = (trainer.runtime.scoring().frozen(trainer.model), FrozenLogits(trainer.model, torch.bfloat16))
    arguments = to_model(images.pixels), images.labels, torch.arange(20), torch.device("cuda"), BatchSizer(20)
    with cuda.recording() as record:
        robustness.attack_images(exact, AttackPlan(steps=2), 0.01, *arguments, search_fn=search)
    assert record.arithmetics == {"bf16", "fp32"}


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_validation_is_fp32_and_energies_have_the_precision_of_training(cuda, build_trainer, monkeypatch, precision):
    trainer = build_trainer(precision=precision)
    model = trainer.sampling_model()
    monkeypatch.setattr(trainer, "sampling_model", lambda: model)  # it estimates statistics as training does
    with cuda.recording() as record:
        val_accuracy(trainer)
    assert record.arithmetics == {"fp32"}
    with cuda.recording() as record:
        _, energies = compute_energies(trainer)
    assert record.arithmetics == {precision} and not any(part.is_cuda for part in energies.values())


def test_the_runtime_of_rjem_eval_is_fp32(cuda, build_trainer, splits):
    trainer = build_trainer(precision="tf32")
    runtime, images = scoring_runtime("cuda"), splits.test.subset(torch.arange(20))
    with cuda.recording() as record:
        accuracy(runtime.frozen(trainer.model), images, runtime.device)
    assert record.arithmetics == {"fp32"}


# --- the law can fail ---


def test_a_tensor_left_on_the_host_is_found(build_trainer, monkeypatch):
    trainer = build_trainer()
    monkeypatch.setattr(trainer_module, "pgd", lambda f, x, labels, **options: pgd(f, x, labels.cpu(), **options))
    with pytest.raises(RuntimeError, match="at least two devices"):
        trainer.train_step()


def test_a_generator_of_the_host_is_found(build_trainer, monkeypatch):
    trainer = build_trainer()
    monkeypatch.setattr(trainer, "generator", partial(host_generator, trainer.generator))
    with pytest.raises(RuntimeError, match="Expected a 'cuda' device type for generator but found 'cpu'"):
        trainer.train_step()


def host_generator(generator, purpose, on_device=False):
    return generator(purpose)


def test_a_sync_in_a_chain_is_found(cuda, build_trainer, monkeypatch):
    trainer, sgld_step = build_trainer(), trainer_module.sgld

    def reading_sgld(logits_fn, x, **options):
        return sgld_step(logits_fn, x, **options, callback=lambda state: float(state.energy_B.mean()))

    monkeypatch.setattr(trainer_module, "sgld", reading_sgld)
    record = record_step(cuda, trainer)
    assert record.syncs_by_file() != STEP_SYNCS
    assert sum(sync.kind == "item" for sync in record.syncs) == TINY["sgld_steps"]


def test_a_copy_that_blocks_is_found(cuda, build_trainer, monkeypatch):
    trainer, augment = build_trainer(), trainer_module.augment

    def copying_augment(pixels, *options):
        return augment(pixels, *options) + torch.zeros(pixels.shape, dtype=torch.uint8).to(pixels.device)

    monkeypatch.setattr(trainer_module, "augment", copying_augment)
    record = record_step(cuda, trainer)
    assert "host to device, blocking" in {sync.kind for sync in record.syncs}
    assert not all(copy.non_blocking for copy in record.copies if copy.direction == "h2d")
