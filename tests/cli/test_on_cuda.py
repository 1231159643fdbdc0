"""Every command and every variant of training runs on a pretend CUDA device: no operation mixes devices, and scores are
in fp32."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from rjem_cli.paths import checkpoints_in
from tests.conftest import TINY_FLAGS
from tests.foreign_networks import jem_state
from tests.pretend_cuda import PretendCuda

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
LIMIT = 300  # seconds that a busy machine may take
SCORING = ("--limit", 20, "--steps", 1, "--samples", 10)
SAMPLE_SCORES = ("--reference", "digits", "--features", "judge", "--is-splits", 1, "--allow-few")


@pytest.fixture(autouse=True)
def cuda(made_once):
    """The runs of `made_once` are trained on the host."""
    settings = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    with PretendCuda() as device:
        yield device
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = settings


@pytest.fixture
def on_cuda(rjem, cuda):
    """Run a command that must succeed and use the device. Returns its outcome and its record."""

    def run(*arguments):
        with cuda.recording() as record:
            outcome = rjem(*arguments)
        assert outcome.code == 0, outcome.err
        assert record.launch_count
        return outcome, record

    return run


# --- training ---

PRECISIONS = {"auto": "bf16", "fp32": "fp32", "tf32": "tf32", "bf16": "bf16", "fp16": "fp16"}
NORMS = ("batch", "group", "none")
OPTIMIZERS = {"sgd": ("--lr", 0.01), "adam": ("--lr", 0.001, "--max-grad-norm", 1)}
COMBINATIONS = [
    (precision, norm, tuple(OPTIMIZERS)[index % 2])
    for index, (precision, norm) in enumerate(itertools.product(PRECISIONS, NORMS))
]
VARIANTS = [
    ("--input-noise-std", 0.1, "--noise-std", 0.01),
    ("--norm", "l2", "--adv-eps", 0.5),
    ("--norm-layer", "batch", "--bn-statistics", "separate"),
    ("--px-weight", 0),
    ("--ce-weight", 0),
    ("--pgd-steps", 0, "--reinit-prob", 0.5),
    ("--ema-decay", 0, "--no-compile"),
    ("--energy-l2", 0.1, "--no-augment-energy"),
    ("--crop-pad", 1, "--flip", "--sample-every", 1, "--checkpoint-every", 1),
    ("--val-fraction", 0, "--prior-variance", 0.9),
    ("--arch", "wrn-trades", "--norm-layer", "batch"),
    ("--arch", "resnet50", "--norm-layer", "batch"),
]


@pytest.mark.parametrize(("precision", "norm", "optimizer"), COMBINATIONS)
def test_training_in_each_precision(on_cuda, precision, norm, optimizer):
    flags = ("--precision", precision, "--norm-layer", norm, "--optimizer", optimizer, *OPTIMIZERS[optimizer])
    outcome, record = on_cuda("train", "--run", "new", *TINY_FLAGS, *flags)
    assert "cuda (auto: Pretend GPU found)" in outcome.err
    gradients = {product.arithmetic for product in record.products if "engine/training/trainer.py" in product.caller}
    assert gradients == {PRECISIONS[precision]}
    on_cuda("train", "--resume", "new", "--steps", 4)


@pytest.mark.parametrize("flags", VARIANTS, ids=lambda flags: " ".join(map(str, flags)))
def test_training_and_resuming_with_other_options(on_cuda, flags):
    outcome, _ = on_cuda("train", "--run", "new", "--device", "cuda", *TINY_FLAGS, *flags, "--json")
    assert json.loads(outcome.out)["test_accuracy"]["of"] == 20
    on_cuda("train", "--resume", "new", "--steps", 4)


def test_import_export_and_fine_tuning(on_cuda, rjem, tmp_path):
    torch.save({"model_state_dict": jem_state(colours=1)}, tmp_path / "m.pt")
    _, record = on_cuda("import", tmp_path / "m.pt", "--dataset", "digits", "--as", "jem", "--recompute-statistics")
    assert record.arithmetics <= {"fp32", "fp64"}
    assert rjem("export", "jem", "--layout", "jempp", "-o", tmp_path / "again.pt").code == 0  # on the host
    on_cuda("train", "--init-from", "jem", "--run", "tuned", *TINY_FLAGS)


def test_a_dry_run(on_cuda):
    outcome, _ = on_cuda("train", *TINY_FLAGS, "--dry-run")
    assert " on this device" in outcome.err


def test_a_step_of_a_whole_run_synchronizes_once(cuda, on_cuda):
    """A longer run adds to the syncs of start and end only those of its steps."""
    counts = []
    for steps in (3, 13):
        flags = ("--steps", steps, "--log-every", 100, "--reinit-prob", 0)
        _, record = on_cuda("train", "--run", f"run-{steps}", *TINY_FLAGS, *flags)
        counts.append(len(record.syncs))
    assert counts[1] - counts[0] == 10


# --- samples ---


@pytest.mark.parametrize("mode", ["energy", "attack", "combined"])
@pytest.mark.parametrize("flags", [("--precision", "fp32"), ("--class", "none"), ("--precision", "bf16")])
def test_generate_in_each_mode(on_cuda, trained, tmp_path, mode, flags):
    if mode != "energy" and "none" in flags:
        flags = ("--class", "3,7", "--attack-confidence", 0.9)
    on_cuda("generate", "--mode", mode, "-n", 12, *flags, "-o", tmp_path / "out")
    assert len(list((tmp_path / "out").glob("0*.png"))) == 12


@pytest.mark.parametrize("init", ["prior", "noise", "data", "buffer"])
def test_generate_from_each_start_to_each_writer(on_cuda, trained, tmp_path, monkeypatch, init):
    monkeypatch.chdir(tmp_path)
    for output in ("folder", "x.npz", "x.tar"):
        on_cuda("generate", "-n", 7, "--batch-size", 3, "--init", init, "--device", "cuda", "-o", output)
        assert (tmp_path / output).exists()
    on_cuda("generate", "-n", 3, "--init", "folder", "-o", "refined")


def test_generate_with_other_options(on_cuda, trained, tmp_path):
    for index, flags in enumerate([("--langevin-noise",), ("--temperature", 2, "--noise-std", 0.1), ("--dry-run",)]):
        on_cuda("generate", "-n", 4, *flags, "-o", tmp_path / str(index))


@pytest.mark.parametrize("flags", [(), ("--class", "none", "--init", "noise", "--no-clamp"), ("--langevin-noise",)])
def test_langevin(on_cuda, trained, tmp_path, flags):
    on_cuda("langevin", "-n", 5, "--sgld-steps", 4, "--record", 2, *flags, "-o", tmp_path / "chains")
    assert (tmp_path / "chains" / "chains.gif").exists()


# --- attacks and scores ---


@pytest.mark.parametrize(
    "flags",
    [
        ("--method", "pgd", "--restarts", 2, "--eps", "0.05,0.1"),
        ("--method", "apgd", "--loss", "margin"),
        ("--method", "apgd", "--norm", "l2", "--eps", 1, "--precision", "bf16"),
        ("--targeted", "random", "--min-confidence", 0.5, "--start", "image"),
        ("--target", "3", "--iterate", "last", "--precision", "fp16"),
        ("--dry-run",),
    ],
    ids=lambda flags: " ".join(map(str, flags)),
)
def test_attack(on_cuda, trained, tmp_path, flags):
    on_cuda("attack", "tiny", "--steps", 6, "--limit", 20, "--save", tmp_path / "attacked", *flags)


@pytest.mark.skipif(importlib.util.find_spec("pyautoattack") is None, reason="needs pyautoattack")
def test_standard_autoattack(on_cuda, trained):
    outcome, _ = on_cuda("attack", "--standard", "--eps", 2, "--limit", 4, "--json")
    assert json.loads(outcome.out)["protocol"]["attack"]["method"] == "AutoAttack, standard version"


def test_eval_of_a_run_is_fp32(on_cuda, trained, tmp_path):
    _, record = on_cuda("eval", "tiny", *SCORING, "--save", tmp_path / "scores")
    assert (tmp_path / "scores").is_dir()
    assert record.arithmetics <= {"fp32", "fp64"}


def test_eval_of_samples_is_fp32_but_for_the_training_of_the_judge(on_cuda, trained, quick_judge, tmp_path):
    on_cuda("generate", "-n", 60, "-o", tmp_path / "x.npz")
    on_cuda("eval", tmp_path / "x.npz", *SAMPLE_SCORES)
    on_cuda("generate", "-n", 60, "--seed", 60, "-o", tmp_path / "y.npz")
    _, record = on_cuda("eval", tmp_path / "y.npz", *SAMPLE_SCORES)
    assert record.arithmetics <= {"fp32", "fp64"}


def test_compare_of_a_run_and_samples(on_cuda, trained, quick_judge, tmp_path):
    on_cuda("generate", "-n", 60, "-o", tmp_path / "x.npz")
    flags = ("--samples", 60, "--limit", 20, "--steps", 1, "--is-splits", 2, "--features", "judge", "--allow-few")
    flags = (*flags, "--mode", "energy,attack", "--html", tmp_path / "page.html")
    outcome, _ = on_cuda("compare", "tiny", tmp_path / "x.npz", *flags, "--json")
    assert len(json.loads(outcome.out)["rows"]) == 3 and (tmp_path / "page.html").exists()


def test_commands_that_only_look(rjem, trained):
    environment = json.loads(rjem("env", "--json").out)
    assert [gpu["name"] for gpu in environment["gpus"]] == ["Pretend GPU"]
    assert environment["auto"]["device"].startswith("cuda")
    for arguments in (("env",), ("runs", "ls"), ("runs", "show", "tiny")):
        assert rjem(*arguments).code == 0, arguments


def test_a_device_that_does_not_exist_is_refused(rjem, trained):
    outcome = rjem("generate", "tiny", "--device", "cuda:1")
    assert outcome.code == 3 and "1 CUDA devices are visible" in outcome.error_line()


def test_memory_that_runs_out_halves_the_batches(on_cuda, cuda, trained):
    cuda.fail_next("convolution_backward")
    outcome, _ = on_cuda("attack", "tiny", "--limit", 20, "--steps", 2, "--batch-size", 20)
    assert "not enough memory for 20 images at once; continuing with 10" in outcome.err


# --- several processes ---


def run_program(processes, *arguments):
    """A command on the pretend device, under torchrun if there are several processes. Returns stderr."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m", "--"]
    launcher = ["-m"] if processes == 1 else torchrun
    command = [sys.executable, *launcher, "tests.pretend_cuda", "rjem_cli", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT)
    assert result.returncode == 0, result.stderr
    return result.stderr


@pytest.mark.parametrize(("norm", "precision"), [("batch", "fp32"), ("group", "bf16")])
def test_two_gpus_train_the_weights_of_one(own_home, norm, precision):
    """Without the training attack, whose steps follow the sign of a last bit."""
    flags = (*TINY_FLAGS, "--pgd-steps", 0, "--optimizer", "sgd", "--lr", 0.02, "--norm-layer", norm)
    flags = (*flags, "--precision", precision, "--device", "cuda")
    weights = []
    for processes in (1, 2):
        log = run_program(processes, "train", "--run", f"gpus-{processes}", *flags)
        assert log.count("pretend CUDA: ") == processes
        assert f"device: cuda (requested), {precision}" in log
        assert "  gloo  " not in log  # tensors of GPUs move over NCCL
        checkpoint = checkpoints_in(own_home / "runs" / f"gpus-{processes}")[-1]
        weights.append(safetensors.torch.load_file(checkpoint))
    tolerance = 1e-5 if precision == "fp32" else 1e-3
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=tolerance, atol=tolerance, msg=name)
