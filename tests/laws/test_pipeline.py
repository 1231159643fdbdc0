"""The three modes are compositions of the same stages, and a start depends on its own label and seed."""

from dataclasses import replace

import pytest
import torch
from rjem_cli.engine.moves import walk

from rjem_cli.config import TrainConfig
from rjem_cli.engine.data.digits import digit_splits
from rjem_cli.engine.data.images import to_model, to_pixels
from rjem_cli.engine.models.energy import energy, joint_energy
from rjem_cli.engine.models.frozen import freeze
from rjem_cli.engine.models.prior import fit_prior
from rjem_cli.engine.models.wide_resnet import WideResNet
from rjem_cli.engine.noise import chain_noise
from rjem_cli.engine.sampling.pipeline import (
    Sampler,
    build_sampler,
    contrast,
    image_start,
    langevin,
    noise_start,
    pgd,
    prior_start,
    random_image_start,
    sgld,
    targeted_pgd,
)

CONFIG = TrainConfig(noise_std=0.05, sample_steps=4, unconditional_steps=6, attack_steps=3)
LABELS, SEEDS = torch.arange(10), torch.arange(100, 110)


@pytest.fixture(scope="module")
def images():
    return digit_splits(0.1, shifted=True).train


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
    attacked = walk(model, pgd(x, LABELS, eps=CONFIG.attack_eps, steps=3, targeted=True))
    by_hand = walk(
        model,
        sgld(
            lambda logits: joint_energy(logits, LABELS),
            attacked * CONFIG.contrast,
            sgld_steps=4,
            step_size=CONFIG.sgld_step_size * CONFIG.inner_steps,
            noise_std=0.05,
            noise=chain_noise(SEEDS),
        ),
    )
    assert torch.equal(combined, by_hand)
    assert torch.equal(build_sampler(SamplePlan.from_config(CONFIG, "attack"), start, model)(LABELS, SEEDS), attacked)
    nothing = replace(SamplePlan.from_config(CONFIG, "energy"), sgld_steps=0)
    assert torch.equal(build_sampler(nothing, start, model)(LABELS, SEEDS), x)


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
    by_hand = walk(
        model,
        sgld(
            energy,
            start(LABELS, SEEDS),
            sgld_steps=6,
            step_size=1.0,
            noise_std=0.05,
            noise=chain_noise(SEEDS),
        ),
    )
    assert torch.equal(build_sampler(plan, start, model)(LABELS, SEEDS), by_hand)


def test_the_cost_of_a_sample_counts_its_gradient_steps():
    costs = {mode: SamplePlan.from_config(CONFIG, mode).gradient_steps for mode in ("energy", "attack", "combined")}
    assert costs == {"energy": 4, "attack": 3, "combined": 7}


@pytest.mark.parametrize("mode", ["energy", "attack", "combined"])
def test_a_sample_depends_on_its_own_seed_up_to_the_last_bits_of_the_batch(start, model, mode):
    labels, seeds = torch.arange(20) % 10, torch.arange(20)
    sampler = build_sampler(SamplePlan.from_config(CONFIG, mode), start, model)
    together = to_pixels(sampler(labels, seeds))
    apart = torch.cat([to_pixels(sampler(labels[i : i + 7], seeds[i : i + 7])) for i in range(0, 20, 7)])
    assert (together.int() - apart.int()).abs().max() <= 1


def test_starts_depend_on_their_own_seed(start, images):
    labels, seeds = torch.arange(60) % 10, torch.arange(60)
    for begin in (start, noise_start((1, 12, 12)), random_image_start(images.pixels, images.labels)):
        whole = begin(labels, seeds)
        assert whole.shape == (60, 1, 12, 12) and whole.abs().max() <= 1
        torch.testing.assert_close(begin(labels[13:17], seeds[13:17]), whole[13:17])
        assert not torch.equal(begin(labels, seeds + 1000), whole)


def test_noise_is_uniform_in_the_box():
    x = noise_start((1, 12, 12))(torch.zeros(500, dtype=torch.long), torch.arange(500))
    assert abs(x.mean()) < 0.01 and abs(x.var() - 1 / 3) < 0.01


def test_random_images_are_of_the_wanted_class_and_reach_every_one(images):
    few = images.subset(torch.arange(0, len(images), 97))
    labels = torch.arange(3000) % 10
    drawn = to_pixels(random_image_start(few.pixels, few.labels)(labels, torch.arange(3000)))
    same = (drawn[:, None] == few.pixels[None]).flatten(2).all(dim=2)  # (drawn, few)
    assert same.any(dim=1).all() and same.any(dim=0).all()
    assert torch.equal(few.labels[same.float().argmax(dim=1)], labels)
    anything = to_pixels(random_image_start(few.pixels)(labels, torch.arange(3000)))
    assert (anything[:, None] == few.pixels[None]).flatten(2).all(dim=2).any(dim=0).all()


def test_a_class_without_images_and_a_sampler_without_a_start_are_refused(images):
    with pytest.raises(ValueError, match="class 3 has no image"):
        random_image_start(images.pixels[images.labels != 3], images.labels[images.labels != 3])
    with pytest.raises(ValueError, match="a sampler needs a start"):
        Sampler(())(LABELS, SEEDS)


def test_given_images_come_in_their_order(images):
    pixels = images.pixels[:4]
    x = image_start(pixels, first_seed=100)(torch.zeros(6, dtype=torch.long), torch.arange(100, 106))
    assert torch.equal(x, to_model(pixels[[0, 1, 2, 3, 0, 1]]))
