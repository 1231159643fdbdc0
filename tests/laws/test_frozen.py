"""The frozen network computes what the network in eval mode computes."""

import pytest
import torch

from rjem_cli.engine.model.frozen import freeze
from rjem_cli.engine.model.wide_resnet import WideResNet


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
@pytest.mark.parametrize(("channels", "height", "width"), [(1, 12, 12), (3, 32, 32), (3, 17, 9)])
def test_freezing_changes_neither_the_output_nor_the_model(norm, channels, height, width):
    torch.manual_seed(0)
    model = WideResNet(channels, num_classes=4, depth=16, width=2, norm=norm)
    for _ in range(3):  # statistics unlike the initial ones
        model(torch.randn(8, channels, height, width) * 2 + 1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    frozen = freeze(model)
    x = torch.rand(5, channels, height, width) * 2 - 1
    torch.testing.assert_close(frozen(x), model.eval()(x), rtol=1e-4, atol=1e-4)
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_frozen_network_sees_each_image_alone():
    torch.manual_seed(0)
    model = WideResNet(1, num_classes=4, depth=10, width=1, norm="batch")
    x = torch.rand(6, 1, 8, 8)
    model(x)
    frozen = freeze(model)
    torch.testing.assert_close(frozen(x)[2:3], frozen(x[2:3]))
