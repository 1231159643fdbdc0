"""The three modes are compositions of the same stages, and a start depends on its own label and seed."""

from dataclasses import replace

import pytest
import torch

from rjem_cli.config.training import TrainConfig
from rjem_cli.engine.attacks.pgd import pgd
from rjem_cli.engine.data.images import to_model, to_pixels
from rjem_cli.engine.data.load import load_digit_splits
from rjem_cli.engine.models.energy import energy, joint_energy
from rjem_cli.engine.models.frozen import freeze
from rjem_cli.engine.models.prior import fit_prior
from rjem_cli.engine.networks.wide_resnet import WideResNet
from rjem_cli.engine.noise import CHAIN_STREAM, standard_normal
from rjem_cli.engine.sampling.pipeline import (
    SamplePlan,
    Sampler,
    build_sampler,
    contrast,
    image_start,
    langevin,
    noise_start,
    prior_start,
    random_image_start,
    targeted_pgd,
)
from rjem_cli.engine.sampling.sgld import sgld

CONFIG = TrainConfig(noise_std=0.05, sample_steps=4, unconditional_steps=6, attack_steps=3)
LABELS, SEEDS = torch.arange(10), torch.arange(100, 110)


def chain_noise(step: int, x: torch.Tensor) -> torch.Tensor:
    return standard_normal(SEEDS, tuple(x.shape[1:]), CHAIN_STREAM, step)


@pytest.fixture(scope="module")
def images():
    return load_digit_splits(0.1, shifted=True).train


@pytest.fixture(scope="module")
def start(images):
    return prior_start(fit_prior(images))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return freeze(WideResNet(1, num_classes=10, depth=10, width=1, norm="batch"))


def test_combined_is_attack_then_contrast_then_chain(start, model):
    x = start(LABELS, SEEDS)
    combined = build_sampler(SamplePlan.from_config(CONFIG, "combined"), start, model)(LABELS, SEEDS)
    attacked = pgd(model, x, LABELS, eps=CONFIG.attack_eps, steps=3, targeted=True)
    expected = sgld(
        model,
        attacked * CONFIG.contrast,
        steps=4,
        step_size=CONFIG.sgld_step_size * CONFIG.inner_steps,
        labels_B=LABELS,
        energy_fn=joint_energy,
        noise_std=0.05,
        noise=chain_noise,
    )
    assert torch.equal(combined, expected)
    assert torch.equal(build_sampler(SamplePlan.from_config(CONFIG, "attack"), start, model)(LABELS, SEEDS), attacked)
    no_steps = replace(SamplePlan.from_config(CONFIG, "energy"), sgld_steps=0)
    assert torch.equal(build_sampler(no_steps, start, model)(LABELS, SEEDS), x)


def test_composition_is_associative_and_takes_plain_functions(start, model):
    attack, chain = targeted_pgd(model, eps=0.3, steps=2), langevin(model, steps=3)
    left = ((start >> attack) >> contrast(0.8)) >> chain
    right = start >> (attack >> (contrast(0.8) >> chain))
    assert torch.equal(left(LABELS, SEEDS), right(LABELS, SEEDS))
    mirrored = start >> (lambda x, labels, seeds: x.flip(3))
    assert torch.equal(mirrored(LABELS, SEEDS), start(LABELS, SEEDS).flip(3))
    x = torch.zeros(10, 1, 12, 12)
    assert torch.equal(Sampler(())(LABELS, SEEDS, x), x)


def test_unconditional_chains_follow_the_energy_of_x(start, model):
    plan = SamplePlan.from_config(CONFIG, "energy", conditional=False)
    x = start(LABELS, SEEDS)
    expected = sgld(model, x, steps=6, step_size=1.0, energy_fn=energy, noise_std=0.05, noise=chain_noise)
    assert torch.equal(build_sampler(plan, start, model)(LABELS, SEEDS), expected)


def test_the_cost_of_a_sample_counts_its_gradient_steps():
    costs = {mode: SamplePlan.from_config(CONFIG, mode).gradient_steps for mode in ("energy", "attack", "combined")}
    assert costs == {"energy": 4, "attack": 3, "combined": 7}


@pytest.mark.parametrize("mode", ["energy", "attack", "combined"])
def test_a_sample_does_not_depend_on_its_batch_up_to_the_last_bits(start, model, mode):
    labels, seeds = torch.arange(20) % 10, torch.arange(20)
    sampler = build_sampler(SamplePlan.from_config(CONFIG, mode), start, model)
    one_batch = to_pixels(sampler(labels, seeds))
    small_batches = torch.cat([to_pixels(sampler(labels[i : i + 7], seeds[i : i + 7])) for i in range(0, 20, 7)])
    assert (one_batch.int() - small_batches.int()).abs().max() <= 1


def test_a_start_depends_on_its_own_label_and_seed_only(start, images):
    labels, seeds = torch.arange(60) % 10, torch.arange(60)
    for begin in (start, noise_start((1, 12, 12)), random_image_start(images.pixels, images.labels)):
        starts = begin(labels, seeds)
        assert starts.shape == (60, 1, 12, 12) and starts.abs().max() <= 1
        torch.testing.assert_close(begin(labels[13:17], seeds[13:17]), starts[13:17])
        assert not torch.equal(begin(labels, seeds + 1000), starts)


def test_noise_is_uniform_in_the_box():
    x = noise_start((1, 12, 12))(torch.zeros(500, dtype=torch.long), torch.arange(500))
    assert abs(x.mean()) < 0.01 and abs(x.var() - 1 / 3) < 0.01


def test_random_image_starts_have_the_wanted_class_and_reach_every_image(images):
    few = images.subset(torch.arange(0, len(images), 97))
    labels = torch.arange(3000) % 10
    drawn = to_pixels(random_image_start(few.pixels, few.labels)(labels, torch.arange(3000)))
    same = (drawn[:, None] == few.pixels[None]).flatten(2).all(dim=2)  # (drawn, few)
    assert same.any(dim=1).all() and same.any(dim=0).all()
    assert torch.equal(few.labels[same.float().argmax(dim=1)], labels)
    anything = to_pixels(random_image_start(few.pixels)(labels, torch.arange(3000)))
    assert (anything[:, None] == few.pixels[None]).flatten(2).all(dim=2).any(dim=0).all()


def test_a_class_without_images_and_a_sampler_without_a_start_are_errors(images):
    with pytest.raises(ValueError, match="class 3 has no image"):
        random_image_start(images.pixels[images.labels != 3], images.labels[images.labels != 3])
    with pytest.raises(ValueError, match="a sampler needs a start"):
        Sampler(())(LABELS, SEEDS)


def test_chains_start_from_given_images_in_order(images):
    pixels = images.pixels[:4]
    x = image_start(pixels, first_seed=100)(torch.zeros(6, dtype=torch.long), torch.arange(100, 106))
    assert torch.equal(x, to_model(pixels[[0, 1, 2, 3, 0, 1]]))
