"""The three modes are compositions of the same stages, and a sample is the same in any batch."""

from dataclasses import replace

import pytest
import torch

from rjem_cli.config import TrainConfig
from rjem_cli.engine.chains.noise import chain_noise
from rjem_cli.engine.chains.pgd import pgd
from rjem_cli.engine.chains.pipeline import contrast, plan_of, prior_samples, run_plan
from rjem_cli.engine.chains.sgld import sgld
from rjem_cli.engine.data.digits import digit_splits
from rjem_cli.engine.data.images import to_pixels
from rjem_cli.engine.model.energy import joint_energy
from rjem_cli.engine.model.frozen import freeze
from rjem_cli.engine.model.prior import fit_prior
from rjem_cli.engine.model.wide_resnet import WideResNet

CONFIG = TrainConfig(noise_std=0.05, sample_steps=4, attack_steps=3)


@pytest.fixture(scope="module")
def prior():
    return fit_prior(digit_splits(0.1, shifted=True).train)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return freeze(WideResNet(1, num_classes=10, depth=10, width=1, norm="batch"))


def test_combined_is_attack_then_contrast_then_chain(prior, model):
    labels, seeds = torch.arange(10), torch.arange(100, 110)
    starts = prior_samples(prior, labels, seeds)
    combined = run_plan(plan_of(CONFIG, "combined"), model, starts, labels, seeds)
    attacked = pgd(model, starts, labels, eps=CONFIG.attack_eps, steps=3, targeted=True)
    by_hand = sgld(
        lambda x: joint_energy(model(x), labels),
        contrast(attacked, CONFIG.contrast),
        sgld_steps=4,
        step_size=CONFIG.sgld_step_size * CONFIG.inner_steps,
        noise_std=0.05,
        noise=chain_noise(seeds),
    )
    assert torch.equal(combined, by_hand)
    assert torch.equal(run_plan(plan_of(CONFIG, "attack"), model, starts, labels, seeds), attacked)
    nothing = replace(plan_of(CONFIG, "energy"), sgld_steps=0)
    assert torch.equal(run_plan(nothing, model, starts, labels, seeds), starts)


def test_the_cost_of_a_sample_counts_its_gradient_steps():
    costs = {mode: plan_of(CONFIG, mode).gradient_steps for mode in ("energy", "attack", "combined")}
    assert costs == {"energy": 4, "attack": 3, "combined": 7}


@pytest.mark.parametrize("mode", ["energy", "attack", "combined"])
def test_a_sample_is_the_same_in_any_batch(prior, model, mode):
    labels, seeds = torch.arange(20) % 10, torch.arange(20)

    def pixels(rows: slice) -> torch.Tensor:
        starts = prior_samples(prior, labels[rows], seeds[rows])
        return to_pixels(run_plan(plan_of(CONFIG, mode), model, starts, labels[rows], seeds[rows]))

    together = pixels(slice(0, 20))
    apart = torch.cat([pixels(slice(first, first + 7)) for first in range(0, 20, 7)])
    assert (together.int() - apart.int()).abs().max() <= 1
