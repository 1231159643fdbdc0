"""A network of the user's is attacked, sampled from and scored by its name."""

from __future__ import annotations

import json
import sys

import pytest

OWN = '''
import warnings

import torch
from torch import nn

class Small(nn.Module):
    """With a BatchNorm of each kind that is not rjem's own."""
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

def other_code():
    import beside  # which lies in the same folder
    return beside.Shifted()

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

BESIDE = """
from mine import Small

class Shifted(Small):
    def forward(self, x):
        return super().forward(x - 1)
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(OWN)
    (tmp_path / "beside.py").write_text(BESIDE)
    monkeypatch.chdir(tmp_path)
    for name in ("mine", "beside"):
        monkeypatch.delitem(sys.modules, name, raising=False)


NAMED = ("--model", "mine:small", "--dataset", "digits")


def test_it_is_attacked_sampled_from_and_scored(rjem, own, tmp_path):
    attacked = json.loads(rjem("attack", *NAMED, "--limit", 60, "--eps", "0.1", "--steps", 3, "--json").out)
    assert attacked["protocol"]["checkpoint"]["path"] == "mine:small" and attacked["clean"]["accuracy"]["of"] == 60
    scored = rjem("eval", *NAMED, "--limit", 60, "--steps", 3, "--samples", 20, "--json")
    assert json.loads(scored.out)["accuracy"] == attacked["clean"]["accuracy"]["value"]
    assert "network: mine:small (for digits)" in scored.err
    assert rjem("langevin", *NAMED, "--sgld-steps", 3, "-n", 4, "-o", "chains").code == 0
    for init in ("prior", "noise"):
        assert rjem("generate", *NAMED, "-n", 20, "--sgld-steps", 2, "--init", init, "-o", f"{init}.npz").code == 0


def test_one_that_prints_and_changes_its_images_does_neither_to_ours(rjem, own):
    flags = ("--dataset", "digits", "--limit", 30, "--eps", "0.1", "--steps", 2, "--json")
    plain, careless = (
        json.loads(rjem("attack", "--model", f"mine:{name}", *flags).out) for name in ("small", "careless")
    )
    assert careless["results"] == plain["results"] and careless["clean"] == plain["clean"]


def test_one_with_old_norms_is_attacked_and_scored(rjem, own):
    flags = ("--model", "mine:old_norms", "--dataset", "digits", "--limit", 30, "--eps", "0.1", "--steps", 2)
    for command in ("attack", "eval"):
        outcome = rjem(command, *flags)
        assert outcome.code == 0, outcome.err


def test_its_samples_are_known_by_its_weights(rjem, own):
    flags = ("generate", *NAMED, "-n", 20, "--sgld-steps", 2, "--json", "-o")
    first, again = (json.loads(rjem(*flags, f"{name}.npz").out) for name in "ab")
    assert first["checkpoint_sha256"] == again["checkpoint_sha256"] and len(first["checkpoint_sha256"]) == 64
    others = ("mine:louder", "mine:other_code")  # the same weights
    found = [json.loads(rjem(*flags[:2], name, *flags[3:], f"{name[5:]}.npz").out) for name in others]
    assert len({meta["checkpoint_sha256"] for meta in (first, *found)}) == 3


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (("--model", "mine:small"), 2, "needs --dataset or --data"),
        (("--model", "mine", "--dataset", "digits"), 2, "give module:factory"),
        (("--model", "./mine:small", "--dataset", "digits"), 2, "write it as in an import"),
        (("--model", "nobody:small", "--dataset", "digits"), 3, "No module named 'nobody'"),
        (("--model", "mine:smal", "--dataset", "digits"), 3, "mine has no smal"),
        (("--model", "mine:number", "--dataset", "digits"), 2, "is no function"),
        (("--model", "mine:text", "--dataset", "digits"), 1, "gives str, no torch.nn.Module"),
        (("--model", "mine:seven", "--dataset", "digits"), 1, "gives (2, 7) for 2 images, not (2, 10)"),
        (("--model", "mine:colour", "--dataset", "digits"), 1, "does not take images (1, 8, 8)"),
        (("--model", "mine:broken", "--dataset", "digits"), 1, "logits that are not finite"),
        (("--model", "mine:fixed", "--dataset", "digits"), 1, "logits without a gradient"),
        (("--model", "mine:ends", "--dataset", "digits"), 1, "ended Python with exit code 5"),
        (("--model", "mine:wants", "--dataset", "digits"), 2, "is no function without arguments"),
        (("some-run", *NAMED), 2, "give some-run or --model mine:small, not both"),
    ],
)
def test_what_is_no_such_network_is_one_line(rjem, own, flags, code, message):
    for command in ("attack", "eval", "generate", "langevin"):
        outcome = rjem(command, *flags)
        assert outcome.code == code and message in outcome.error_line(), (command, outcome.err)


def test_one_whose_loop_ends_does_not_end_ours(rjem, own):
    with pytest.raises(RuntimeError, match="the network raised StopIteration"):
        rjem("attack", "--model", "mine:exhausted", "--dataset", "digits", "--limit", 60, "--eps", "0.1", "--steps", 5)


def test_an_error_of_its_author_is_shown_from_the_command_on(rjem, own):
    with pytest.raises(KeyError, match="oops") as found:
        rjem("attack", "--model", "mine:failing", "--dataset", "digits")
    assert isinstance(found.value.__context__, ValueError)
    files = [entry.path for entry in found.traceback]
    assert files[-1].name == "mine.py" and not any("typer" in str(file) for file in files)


def test_a_data_set_without_a_network_of_ones_own_is_refused(rjem, own, monkeypatch):
    outcome = rjem("generate", "--dataset", "digits")
    assert outcome.code == 2 and "goes with --model" in outcome.error_line()
    monkeypatch.setenv("RJEM_DATASET", "digits")  # of one's training
    assert "there is no run" not in (outcome := rjem("generate")).err and outcome.code == 3
    assert "nothing to score" in rjem("eval").error_line()
