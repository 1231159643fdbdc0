"""Runs on 8x8 digits with a tiny network: resume, metrics, divergence and its recovery."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from rjem_cli.config.training import TrainConfig
from rjem_cli.engine.callbacks import noop
from rjem_cli.engine.data.images import ImageSet
from rjem_cli.engine.data.load import load_digit_splits
from rjem_cli.engine.models.checkpoint import load_checkpoint, read_info, state_path
from rjem_cli.engine.training import metrics_log
from rjem_cli.engine.training.arithmetic import start_training_runtime
from rjem_cli.engine.training.checkpointing import latest_valid, read_intact_state
from rjem_cli.engine.training.guard import Divergence, Guard
from rjem_cli.engine.training.progress import TRAINING, Clock, TrainingCallbacks
from rjem_cli.engine.training.run import run_training
from rjem_cli.engine.training.trainer import Trainer
from rjem_cli.errors import ConfigError, DataError, DivergedError, RjemError
from rjem_cli.files import locked
from rjem_cli.paths import QUARANTINE_SUFFIX, checkpoints_in, parse_step
from tests.poisons import nan_in_a_weight, nan_in_the_chains, nan_in_the_images, with_poisons
from tests.run_results import metrics_of

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


def train(run_dir, resume=False, stop_at=None, warnings=None, logs=None, stop_in=None, **changes):
    """(result, the steps that were taken). Stops after `stop_at` steps, or in the middle of the phase `stop_in`."""
    config = TrainConfig(**{**TINY, **changes})
    warnings = [] if warnings is None else warnings
    logs = [] if logs is None else logs
    steps, phases = [], []

    def on_progress(progress):
        phases.append(progress.phase)
        if progress.phase == TRAINING:
            steps.append(progress.step)

    def should_stop():
        return stop_in in phases or (stop_at is not None and len(steps) - 1 >= stop_at)

    result = run_training(
        config,
        load_digit_splits(config.val_fraction, shifted=False),
        start_training_runtime(config, latest_valid(run_dir, noop) if resume else None),
        run_dir,
        resume=resume,
        callbacks=TrainingCallbacks(on_progress, logs.append, warnings.append, should_stop),
    )
    return result, steps[1:]  # the first call comes before the first step


def test_a_run_leaves_its_config_metrics_pictures_checkpoints_and_summary(tmp_path):
    result, steps = train(tmp_path)
    assert steps == [1, 2, 3, 4, 5, 6] and result.finished
    assert [path.name for path in checkpoints_in(tmp_path)] == [
        "step-00000003.safetensors",
        "step-00000006.safetensors",
    ]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 3, 4, 6]
    names = {
        "loss",
        "cross_entropy",
        "energy_gap",
        "energy_data",
        "energy_buffer",
        "input_grad_norm",
        "saturation",
        "grad_norm",
        "lr",
    }
    assert names <= lines[0].keys()
    assert 0 <= lines[-1]["val_accuracy"] <= 1
    assert {path.name for path in (tmp_path / "samples").iterdir()} == {"step-00000004.png", "grid.png"}
    assert (tmp_path / "curves.png").exists()
    assert json.loads((tmp_path / "summary.json").read_text())["robust_accuracy"]["of"] == 20
    assert (tmp_path / "config.yaml").exists()


@pytest.mark.parametrize(
    "special_case",
    [
        {"pgd_steps": 0},
        {"px_weight": 0},
        {"pgd_steps": 0, "px_weight": 0},
        {"bn_statistics": "separate"},
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
    uninterrupted, _ = train(tmp_path / "uninterrupted", **changes)
    stopped, _ = train(tmp_path / "parts", stop_at=3, **changes)  # between two lines of metrics.jsonl
    assert not stopped.finished and stopped.checkpoint.name == "step-00000003.safetensors"
    resumed, steps = train(tmp_path / "parts", resume=True, **changes)
    assert steps == [4, 5, 6]
    assert resumed.checkpoint.read_bytes() == uninterrupted.checkpoint.read_bytes()
    assert state_path(resumed.checkpoint).read_bytes() == state_path(uninterrupted.checkpoint).read_bytes()
    assert metrics_of(tmp_path / "uninterrupted") == metrics_of(tmp_path / "parts")


@pytest.mark.parametrize("stop_at", [1, 2, 4, 5])
def test_a_run_resumes_bit_for_bit_from_any_step_and_with_more_steps(tmp_path, stop_at):
    """Steps 1 and 5 lie between two lines of metrics. The rate of the constant schedule does not depend on --steps."""
    changes = {"lr_schedule": "constant"}
    uninterrupted, _ = train(tmp_path / "uninterrupted", **changes)
    train(tmp_path / "parts", stop_at=stop_at, **changes)
    resumed, _ = train(tmp_path / "parts", resume=True, **changes)
    train(tmp_path / "longer", steps=stop_at, **changes)
    longer, _ = train(tmp_path / "longer", resume=True, **changes)
    for other in (resumed, longer):
        assert other.checkpoint.read_bytes() == uninterrupted.checkpoint.read_bytes()
        assert state_path(other.checkpoint).read_bytes() == state_path(uninterrupted.checkpoint).read_bytes()
    for parts in ("parts", "longer"):
        assert metrics_of(tmp_path / parts) == metrics_of(tmp_path / "uninterrupted")


def test_images_seen_are_counted_over_batches_of_any_size(tmp_path):
    train(tmp_path, stop_at=4)
    result, _ = train(tmp_path, resume=True, batch_size=8)
    assert read_info(result.checkpoint).images_seen == 4 * 16 + 2 * 8


def test_a_finished_run_that_is_resumed_keeps_its_last_line_and_says_that_it_is_finished(tmp_path):
    first, _ = train(tmp_path, steps=5)  # neither a line nor a checkpoint is due at step 5
    before, logs = metrics_of(tmp_path), []
    assert before[-1]["step"] == 5 and before[-1]["partial"] and "val_accuracy" in before[-1]
    again, steps = train(tmp_path, steps=5, resume=True, logs=logs)
    assert not steps and metrics_of(tmp_path) == before
    assert again.summary | {"device": None} == first.summary | {"device": None}  # it states reasons
    assert sum("training is already finished; evaluating again" in line for line in logs) == 1


def test_a_run_that_is_not_finished_does_not_say_that_it_is(tmp_path):
    logs = []
    train(tmp_path, stop_at=3, logs=logs)
    train(tmp_path, resume=True, logs=logs)
    assert "resuming at step 3" in logs and not any("finished" in line for line in logs)


def test_a_run_stopped_before_its_evaluation_is_evaluated_when_it_is_resumed(tmp_path):
    stopped, _ = train(tmp_path, stop_in="attacking test images")
    assert not stopped.finished and stopped.step == 6
    logs = []
    result, steps = train(tmp_path, resume=True, logs=logs)
    assert result.finished and not steps
    assert any("training is already finished; evaluating (" in line for line in logs)


def full_disk(monkeypatch, times):
    """The next writes of metrics fail. Returns the contents that were refused."""
    refused = []

    def refusing(write):
        def write_or_fail(path, content):
            if path.name == "metrics.jsonl" and content and len(refused) < times:
                refused.append(content)
                raise RjemError("cannot write metrics.jsonl: No space left on device")
            write(path, content)

        return write_or_fail

    for name in ("append_text", "write_atomically"):
        monkeypatch.setattr(metrics_log, name, refusing(getattr(metrics_log, name)))
    return refused


def test_metrics_that_cannot_be_written_are_written_later(tmp_path, monkeypatch):
    train(tmp_path / "uninterrupted")
    refused, warnings = full_disk(monkeypatch, 3), []
    train(tmp_path / "full", warnings=warnings)
    assert len(refused) == len(warnings) == 3
    assert all("training continues, and the line is written with the next one" in line for line in warnings)
    assert metrics_of(tmp_path / "full") == metrics_of(tmp_path / "uninterrupted")


def test_metrics_that_can_never_be_written_cost_no_checkpoint(tmp_path, monkeypatch):
    full_disk(monkeypatch, 1000)
    with pytest.raises(RjemError, match="No space left"):
        train(tmp_path)
    assert checkpoints_in(tmp_path)[-1].name == "step-00000006.safetensors"


def test_the_options_of_a_resume_survive_a_stop_before_its_next_checkpoint(tmp_path):
    train(tmp_path, steps=3)
    stopped, steps = train(tmp_path, resume=True, steps=6, stop_at=0)
    assert not steps and read_info(stopped.checkpoint).config.steps == 6
    again, _ = train(tmp_path, resume=True, steps=6, eval_limit=10)
    before = again.checkpoint.read_bytes()
    train(tmp_path, resume=True, steps=6, eval_limit=20)  # evaluates again, and writes no checkpoint
    assert again.checkpoint.read_bytes() == before


def test_a_run_that_diverges_after_a_resume_goes_back_to_its_newest_checkpoint(tmp_path, monkeypatch):
    """Not to the last multiple of checkpoint_every, and no checkpoint is quarantined."""
    end, _ = train(tmp_path, steps=5)  # checkpoints of steps 3 and 5
    content = end.checkpoint.read_bytes()
    poisoned(monkeypatch, {0}, nan_in_a_weight)
    warnings = []
    result, steps = train(tmp_path, steps=6, resume=True, warnings=warnings)
    assert steps == [6] and result.summary["divergences"][0]["step"] == 5
    assert len(warnings) == 1 and "back to step 5" in warnings[0]
    assert end.checkpoint.read_bytes() == content and not list(tmp_path.rglob(f"*{QUARANTINE_SUFFIX}*"))


def test_a_divergence_on_a_full_disk_is_recovered_from_and_recorded_later(tmp_path, monkeypatch):
    poisoned(monkeypatch, {3}, nan_in_a_weight)
    train(tmp_path / "uninterrupted")
    monkeypatch.undo()
    poisoned(monkeypatch, {3}, nan_in_a_weight)
    refused = full_disk(monkeypatch, 4)
    assert train(tmp_path / "full")[0].finished and len(refused) == 4
    assert metrics_of(tmp_path / "full") == metrics_of(tmp_path / "uninterrupted")


def test_a_refused_resume_leaves_the_config_of_the_run(tmp_path):
    train(tmp_path, stop_at=2)
    before = (tmp_path / "config.yaml").read_bytes()
    with pytest.raises(ConfigError, match="--buffer-size 64"):
        train(tmp_path, resume=True, buffer_size=64)
    assert (tmp_path / "config.yaml").read_bytes() == before


def test_a_stop_does_not_wait_for_sample_grids(tmp_path):
    """Neither for one between two steps nor for the last one, which a resume draws later."""
    slow = {"sample_steps": 10**9, "stop_in": "drawing samples"}
    result, steps = train(tmp_path, **slow)
    assert not result.finished and steps[-1] == 4 and result.checkpoint.name == "step-00000004.safetensors"
    result, steps = train(tmp_path, resume=True, **slow)
    assert not result.finished and (result.step, result.steps) == (6, 6) and steps == [5, 6]
    assert not list((tmp_path / "samples").glob("*")) and (tmp_path / "summary.json").exists()
    assert train(tmp_path, resume=True)[0].finished


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path):
    runs = [train(tmp_path / name, steps=2, seed=seed)[0] for name, seed in (("a", 1), ("b", 1), ("c", 2))]
    a, b, c = (load_checkpoint(run.checkpoint, torch.device("cpu")).model.state_dict() for run in runs)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not all(torch.equal(a[name], c[name]) for name in a)


def test_divergence_ends_the_run_and_leaves_the_last_good_checkpoint(tmp_path):
    good, _ = train(tmp_path, stop_at=3)
    before = good.checkpoint.read_bytes(), state_path(good.checkpoint).read_bytes()
    warnings = []
    with pytest.raises(
        DivergedError, match=r"training diverged 4 times, last at step \d .*its newest checkpoint is"
    ) as error:
        train(tmp_path, resume=True, lr=1e30, warmup_steps=0, warnings=warnings)
    assert str(good.checkpoint) in str(error.value)
    assert sum(line.startswith("diverged") for line in warnings) == 3
    assert checkpoints_in(tmp_path)[-1] == good.checkpoint
    assert (good.checkpoint.read_bytes(), state_path(good.checkpoint).read_bytes()) == before
    assert train(tmp_path, resume=True)[0].finished  # with the old rate it continues as if nothing had happened


def test_a_run_whose_newest_checkpoints_are_sick_falls_back_to_an_older_one(tmp_path, monkeypatch):
    """The checkpoints of steps 4 and 5 were saved by the clock and diverge at once after they are restored."""
    take, passed = Trainer.train_step, []

    def train_step(trainer):
        if trainer.step in (4, 5) and 3 not in passed:
            raise Divergence("sick")
        passed.append(trainer.step)
        return take(trainer)

    monkeypatch.setattr(Clock, "minutes_since_save", lambda self: TrainConfig.checkpoint_minutes)  # saves each step
    train(tmp_path, stop_at=5)
    assert [parse_step(path) for path in checkpoints_in(tmp_path)] == [3, 4, 5]  # the scheduled one is kept too
    monkeypatch.setattr(Trainer, "train_step", train_step)
    warnings = []
    result, _ = train(tmp_path, resume=True, warnings=warnings)
    assert result.finished
    assert [line.split("back to step ")[1][0] for line in warnings if "back to" in line] == ["5", "4", "3"]
    quarantined = {path.name for path in result.checkpoint.parent.iterdir() if QUARANTINE_SUFFIX in path.name}
    assert quarantined == {f"step-00000005{part}.safetensors{QUARANTINE_SUFFIX}" for part in ("", ".state")}


def test_a_run_that_gave_up_gets_new_attempts_when_it_is_resumed(tmp_path, monkeypatch):
    """Else a run whose checkpoint holds the largest count of divergences would exit with 5 forever."""
    poisoned(monkeypatch, range(8), nan_in_a_weight)  # each divergence is found in the step after it
    with pytest.raises(DivergedError):
        train(tmp_path)
    monkeypatch.undo()
    poisoned(monkeypatch, range(4), nan_in_a_weight)
    result, _ = train(tmp_path, resume=True)
    assert result.finished and len(result.summary["divergences"]) == 4 + 2


def test_a_checkpoint_between_two_lines_is_not_saved_if_the_means_are_beyond_their_limits(tmp_path, monkeypatch):
    """Saved by the clock or a signal, it would diverge at once after it is restored."""
    take = Trainer.train_step

    def train_step(trainer):
        scalars = take(trainer)
        if trainer.step == 5 and not trainer.guard.count:
            trainer.metrics.add({name: torch.full_like(value, 1e4) for name, value in scalars.items()})
        return scalars

    monkeypatch.setattr(Trainer, "train_step", train_step)
    monkeypatch.setattr(Clock, "minutes_since_save", lambda self: TrainConfig.checkpoint_minutes)
    warnings = []
    result, _ = train(tmp_path, log_every=100, checkpoint_every=100, warnings=warnings)
    assert result.finished
    assert [
        line for line in warnings if line.startswith("diverged at step 5: energy_gap is ") and "back to step 4" in line
    ]


def poisoned(monkeypatch, sick_calls, poison):
    monkeypatch.setattr(Trainer, "train_step", with_poisons(Trainer.train_step, dict.fromkeys(sick_calls, poison)))


@pytest.mark.parametrize(("poison", "count"), [(nan_in_a_weight, 12), (nan_in_the_chains, 3), (nan_in_the_images, 3)])
def test_every_nan_is_recovered_from_and_recorded(tmp_path, monkeypatch, poison, count):
    """At random moments: the run ends at its last step, with finite weights, and the metrics record each event."""
    steps = count + 5
    sick_calls = set(torch.randperm(2 * count, generator=torch.Generator().manual_seed(0)).tolist()[:count])
    poisoned(monkeypatch, sick_calls, poison)
    warnings = []
    options = {"checkpoint_every": 1, "sample_every": 100, "max_divergences": count}
    result, _ = train(tmp_path, steps=steps, warnings=warnings, **options)
    assert result.finished and sum(line.startswith("diverged") for line in warnings) == count
    events = [line for line in metrics_of(tmp_path) if "event" in line]
    assert len(events) == count and events == result.summary["divergences"]
    assert all("is not finite" in event["reason"] and event["step"] <= event["diverged_at"] for event in events)
    assert [event["lr_scale"] for event in events[:3]] == [0.5, 0.25, 0.125]
    assert metrics_of(tmp_path)[-1]["divergences"] == count
    load_checkpoint(result.checkpoint, torch.device("cpu"))  # refuses weights that are not finite


@pytest.mark.parametrize(
    ("limit", "name"),
    [
        ({"max_energy_gap": 1e-9}, "energy_gap"),
        ({"max_cross_entropy": 1e-3}, "cross_entropy"),
        ({"max_input_grad_norm": 1e-6}, "input_grad_norm"),
        ({"max_saturation": 0.9, "sgld_step_size": 1e6}, "saturation"),
    ],
)
def test_a_metric_beyond_its_limit_is_a_divergence(tmp_path, limit, name):
    warnings = []
    with pytest.raises(DivergedError, match=f"{name} is .*, beyond"):
        train(tmp_path, max_divergences=1, warnings=warnings, **limit)
    (warning,) = [line for line in warnings if line.startswith("diverged")]
    assert "with 0.5 of the learning rate (1 of 1)" in warning


def test_after_a_divergence_the_rate_is_halved_and_chains_restart(tmp_path, monkeypatch):
    seen = []

    def look(trainer):
        seen.append(trainer.buffer.images.clone())
        if len(seen) == 1:
            nan_in_a_weight(trainer)

    poisoned(monkeypatch, {0, 1}, look)
    train(tmp_path, buffer_reset_fraction=0.25, warmup_steps=0, lr_schedule="constant", steps=1, log_every=1)
    regular, partial = metrics_of(tmp_path)[-2:]  # the partial line has the accuracy at the end of the run
    assert regular["lr"] == TINY["lr"] / 2 and "lr" not in partial
    at_first, after_the_event = seen
    assert (at_first != after_the_event).flatten(1).any(dim=1).sum() == 32 // 4


@pytest.mark.parametrize("poison", [nan_in_a_weight, nan_in_the_chains, nan_in_the_images])
def test_a_step_that_is_not_finite_is_found_in_the_next_one_and_undone(tmp_path, monkeypatch, poison):
    def poison_step_3(trainer):
        if trainer.step == 3 and not poisoned_steps:
            poison(trainer)
            poisoned_steps.append(trainer.step)
        elif trainer.guard.count and not restored:
            restored.append({name: value.clone() for name, value in trainer.state().items()})

    poisoned_steps, restored = [], []
    poisoned(monkeypatch, range(1000), poison_step_3)
    options = {"log_every": 100, "checkpoint_every": 100, "steps": 7, "buffer_reset_fraction": 0.0}
    train(tmp_path, stop_at=2, **options)
    saved = read_intact_state(checkpoints_in(tmp_path)[-1])
    result, steps = train(tmp_path, resume=True, **options)
    assert result.finished and steps == [3, 4, 3, 4, 5, 6, 7]
    ((event,)) = result.summary["divergences"]
    assert (event["step"], event["diverged_at"]) == (2, 3)
    assert restored[0].keys() == saved.keys()
    same = [name for name in saved if name != "divergences" and not name.startswith("sums.")]
    assert all(torch.equal(restored[0][name], saved[name]) for name in same)


def test_a_state_that_is_not_finite_is_not_saved(tmp_path, monkeypatch):
    """Chains that no step has used yet would be restored after each divergence."""
    take, sick = Trainer.train_step, []

    def train_step(self):
        scalars = take(self)
        if self.step == 3 and not sick:  # just before a checkpoint is due
            sick.append(True)
            self.buffer.images[:] = math.nan
        return scalars

    monkeypatch.setattr(Trainer, "train_step", train_step)
    warnings = []
    assert train(tmp_path, warnings=warnings, log_every=100)[0].finished
    assert warnings and "buffer is not finite; back to step 0" in warnings[0]


def test_a_divergence_stays_recorded_if_a_later_one_returns_to_an_earlier_step(tmp_path, monkeypatch):
    def damage_too(trainer):
        nan_in_a_weight(trainer)
        if trainer.guard.count:
            for path in checkpoints_in(tmp_path)[1:]:
                path.write_bytes(b"")

    poisoned(monkeypatch, {4, 6}, damage_too)
    result, _ = train(tmp_path)
    assert [(event["step"], event["diverged_at"]) for event in result.summary["divergences"]] == [(3, 4), (0, 4)]


def test_the_clock_saves_between_two_checkpoints_and_changes_nothing(tmp_path, monkeypatch):
    """So a kill loses minutes, even if scheduled checkpoints are hours apart."""
    uninterrupted, _ = train(tmp_path / "uninterrupted", keep_last=1)
    monkeypatch.setattr(Clock, "minutes_since_save", lambda self: TrainConfig.checkpoint_minutes)

    class Killed(BaseException):
        pass

    def die_at_step_5(trainer):
        if trainer.step == 5:
            raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        poisoned(patched, range(1000), die_at_step_5)
        train(tmp_path / "killed", keep_last=1)
    assert [path.name[5:13] for path in checkpoints_in(tmp_path / "killed")] == ["00000003", "00000005"]  # the best too
    resumed, steps = train(tmp_path / "killed", resume=True, keep_last=1)
    assert steps == [6] and resumed.checkpoint.read_bytes() == uninterrupted.checkpoint.read_bytes()
    assert metrics_of(tmp_path / "killed") == metrics_of(tmp_path / "uninterrupted")
    names = [[path.name for path in checkpoints_in(tmp_path / run)] for run in ("killed", "uninterrupted")]
    assert names[0] == names[1]


def test_a_run_stopped_after_a_divergence_resumes_there(tmp_path, monkeypatch):
    def sick(trainer):
        if trainer.guard.count == 0:
            nan_in_a_weight(trainer)

    train(tmp_path, stop_at=5)
    poisoned(monkeypatch, {0}, sick)
    stopped, _ = train(tmp_path, resume=True, steps=9, stop_at=1, keep_last=1, keep_best=False)
    assert [path.name[5:13] for path in checkpoints_in(tmp_path)] == ["00000006"]
    assert int(read_intact_state(stopped.checkpoint)["divergences"]) == 1


def test_chains_that_a_resume_adds_restart_after_a_divergence(tmp_path, monkeypatch):
    train(tmp_path, stop_at=2, px_weight=0)
    poisoned(monkeypatch, {0}, nan_in_the_chains)
    warnings = []
    result, _ = train(tmp_path, resume=True, warnings=warnings)
    assert result.finished and sum(line.startswith("diverged") for line in warnings) == 1


def test_a_cross_entropy_that_is_not_trained_and_images_at_the_walls_are_no_divergence():
    sick = {"cross_entropy": 50.0, "saturation": 0.995}
    config = TrainConfig(ce_weight=0)
    Guard(config, 10, data_saturation=0.99).check_means(sick)
    for guard, name in ((Guard(config, 10, 0.5), "saturation"), (Guard(TrainConfig(), 10, 0.99), "cross_entropy")):
        with pytest.raises(Divergence, match=name):
            guard.check_means(sick)


def test_a_run_killed_after_a_divergence_repeats_it(tmp_path, monkeypatch):
    """Only the line of the event is on disk, and it is written again."""

    def sick_at_step_4(trainer):
        if trainer.step == 4 and trainer.guard.count == 0:
            nan_in_a_weight(trainer)

    poisoned(monkeypatch, range(1000), sick_at_step_4)
    uninterrupted, _ = train(tmp_path / "uninterrupted")
    killed = []

    class Killed(BaseException):
        pass

    def die(trainer):
        sick_at_step_4(trainer)
        if trainer.step == 5 and trainer.guard.count and not killed:
            killed.append(True)
            raise Killed

    monkeypatch.undo()
    poisoned(monkeypatch, range(1000), die)
    with pytest.raises(Killed):
        train(tmp_path / "killed")
    assert "event" in (tmp_path / "killed" / "metrics.jsonl").read_text()
    resumed, _ = train(tmp_path / "killed", resume=True)
    assert resumed.checkpoint.read_bytes() == uninterrupted.checkpoint.read_bytes()
    assert metrics_of(tmp_path / "killed") == metrics_of(tmp_path / "uninterrupted")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 2}, "--width 2: .* was trained with --width 1"),
        ({"norm_layer": "group"}, "was trained with --norm-layer batch"),
        ({"optimizer": "adam"}, "was trained with --optimizer sgd"),
        ({"buffer_size": 64}, "--buffer-size 64: .* was trained with --buffer-size 32"),
        ({"steps": 1}, "is at step 2, beyond --steps 1"),
        ({"val_fraction": 0.2}, "--val-fraction 0.2: .* was trained with --val-fraction 0.1"),
        ({"dataset": "shifted-digits"}, "--dataset 'shifted-digits': .* was trained with --dataset digits"),
    ],
)
def test_a_resume_with_options_that_cannot_change_is_refused(tmp_path, change, message):
    train(tmp_path, stop_at=2)
    with pytest.raises(ConfigError, match=message):
        train(tmp_path, resume=True, **change)


def test_a_resume_on_other_images_of_the_same_name_is_refused(tmp_path, monkeypatch):
    train(tmp_path, stop_at=2)
    monkeypatch.setattr(ImageSet, "digest", lambda self: "0" * 64)
    with pytest.raises(DataError, match="was trained on other images than digits has now"):
        train(tmp_path, resume=True)


def test_a_run_whose_checkpoints_cannot_be_written_is_refused_before_it_trains(tmp_path, monkeypatch):
    train(tmp_path, stop_at=2)
    write = Path.write_bytes

    def write_bytes(path, content):
        if path.parent.name == "checkpoints":
            raise PermissionError(13, "Permission denied")
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    monkeypatch.setattr(Trainer, "train_step", lambda self: pytest.fail("it trains"))
    with pytest.raises(RjemError, match="cannot write to .*checkpoints: Permission denied"):
        train(tmp_path, resume=True)


def test_damaged_lines_of_metrics_are_dropped(tmp_path):
    train(tmp_path, stop_at=2)
    file = tmp_path / "metrics.jsonl"
    damaged = ['{"step": "abc"}', "null", "[1]", 100_000 * "[", '{"step": 3, "input_grad_norm": {}}']
    damaged += ['{"step": 2, "input_grad_norm": 1' + 400 * "0" + "}", '{"step": 1, "event": "divergence"}']
    damaged += ['{"step": -1}', '{"step": 3, "lo']
    file.write_text(file.read_text() + "\n".join(damaged))
    train(tmp_path, resume=True)
    assert [json.loads(line)["step"] for line in file.read_text().splitlines()] == [2, 2, 3, 4, 6]


def test_a_crop_wider_than_the_image_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="--crop-pad 8 is too large for images of side 8; give at most 7"):
        train(tmp_path, crop_pad=8)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains_as_fp32_does(tmp_path, precision):
    """Gradients have the same length; no factor of the backward pass is left in them."""
    exact, rounded = (
        train(tmp_path / kind, precision=kind, steps=1)[0].summary["metrics"] for kind in ("fp32", precision)
    )
    assert rounded["loss"] == pytest.approx(exact["loss"], rel=0.05)
    assert rounded["grad_norm"] == pytest.approx(exact["grad_norm"], rel=0.05)


def test_a_run_that_another_process_trains_is_refused_and_left_alone(tmp_path):
    train(tmp_path / "run", stop_at=2)
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    (tmp_path / "run" / "curves.png").write_bytes(b"of the other process")
    with locked(tmp_path / "run"), pytest.raises(RjemError, match="in use by another process"):
        train(tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "curves.png").read_bytes() == b"of the other process"
    assert all(path.read_bytes() == content for path, content in before.items() if path.name != "curves.png")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_trains(tmp_path):
    result, _ = train(tmp_path, device="cuda")
    assert result.finished


def test_learning_happens(tmp_path):
    result, _ = train(
        tmp_path,
        steps=70,
        pgd_steps=1,
        sgld_steps=1,
        optimizer="adam",
        norm_layer="group",
        lr=0.006,
        batch_size=64,
        buffer_size=128,
        flip=False,
        crop_pad=0,
        eval_limit=0,
    )
    assert result.summary["test_accuracy"]["value"] > 0.8
