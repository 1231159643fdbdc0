"""One joint pass over x_adv, x and x_q equals three passes, except for BatchNorm; the memory layout changes nothing."""

from __future__ import annotations

import copy

import pytest
import torch

from rjem_cli.config.common import RuntimeOptions
from rjem_cli.engine.networks.wide_resnet import WideResNet
from rjem_cli.engine.runtime import start_runtime
from rjem_cli.engine.training.trainer import TrainingForward

RUNTIME = start_runtime(RuntimeOptions(device="cpu"))


def logits_and_gradients(
    model: torch.nn.Module, batches: tuple[torch.Tensor, ...], joint: bool
) -> dict[str, torch.Tensor]:
    """The logits of each batch by its index, and the gradient of a loss of all logits by each weight's name."""
    outputs = TrainingForward(model, RUNTIME.logits(model), joint).train()(*batches)
    sum((index + 1) * logits_BK.square().mean() for index, logits_BK in enumerate(outputs)).backward()
    logits = {str(index): logits_BK.detach() for index, logits_BK in enumerate(outputs)}
    return logits | {name: parameter.grad for name, parameter in model.named_parameters()}


def two_models(norm: str) -> tuple[WideResNet, WideResNet, tuple[torch.Tensor, ...]]:
    """Two equal models, and three batches with different means."""
    torch.manual_seed(0)
    model = WideResNet(3, num_classes=4, depth=10, width=1, norm=norm)
    batches = tuple(torch.rand(4, 3, 8, 8) * 2 - 1 + index for index in range(3))
    return model, copy.deepcopy(model), batches


@pytest.mark.parametrize("norm", ["group", "none"])
def test_without_batch_norm_one_joint_pass_equals_three_passes(norm):
    model, other, batches = two_models(norm)
    joint, separate = (
        logits_and_gradients(model, batches, joint=True),
        logits_and_gradients(other, batches, joint=False),
    )
    for name, value in joint.items():
        torch.testing.assert_close(value, separate[name], rtol=1e-4, atol=1e-5)


def test_batch_norm_uses_the_statistics_of_a_pass():
    """So joint and separate passes are different losses, and --bn-statistics selects one."""
    model, other, batches = two_models("batch")
    joint, separate = (
        logits_and_gradients(model, batches, joint=True),
        logits_and_gradients(other, batches, joint=False),
    )
    assert (joint["0"] - separate["0"]).abs().max() > 0.01


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_channels_last_changes_no_number(norm):
    model, other, batches = two_models(norm)
    contiguous, strided = (
        logits_and_gradients(model, batches, joint=True),
        logits_and_gradients(other.to(memory_format=torch.channels_last), batches, joint=True),
    )
    assert other.stem.weight.is_contiguous(memory_format=torch.channels_last)
    for name, value in contiguous.items():
        torch.testing.assert_close(strided[name], value, rtol=1e-4, atol=1e-5)
