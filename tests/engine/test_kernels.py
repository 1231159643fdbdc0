"""PyTorch's switches are those of a pass while it runs, and the user's own before and after it."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from rjem_cli.engine.gradients import value_and_grad
from rjem_cli.engine.kernels import Kernels, kernels_of


def switches() -> tuple[bool, bool, bool, bool]:
    cudnn = torch.backends.cudnn
    return torch.backends.cuda.matmul.allow_tf32, cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark


def test_switches_are_set_for_a_pass_and_restored():
    before = switches()
    with Kernels(tf32=True, reproducible=False).active():
        assert switches() == (True, True, False, True)
        with Kernels().active():
            assert switches() == (False, False, True, False)
        assert switches() == (True, True, False, True)
    assert switches() == before


def test_switches_are_restored_after_an_error():
    before = switches()
    with pytest.raises(RuntimeError), Kernels(tf32=True).active():
        raise RuntimeError
    assert switches() == before


def test_forward_and_backward_pass_use_the_network_s_kernels():
    seen = []

    class Network:
        kernels = Kernels(tf32=True)

        def __call__(self, x: torch.Tensor) -> torch.Tensor:
            x.register_hook(lambda gradient: seen.append(switches()))
            return x.flatten(1) * 2

    value_and_grad(Network(), lambda logits: logits.sum(dim=1), torch.ones(2, 1, 2, 2))
    assert seen == [(True, True, True, False)]
    assert kernels_of(lambda x: x) == Kernels(tf32=False, reproducible=True)


@pytest.mark.parametrize(
    "setting",
    [
        "torch.set_float32_matmul_precision('medium')",
        "torch.backends.fp32_precision = 'tf32'",
        "torch.backends.cuda.matmul.fp32_precision = 'tf32'",
        "torch.backends.cudnn.conv.fp32_precision = 'ieee'",
    ],
)
def test_settings_of_the_user_are_restored_whichever_switch_was_used(setting):
    """In a process of its own, because PyTorch cannot go back from its newer switches."""
    code = f"""
import torch
from rjem_cli.engine.kernels import Kernels
{setting}
newer = lambda: (torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision)
before = newer()
for tf32 in (True, False):
    with Kernels(tf32=tf32).active():
        assert newer()[0] in (("tf32",) if tf32 else ("ieee", "none")), newer()
        torch.ones(2, 2) @ torch.ones(2, 2)
    assert newer() == before, (newer(), before)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
