"""SGLD has the stationary law implied by its step and noise, and JEM++'s inner loop has a closed form."""

import pytest
import torch
from torch import nn

from rjem_cli.engine.gradients import value_and_grad
from rjem_cli.engine.models.energy import energy
from rjem_cli.engine.sampling.sgld import ChainState, sgld, sgld_step


def quadratic(stiffness: float):
    return lambda x: 0.5 * stiffness * x.flatten(1).square().sum(1)


def identity(x: torch.Tensor) -> torch.Tensor:
    """Instead of a network: the energy is a function of x itself."""
    return x


def run_chains(stiffness: float, count: int, **options) -> torch.Tensor:
    """The ends of `count` chains that start at 0, with independent noise."""
    generator = torch.Generator().manual_seed(0)
    return sgld(
        identity,
        torch.zeros(count, 1, 5, 5),
        energy_fn=quadratic(stiffness),
        noise=lambda step, x: torch.randn(x.shape, generator=generator),
        **options,
    )


def test_stationary_variance_on_a_quadratic_energy():
    """x' = (1 - a k) x + s n has variance s^2 / (1 - (1 - a k)^2)."""
    step_size, stiffness, noise_std = 0.1, 2.0, 0.05
    x = run_chains(stiffness, 2000, steps=60, step_size=step_size, noise_std=noise_std)
    expected = noise_std**2 / (1 - (1 - step_size * stiffness) ** 2)
    assert x.var().item() == pytest.approx(expected, rel=0.03)
    assert abs(x.mean().item()) < 0.005


def test_at_temperature_t_chains_follow_the_energy_divided_by_t():
    variances = []
    for temperature, stiffness in ((4.0, 2.0), (1.0, 0.5)):
        x = run_chains(stiffness, 500, steps=60, step_size=0.2, noise_std=0.05, temperature=temperature)
        variances.append(x.var().item())
    assert variances[0] == pytest.approx(variances[1], rel=1e-4)


def test_langevin_noise_samples_the_density_of_the_energy():
    """Eq. 1 with a = 2 * step: for E = k x^2 / 2 the variance is 1 / k, up to a factor 1 / (1 - step * k / 2)."""
    step_size, stiffness = 0.02, 40.0
    noise_std = (2 * step_size) ** 0.5
    x = run_chains(stiffness, 2000, steps=80, step_size=step_size, grad_clip=None, noise_std=noise_std)
    assert x.var().item() == pytest.approx(1 / stiffness / (1 - step_size * stiffness / 2), rel=0.03)


def test_a_chain_that_is_not_clamped_may_leave_the_box():
    x = torch.full((1, 1, 2, 2), 0.9)
    gradient = torch.full_like(x, -1.0)
    assert sgld_step(x, gradient, 0.5, 1.0).max() == 1
    torch.testing.assert_close(sgld_step(x, gradient, 0.5, 1.0, clamp=False), torch.full_like(x, 1.4))


def test_without_noise_the_energy_falls_at_every_step():
    seen: list[ChainState] = []
    x = torch.rand(4, 1, 3, 3) * 2 - 1
    sgld(identity, x, steps=8, step_size=0.3, energy_fn=quadratic(1.0), callback=seen.append)
    energies = torch.stack([state.energy_B for state in seen])
    assert (energies[1:] < energies[:-1]).all()
    assert [state.step for state in seen] == list(range(8))


def test_chains_stay_in_the_box_and_no_step_is_longer_than_the_clip_allows():
    x = torch.rand(4, 1, 3, 3) * 2 - 1
    gradient = torch.randn_like(x) * 1e6
    moved = sgld_step(x, gradient, step_size=0.7, grad_clip=0.5)
    assert moved.abs().max() <= 1
    assert (moved - x).abs().max() <= 0.7 * 0.5 + 1e-6


def test_noise_without_a_noise_function_is_an_error():
    with pytest.raises(ValueError, match="noise"):
        sgld(identity, torch.zeros(1, 1, 2, 2), steps=1, step_size=0.1, energy_fn=quadratic(1.0), noise_std=0.1)


def test_the_closed_form_equals_the_literal_proximal_loop():
    """JEM++ freezes dE/dz after the first layer z = conv(x) and takes n inner steps through that layer alone."""
    torch.manual_seed(0)
    first = nn.Conv2d(3, 6, 3, padding=1).double()
    rest = nn.Sequential(nn.LeakyReLU(0.2), nn.Conv2d(6, 4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(5)).double()
    x = torch.rand(3, 3, 8, 8, dtype=torch.float64) * 2 - 1
    rest(first(x))
    inner_steps, inner_step_size, clip = 5, 0.2, 0.01  # some gradients are larger than the clip

    literal, closed = x, x
    for _ in range(4):
        z = first(literal).detach().requires_grad_()
        (dz,) = torch.autograd.grad(energy(rest(z)).sum(), z)
        for _ in range(inner_steps):
            inner = literal.detach().requires_grad_()
            (dx,) = torch.autograd.grad((first(inner) * dz).sum(), inner)
            literal = (inner - inner_step_size * dx.clamp(-clip, clip)).clamp(-1, 1).detach()
        gradient = value_and_grad(lambda x: rest(first(x)), energy, closed).gradient
        closed = sgld_step(closed, gradient, inner_steps * inner_step_size, clip)
    torch.testing.assert_close(closed, literal, rtol=0, atol=1e-12)
    assert (closed - x).abs().max() > 0.01
