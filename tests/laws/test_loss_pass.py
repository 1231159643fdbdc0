"""One pass over x_adv, x and x_q is three, as far as BatchNorm lets it be; and no layout of memory changes a number."""

from __future__ import annotations

import copy

import pytest
import torch

from rjem_cli.config import RuntimeOptions
from rjem_cli.engine.models.wide_resnet import WideResNet, channels_last
from rjem_cli.engine.runtime import start_runtime
from rjem_cli.engine.training.loss_pass import LossPass

RUNTIME = start_runtime(RuntimeOptions(device="cpu"))


def losses_of(model: torch.nn.Module, images: tuple[torch.Tensor, ...], joint: bool) -> dict[str, torch.Tensor]:
    """The logits of each, and the gradient of every weight by a sum of theirs."""
    found = LossPass(model, RUNTIME, joint).train()(*images)
    sum((place + 1) * logits_BK.square().mean() for place, logits_BK in enumerate(found)).backward()
    logits = {str(place): logits_BK.detach() for place, logits_BK in enumerate(found)}
    return logits | {name: parameter.grad for name, parameter in model.named_parameters()}


def two_of(norm: str, images_differ: bool = True) -> tuple[WideResNet, WideResNet, tuple[torch.Tensor, ...]]:
    torch.manual_seed(0)
    model = WideResNet(3, num_classes=4, depth=10, width=1, norm=norm)
    images = tuple(torch.rand(4, 3, 8, 8) * 2 - 1 + place * images_differ for place in range(3))
    return model, copy.deepcopy(model), images


@pytest.mark.parametrize("norm", ["group", "none"])
def test_one_joint_pass_is_three_passes(norm):
    model, other, images = two_of(norm)
    joint, separate = losses_of(model, images, joint=True), losses_of(other, images, joint=False)
    for name, value in joint.items():
        torch.testing.assert_close(value, separate[name], rtol=1e-4, atol=1e-5)


def test_batch_norm_sees_what_a_pass_holds():
    """So the two ways are two losses, and both can be asked for."""
    model, other, images = two_of("batch")
    joint, separate = losses_of(model, images, joint=True), losses_of(other, images, joint=False)
    assert (joint["0"] - separate["0"]).abs().max() > 0.01


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_channels_last_are_the_same_numbers(norm):
    model, other, images = two_of(norm)
    by_planes, by_pixels = losses_of(model, images, joint=True), losses_of(channels_last(other), images, joint=True)
    assert other.stem.weight.is_contiguous(memory_format=torch.channels_last)
    for name, value in by_planes.items():
        torch.testing.assert_close(by_pixels[name], value, rtol=1e-4, atol=1e-5)
