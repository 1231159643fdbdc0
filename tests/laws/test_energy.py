"""A classifier's energies obey the definitions of Grathwohl et al. 2019."""

import torch

from rjem_cli.engine.gradients import value_and_grad
from rjem_cli.engine.models.energy import energy, joint_energy
from rjem_cli.engine.networks.wide_resnet import WideResNet

logits_BK = torch.randn(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 10


def all_joint_energies() -> torch.Tensor:
    return torch.stack([joint_energy(logits_BK, torch.full((7,), label)) for label in range(5)], dim=1)


def test_softmax_of_minus_the_joint_energy_is_the_class_posterior():
    torch.testing.assert_close(torch.softmax(-all_joint_energies(), dim=1), torch.softmax(logits_BK, dim=1))


def test_the_joint_energies_marginalise_to_the_energy():
    torch.testing.assert_close(torch.logsumexp(-all_joint_energies(), dim=1), -energy(logits_BK))


def test_the_energy_gradient_agrees_with_finite_differences():
    torch.manual_seed(0)
    model = WideResNet(channels=2, num_classes=3, depth=10, width=1, norm="group").double().eval()
    x = torch.rand(2, 2, 8, 8, dtype=torch.float64) * 2 - 1
    gradient = value_and_grad(model, energy, x).gradient
    direction = torch.randn_like(x)
    h = 1e-5
    with torch.no_grad():
        difference = (energy(model(x + h * direction)) - energy(model(x - h * direction))) / (2 * h)
    torch.testing.assert_close((gradient * direction).flatten(1).sum(1), difference, rtol=1e-5, atol=1e-7)
