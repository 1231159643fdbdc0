"""--model attacks, samples from and scores a user's own network."""

from __future__ import annotations

import importlib
import json
import sys

import pytest

from rjem_cli.config.training import DataOptions
from rjem_cli.engine.data.images import to_model
from rjem_cli.engine.data.load import load_splits

MY_MODELS = '''
import warnings

import torch
from torch import nn

class Small(nn.Module):
    def __init__(self, classes=10):
        super().__init__()
        torch.manual_seed(0)
        norms = nn.BatchNorm2d(8, affine=False), nn.BatchNorm2d(8)
        self.body = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), norms[0], nn.ReLU(), norms[1])
        self.head = nn.Linear(8, classes)
    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))

def small():
    return Small()

def seven():
    return Small(7)

def colour():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 10))

def broken():
    network = Small()
    nn.init.constant_(network.head.bias, float("nan"))
    return network

def text():
    return "no network"

class Louder(Small):
    def forward(self, x):
        return 2 * super().forward(x)

def louder():
    return Louder()

def shifted():
    import other  # in the same folder
    return other.Shifted()

class Random(Small):
    def forward(self, x):
        return nn.functional.dropout(super().forward(x), 0.5, training=True)

def random():
    return Random()

class Together(Small):
    def forward(self, x):
        return super().forward(x - x.mean(dim=0))

def together():
    return Together()

class Careless(Small):
    def forward(self, x):
        print("hello")
        return super().forward(x.mul_(1.0))

def careless():
    print("made")
    return Careless()

class Fixed(Small):
    def forward(self, x):
        with torch.no_grad():
            return super().forward(x)

def fixed():
    return Fixed()

def ends():
    raise SystemExit(5)

def wants(depth):
    return Small()

class OldNorms(Small):
    def __init__(self):
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            self.body[0] = nn.utils.weight_norm(self.body[0])
            self.head = nn.utils.spectral_norm(self.head)

def old_norms():
    return OldNorms()

class Doubled(nn.BatchNorm2d):
    def forward(self, x):
        return 2 * super().forward(x)

class Reader(Small):
    """Uses BatchNorms in ways that a folded one would not allow."""
    def __init__(self):
        super().__init__()
        self.body[1] = Doubled(8)
        self.body[3].register_forward_hook(lambda module, inputs, output: output + 1)
    def forward(self, x):
        features = self.body(x).mean((2, 3))
        return self.head(features + self.body[3].running_mean * self.body[3].weight)

def reader():
    return Reader()

def orthogonal():
    network = Small()
    nn.utils.parametrizations.orthogonal(network.head, orthogonal_map="householder")
    return network

class Quantized(Small):
    def __init__(self):
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecated
            self.other = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(64, 10)), {nn.Linear})
    def forward(self, x):
        return super().forward(x) + self.other(x.detach().flatten(1))

def quantized():
    return Quantized()

class Constant(Small):
    def forward(self, x):
        return super().forward(torch.zeros_like(x))

def constant():
    return Constant()

class Exhausted(Small):
    left = iter(range(4))

    def forward(self, x):
        next(self.left)
        return super().forward(x)

def exhausted():
    return Exhausted()

def failing():
    try:
        raise ValueError
    except ValueError:
        raise KeyError("oops")

number = 3
'''

OTHER_CODE = """
from mine import Small

class Shifted(Small):
    def forward(self, x):
        return super().forward(x - 1)
"""


@pytest.fixture(autouse=True)
def my_models(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(MY_MODELS)
    (tmp_path / "other.py").write_text(OTHER_CODE)
    monkeypatch.chdir(tmp_path)
    for name in ("mine", "other"):
        monkeypatch.delitem(sys.modules, name, raising=False)


DATA = ("--dataset", "digits")
SMALL = ("--model", "mine:small", *DATA)
SHORT_ATTACK = (*DATA, "--limit", 30, "--eps", "0.1", "--steps", 2)


def test_a_custom_model_is_attacked_sampled_from_and_scored(rjem):
    attacked = json.loads(rjem("attack", *SMALL, "--limit", 60, "--eps", "0.1", "--steps", 3, "--json").out)
    assert attacked["protocol"]["checkpoint"]["path"] == "mine:small" and attacked["clean"]["accuracy"]["of"] == 60
    scored = rjem("eval", *SMALL, "--limit", 60, "--steps", 3, "--samples", 20, "--json")
    assert json.loads(scored.out)["accuracy"] == attacked["clean"]["accuracy"]["value"]
    assert "network: mine:small (for digits)" in scored.err
    assert rjem("langevin", *SMALL, "--sgld-steps", 3, "-n", 4, "-o", "chains").code == 0
    for init in ("prior", "noise"):
        assert rjem("generate", *SMALL, "-n", 20, "--sgld-steps", 2, "--init", init, "-o", f"{init}.npz").code == 0


def test_a_network_that_prints_and_changes_its_images_gives_the_same_results(rjem):
    plain, careless = (
        json.loads(rjem("attack", "--model", f"mine:{name}", *SHORT_ATTACK, "--json").out)
        for name in ("small", "careless")
    )
    assert careless["results"] == plain["results"] and careless["clean"] == plain["clean"]


@pytest.mark.parametrize("name", ["old_norms", "quantized"])
def test_networks_with_unusual_weights_are_attacked_and_scored(rjem, name):
    for command in ("attack", "eval"):
        outcome = rjem(command, "--model", f"mine:{name}", *SHORT_ATTACK)
        assert outcome.code == 0, outcome.err


@pytest.mark.parametrize(
    ("name", "note"), [("random", "output is random"), ("together", "depends on its batch"), ("small", None)]
)
def test_random_outputs_and_those_that_depend_on_the_batch_are_noted(rjem, name, note):
    flags = ("--model", f"mine:{name}", *DATA, "--limit", 20, "--eps", "0.1", "--steps", 1)
    outcome = rjem("attack", *flags)
    assert outcome.code == 0 and outcome.err.count("note: the network's output") == bool(note)
    document = json.loads(rjem("attack", *flags, "--json").out)
    notes = [json.loads(rjem("eval", *flags, "--samples", 0, "--json").out)["notes"], document["protocol"]["notes"]]
    assert all(any(note in each for each in found) if note else not found for found in notes)


def test_a_network_without_half_precision_kernels_is_attacked_in_bf16(rjem):
    outcome = rjem("attack", "--model", "mine:orthogonal", *SHORT_ATTACK, "--precision", "bf16")
    assert outcome.code == 0, outcome.err


def test_a_network_that_uses_its_batch_norms_otherwise_keeps_its_accuracy(rjem, tmp_path, monkeypatch):
    """Subclasses, hooks, and a forward that reads the running statistics."""
    monkeypatch.syspath_prepend(tmp_path)
    mine = importlib.import_module("mine")

    images = load_splits(DataOptions(dataset="digits")).test
    correct = mine.reader().eval()(to_model(images.pixels)).argmax(dim=1) == images.labels
    document = json.loads(rjem("attack", "--model", "mine:reader", *DATA, "--eps", 0, "--steps", 1, "--json").out)
    accuracy = document["clean"]["accuracy"]
    assert accuracy["of"] == len(images) and accuracy["value"] == pytest.approx(correct.float().mean().item(), abs=1e-4)


def test_samples_identify_the_network_by_its_weights_and_its_code(rjem):
    def sample(name, output):
        flags = ("-n", 20, "--sgld-steps", 2, "--json", "-o", f"{output}.npz")
        return json.loads(rjem("generate", "--model", f"mine:{name}", *DATA, *flags).out)["checkpoint_sha256"]

    first, again, louder, shifted = map(sample, ("small", "small", "louder", "shifted"), "abcd")  # the same weights
    assert first == again and len(first) == 64
    assert len({first, louder, shifted}) == 3


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (("--model", "mine:small"), 2, "needs --dataset or --data"),
        (("--model", "mine", *DATA), 2, "give module:factory"),
        (("--model", "./mine:small", *DATA), 2, "write the module as in an import"),
        (("--model", "nobody:small", *DATA), 3, "No module named 'nobody'"),
        (("--model", "mine:smal", *DATA), 3, "mine has no smal"),
        (("--model", "mine:number", *DATA), 2, "is not a function"),
        (("--model", "mine:text", *DATA), 1, "returns str; it must return a torch.nn.Module"),
        (("--model", "mine:seven", *DATA), 1, "returns (2, 7) for 2 images, not (2, 10)"),
        (("--model", "mine:colour", *DATA), 1, "fails on images (1, 8, 8)"),
        (("--model", "mine:broken", *DATA), 1, "logits that are not finite"),
        (("--model", "mine:fixed", *DATA), 1, "logits without a gradient to the images"),
        (("--model", "mine:constant", *DATA), 1, "logits without a gradient to the images"),
        (("--model", "mine:ends", *DATA), 1, "exited with code 5"),
        (("--model", "mine:wants", *DATA), 2, "is not a function that needs no arguments"),
        (("some-run", *SMALL), 2, "give some-run or --model mine:small, not both"),
    ],
)
def test_an_unusable_network_is_one_line(rjem, flags, code, message):
    for command in ("attack", "eval", "generate", "langevin"):
        outcome = rjem(command, *flags)
        assert outcome.code == code and message in outcome.error_line(), (command, outcome.err)


def test_a_network_that_raises_stop_iteration_does_not_silently_end_the_attack(rjem):
    with pytest.raises(RuntimeError, match="the network raised StopIteration"):
        rjem("attack", "--model", "mine:exhausted", *DATA, "--limit", 60, "--eps", "0.1", "--steps", 5)


def test_an_error_in_the_users_code_keeps_its_traceback(rjem):
    with pytest.raises(KeyError, match="oops") as raised:
        rjem("attack", "--model", "mine:failing", *DATA)
    assert isinstance(raised.value.__context__, ValueError)
    files = [entry.path for entry in raised.traceback]
    assert files[-1].name == "mine.py" and not any("typer" in str(file) for file in files)


def test_dataset_without_model_is_refused(rjem, monkeypatch):
    outcome = rjem("generate", *DATA)
    assert outcome.code == 2 and "--dataset needs --model" in outcome.error_line()
    monkeypatch.setenv("RJEM_DATASET", "digits")  # set for training
    assert "no checkpoint" in (outcome := rjem("generate")).err and outcome.code == 3
    assert "nothing to score" in rjem("eval").error_line()
