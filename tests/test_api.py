"""rjem for Python: the same results as the commands, and errors that name arguments."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

import rjem_cli
from rjem_cli.config.scoring import AttackConfig
from rjem_cli.engine.data.images import to_model, to_pixels
from rjem_cli.engine.kernels import Kernels
from rjem_cli.engine.models.eval_images import load_eval_images
from rjem_cli.errors import AbsentError, ConfigError
from tests.pretend_cuda import PretendCuda


@pytest.fixture
def model(trained):
    return rjem_cli.load("tiny", device="cpu")


def test_importing_the_package_loads_no_torch():
    code = "import rjem_cli, sys; assert 'torch' not in sys.modules; rjem_cli.load; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_samples_are_those_of_the_command(model, rjem, tmp_path):
    file = tmp_path / "x.npz"
    assert (
        rjem("generate", "tiny", "--class", "3,8", "-n", "6", "--seed", "5", "--mode", "combined", "-o", file).code == 0
    )
    x = rjem_cli.sample(model, classes=[3, "8"], n=6, seed=5, mode="combined")
    assert x.shape == (6, 1, 8, 8) and x.abs().max() <= 1
    assert np.array_equal(to_pixels(x).permute(0, 2, 3, 1).numpy(), np.load(file)["arr_0"])


def test_an_attack_finds_what_the_command_finds(model, rjem, tmp_path):
    arguments = ["--eps", "0.3", "--steps", "4", "--restarts", "2", "--limit", "20", "--save", tmp_path / "attacked"]
    document = json.loads(rjem("attack", "tiny", *arguments, "--json").out)
    images = load_eval_images(AttackConfig(limit=20), model.info).images
    result = rjem_cli.attack(model, to_model(images.pixels), images.labels, eps=0.3, steps=4, restarts=2)
    correct = model(to_model(images.pixels)).argmax(dim=1) == images.labels
    # random starts depend on the position of an image, which differs here, so only the accuracy is comparable
    robust = float((correct & ~result.success).float().mean())
    assert abs(robust - document["results"][0]["robust_accuracy"]["value"]) <= 0.1
    assert ((result.x - to_model(images.pixels)).abs() <= 0.3 + 1e-6).all() and result.x.abs().max() <= 1


def test_a_successful_attack_changes_the_prediction(model):
    x = rjem_cli.sample(model, n=20, seed=1)
    labels = model(x).argmax(dim=1)
    result = rjem_cli.attack(model, x, labels, eps=1.0, steps=10)
    assert torch.equal(model(result.x).argmax(dim=1) != labels, result.success) and result.success.any()
    targets = (labels + 1) % 10
    targeted = rjem_cli.attack(model, x, targets, eps=1.0, steps=10, targeted=True)
    assert torch.equal(model(targeted.x).argmax(dim=1) == targets, targeted.success)


def test_scores_are_those_of_the_command(model, rjem, digits_judge, tmp_path):
    x = rjem_cli.sample(model, n=40, seed=2)
    np.savez(tmp_path / "x.npz", arr_0=to_pixels(x).permute(0, 2, 3, 1).numpy())
    options = ["--reference", "digits:train", "--features", "judge", "--metrics", "is", "--is-splits", "2"]
    document = json.loads(rjem("eval", tmp_path / "x.npz", *options, "--json").out)
    scores = rjem_cli.score(x, reference="digits:train", features="judge", metrics="is", is_splits=2)
    assert dict(scores) == {name: document[name] for name in scores} and "is_judge" in scores
    assert scores.document["protocol"]["reference"] == document["protocol"]["reference"]


def test_a_model_is_scored_as_by_the_command(model, rjem):
    document = json.loads(rjem("eval", "tiny", "--limit", "20", "--steps", "2", "--samples", "0", "--json").out)
    scores = rjem_cli.score(model, limit=20, steps=2, samples=0)
    assert dict(scores) == {name: document[name] for name in scores} and "accuracy" in scores


def test_energies_agree_with_logits(model):
    x = rjem_cli.sample(model, n=3)
    logits = model(x)
    assert torch.allclose(model.energy(x), -logits.logsumexp(dim=1))
    assert torch.allclose(model.energy(x, torch.tensor([1, 2, 3])), -logits[range(3), [1, 2, 3]])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: rjem_cli.sample(model, sgld_step_size=-1), "sgld_step_size -1"),
        (lambda model: rjem_cli.sample(model, sgld_stepz=3), "did you mean sgld_steps"),
        (lambda model: rjem_cli.sample(model, classes=["cat"]), "classes 'cat' is unknown"),
        (lambda model: rjem_cli.attack(model, torch.zeros(2, 3, 8, 8), [1, 2]), "give float images (B, 1, 8, 8)"),
        (lambda model: rjem_cli.attack(model, torch.zeros(2, 1, 8, 8), [1]), "one class per image"),
        (lambda model: rjem_cli.attack(model, torch.full((1, 1, 8, 8), 2.0), [1]), "give images in [-1, 1]"),
        (lambda model: rjem_cli.attack(model, torch.zeros(1, 1, 8, 8), torch.tensor([10])), "the model has 10"),
        (lambda model: rjem_cli.attack(model, torch.zeros(1, 1, 8, 8), [1], eps=8), "eps 8"),
        (lambda model: rjem_cli.score(torch.zeros(3, 8, 8)), "give a tensor (N, C, H, W)"),
    ],
)
def test_errors_name_arguments(model, call, message):
    with pytest.raises(ConfigError) as caught:
        call(model)
    assert message in str(caught.value) and "--" not in str(caught.value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model, x, y: rjem_cli.attack(model, x, y, limit=1), "rjem.attack has no option limit"),
        (lambda model, x, y: rjem_cli.attack(model, x, y, targeted="random"), "targeted is 'random'"),
        (lambda model, x, y: rjem_cli.attack(model, x, y.float()), r"y is float32 \(4,\)"),
        (lambda model, x, y: rjem_cli.attack(model, x, None), "y is a NoneType"),
        (lambda model, x, y: rjem_cli.attack(model, x.numpy(), y), "x is a ndarray"),
        (lambda model, x, y: rjem_cli.sample(model, n=2, device="cpu"), "rjem.sample has no option device"),
        (lambda model, x, y: rjem_cli.sample(model, n=2, count=3), "rjem.sample has no option count"),
        (lambda model, x, y: rjem_cli.sample(model, n=2, image_size=8), "image_size resizes your images"),
        (lambda model, x, y: rjem_cli.score(model, metrics="fid"), "rjem.score has no option metrics"),
        (lambda model, x, y: rjem_cli.score(x, bins=3), "rjem.score has no option bins"),
        (lambda model, x, y: rjem_cli.score(255 * (x + 1)), "samples has values up to"),
        (lambda model, x, y: rjem_cli.score(x * torch.nan), "samples has values up to nan"),
        (lambda model, x, y: rjem_cli.score(x.long()), "samples is int64"),
        (lambda model, x, y: rjem_cli.score(x.numpy()), "samples are a ndarray"),
        (lambda model, x, y: rjem_cli.sample(model, init=x), "init tensor"),
        (lambda model, x, y: model(x[:, :, :4]), r"x has shape \(4, 1, 4, 8\); the model takes \(B, 1, 8, 8\)"),
        (lambda model, x, y: model.energy(x, y[:1]), r"y is torch.int64 \(1,\) for 4 images"),
    ],
)
def test_what_an_argument_cannot_mean_is_refused_and_never_ignored(model, call, message):
    x, y = torch.rand(4, 1, 8, 8), torch.arange(4)
    with pytest.raises(ConfigError, match=message) as error:
        call(model, x, y)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_images_of_other_float_types_are_attacked(model, dtype):
    x = torch.rand(4, 1, 8, 8).to(dtype)
    assert rjem_cli.attack(model, x, [0, 1, 2, 3], eps=0.1, steps=1).x.dtype == torch.float32


def test_an_unknown_run_is_absent(trained):
    with pytest.raises(AbsentError, match="nope"):
        rjem_cli.load("nope")
    with pytest.raises(AttributeError):
        rjem_cli.nothing  # noqa: B018


def test_loops_treat_a_model_like_its_network():
    """With the same arithmetic and the same CUDA graphs."""
    with PretendCuda():
        model = rjem_cli.load("cifar10-16", device="cuda")
        assert model.kernels == Kernels(tf32=True) and model.graphs is model.logits_fn.graphs is not None
