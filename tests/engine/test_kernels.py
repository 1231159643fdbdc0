"""PyTorch's switches are those of a pass while it runs, and the user's own before and after it."""

from __future__ import annotations

import pytest
import torch

from rjem_cli.engine.gradients import kernels_of, value_and_grad
from rjem_cli.engine.kernels import Kernels


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
