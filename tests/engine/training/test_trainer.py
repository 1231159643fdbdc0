"""The loop on 8x8 digits with a network of one block a stage: seconds, and every path of it."""

import json

import pytest
import torch

from rjem_cli.config import TrainConfig
from rjem_cli.engine.data.digits import digit_splits
from rjem_cli.engine.model.checkpoint import load_checkpoint, state_path
from rjem_cli.engine.runtime import start_runtime
from rjem_cli.engine.training.run import run_training
from rjem_cli.errors import ConfigError, DataError, DivergedError, RjemError
from rjem_cli.paths import checkpoints_in, locked

TINY = {
    "dataset": "digits",
    "depth": 10,
    "width": 1,
    "batch_size": 16,
    "steps": 6,
    "lr": 0.01,
    "warmup_steps": 2,
    "pgd_steps": 2,
    "sgld_steps": 2,
    "buffer_size": 32,
    "sample_steps": 2,
    "attack_steps": 2,
    "ema_decay": 0.5,
    "log_every": 2,
    "checkpoint_every": 3,
    "sample_every": 4,
    "eval_limit": 20,
    "crop_pad": 1,
    "noise_std": 0.01,
    "device": "cpu",
}


def train(run_dir, resume=False, stop_at=None, **changes):
    config = TrainConfig(**{**TINY, **changes})
    steps_seen = []
    result = run_training(
        config,
        digit_splits(config.val_fraction, shifted=False),
        start_runtime(config.device, config.precision),
        run_dir,
        resume=resume,
        watch=lambda progress: steps_seen.append(progress.step) if progress.phase == "training" else None,
        should_stop=lambda: stop_at is not None and len(steps_seen) >= stop_at,
    )
    return result, steps_seen


def test_a_run_leaves_its_config_metrics_pictures_checkpoints_and_summary(tmp_path):
    result, steps = train(tmp_path)
    assert steps == [1, 2, 3, 4, 5, 6] and result.finished
    assert [path.name for path in checkpoints_in(tmp_path)] == [
        "step-00000003.safetensors",
        "step-00000006.safetensors",
    ]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6]
    named = {
        "loss",
        "cross_entropy",
        "energy_gap",
        "energy_data",
        "energy_buffer",
        "r1",
        "saturation",
        "grad_norm",
        "lr",
    }
    assert named <= lines[0].keys()
    assert 0 <= lines[-1]["val_accuracy"] <= 1
    assert {path.name for path in (tmp_path / "samples").iterdir()} == {"step-00000004.png", "grid.png"}
    assert json.loads((tmp_path / "summary.json").read_text())["robust_accuracy"]["of"] == 20
    assert (tmp_path / "config.yaml").exists()


@pytest.mark.parametrize(
    "special_case",
    [
        {"pgd_steps": 0},
        {"px_weight": 0},
        {"pgd_steps": 0, "px_weight": 0},
        {"loss_statistics": "separate"},
        {"norm": "l2"},
    ],
    ids=["jempp", "robust", "standard", "separate", "l2"],
)
def test_all_objectives_are_special_cases_of_one_loop(tmp_path, special_case):
    result, _ = train(tmp_path, steps=2, **special_case)
    gap = result.summary["metrics"]["energy_gap"]
    assert (gap == 0) == (special_case.get("px_weight") == 0)


@pytest.mark.parametrize("norm_layer", ["batch", "group", "none"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path, norm_layer, optimizer):
    changes = {"norm_layer": norm_layer, "optimizer": optimizer}
    whole, _ = train(tmp_path / "whole", **changes)
    stopped, _ = train(tmp_path / "parts", stop_at=3, **changes)  # between two lines of metrics.jsonl
    assert not stopped.finished and stopped.checkpoint.name == "step-00000003.safetensors"
    resumed, steps = train(tmp_path / "parts", resume=True, **changes)
    assert steps == [4, 5, 6]
    assert resumed.checkpoint.read_bytes() == whole.checkpoint.read_bytes()
    assert state_path(resumed.checkpoint).read_bytes() == state_path(whole.checkpoint).read_bytes()
    untimed = [
        [{k: v for k, v in json.loads(line).items() if k != "images_per_second"} for line in text.splitlines()]
        for text in ((tmp_path / part / "metrics.jsonl").read_text() for part in ("whole", "parts"))
    ]
    assert untimed[0] == untimed[1]


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path):
    runs = [train(tmp_path / name, steps=2, seed=seed)[0] for name, seed in (("a", 1), ("b", 1), ("c", 2))]
    a, b, c = (load_checkpoint(run.checkpoint, torch.device("cpu")).model.state_dict() for run in runs)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not all(torch.equal(a[name], c[name]) for name in a)


def test_divergence_ends_the_run_and_leaves_the_last_good_checkpoint(tmp_path):
    good, _ = train(tmp_path, stop_at=2)
    with pytest.raises(DivergedError, match="diverged"):
        train(tmp_path, resume=True, lr=1e30, warmup_steps=0)
    assert [path.read_bytes() for path in checkpoints_in(tmp_path)] == [good.checkpoint.read_bytes()]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 2}, "does not fit this run"),
        ({"buffer_size": 64}, "its buffer is"),
        ({"optimizer": "adam"}, "was trained with --optimizer sgd"),
        ({"val_fraction": 0.2}, "was trained on other images"),
    ],
)
def test_a_resume_with_another_setup_is_refused(tmp_path, change, message):
    train(tmp_path, stop_at=2)
    with pytest.raises(DataError, match=message):
        train(tmp_path, resume=True, **change)


def test_a_half_written_line_of_metrics_is_dropped(tmp_path):
    train(tmp_path, stop_at=2)
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text(metrics.read_text() + '{"step": 3, "lo')
    train(tmp_path, resume=True)
    assert [json.loads(line)["step"] for line in metrics.read_text().splitlines()] == [2, 4, 6]


def test_a_crop_wider_than_the_image_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="--crop-pad 8 is too large for images of side 8; give at most 7"):
        train(tmp_path, crop_pad=8)


def test_bf16_trains(tmp_path):
    result, _ = train(tmp_path, precision="bf16", steps=2)
    assert result.summary["metrics"]["loss"] < 10


def test_two_processes_cannot_train_in_one_folder(tmp_path):
    with locked(tmp_path / "run"), pytest.raises(RjemError, match="in use by another process"):
        train(tmp_path / "run")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_trains(tmp_path):
    result, _ = train(tmp_path, device="cuda")
    assert result.finished


def test_learning_happens(tmp_path):
    result, _ = train(
        tmp_path,
        steps=150,
        optimizer="adam",
        norm_layer="group",
        lr=0.004,
        batch_size=64,
        buffer_size=128,
        flip=False,
        crop_pad=0,
        eval_limit=0,
    )
    assert result.summary["test_accuracy"]["value"] > 0.8
