"""The loop on 8x8 digits with a network of one block a stage: seconds, and every path of it."""

import json
import math

import pytest
import torch

from rjem_cli.config import TrainConfig
from rjem_cli.engine.data.digits import load_digit_splits
from rjem_cli.engine.models.checkpoint import load_checkpoint, read_info, state_path
from rjem_cli.engine.runtime import start_runtime
from rjem_cli.engine.training import metrics
from rjem_cli.engine.training.checkpointing import ASIDE, latest_valid, read_intact
from rjem_cli.engine.training.guard import Divergence
from rjem_cli.engine.training.metrics_log import Clock
from rjem_cli.engine.training.run import run_training
from rjem_cli.engine.training.trainer import Trainer
from rjem_cli.errors import ConfigError, DataError, DivergedError, RjemError
from rjem_cli.files import locked
from rjem_cli.paths import checkpoints_in
from tests.poisons import nan_in_a_weight, nan_in_the_chains, nan_in_the_images, sickened
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

STARTING = 2  # words of progress before the first step


def train(run_dir, resume=False, stop_at=None, notes=None, **changes):
    """(result, the steps that were taken); `stop_at` stops after so many of them."""
    config = TrainConfig(**{**TINY, **changes})
    told, notes = [], [] if notes is None else notes

    def watch(progress):
        if message := progress.note or progress.warning:
            notes.append(message)
        elif progress.phase == "training":
            told.append(progress.step)

    result = run_training(
        config,
        load_digit_splits(config.val_fraction, shifted=False),
        start_runtime(config),
        run_dir,
        resume=latest_valid(run_dir, notes.append) if resume else None,
        watch=watch,
        should_stop=lambda: stop_at is not None and len(told) - STARTING >= stop_at,
    )
    return result, told[STARTING:]


def test_a_run_leaves_its_config_metrics_pictures_checkpoints_and_summary(tmp_path):
    result, steps = train(tmp_path)
    assert steps == [1, 2, 3, 4, 5, 6] and result.finished
    assert [path.name for path in checkpoints_in(tmp_path)] == [
        "step-00000003.safetensors",
        "step-00000006.safetensors",
    ]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 3, 4, 6]
    named = {
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
    whole, _ = train(tmp_path / "whole", **changes)
    stopped, _ = train(tmp_path / "parts", stop_at=3, **changes)  # between two lines of metrics.jsonl
    assert not stopped.finished and stopped.checkpoint.name == "step-00000003.safetensors"
    resumed, steps = train(tmp_path / "parts", resume=True, **changes)
    assert steps == [4, 5, 6]
    assert resumed.checkpoint.read_bytes() == whole.checkpoint.read_bytes()
    assert state_path(resumed.checkpoint).read_bytes() == state_path(whole.checkpoint).read_bytes()
    assert metrics_of(tmp_path / "whole") == metrics_of(tmp_path / "parts")


@pytest.mark.parametrize("stop_at", [1, 2, 4, 5])
def test_from_any_step_and_with_more_steps_than_were_asked_for_first(tmp_path, stop_at):
    """The rate of the schedules `steps` and `cosine` depends on the number of steps, that of `constant` does not."""
    changes = {"lr_schedule": "constant"}
    whole, _ = train(tmp_path / "whole", **changes)
    train(tmp_path / "parts", stop_at=stop_at, **changes)
    resumed, _ = train(tmp_path / "parts", resume=True, **changes)
    train(tmp_path / "longer", steps=stop_at, **changes)
    longer, _ = train(tmp_path / "longer", resume=True, **changes)
    for other in (resumed, longer):
        assert other.checkpoint.read_bytes() == whole.checkpoint.read_bytes()
        assert state_path(other.checkpoint).read_bytes() == state_path(whole.checkpoint).read_bytes()
    for parts in ("parts", "longer"):
        assert metrics_of(tmp_path / parts) == metrics_of(tmp_path / "whole")


def test_images_seen_are_counted_over_batches_of_any_size(tmp_path):
    train(tmp_path, stop_at=4)
    result, _ = train(tmp_path, resume=True, batch_size=8)
    assert read_info(result.checkpoint).images_seen == 4 * 16 + 2 * 8


def test_the_metrics_of_an_end_stay_where_nothing_is_trained_after_it(tmp_path):
    first, _ = train(tmp_path, steps=5)  # neither a line nor a checkpoint is due then
    before = metrics_of(tmp_path)
    assert before[-1]["step"] == 5 and {"loss", "input_grad_norm", "val_accuracy"} <= set(before[-1]["end"])
    again, steps = train(tmp_path, steps=5, resume=True)
    assert not steps and metrics_of(tmp_path) == before and again.summary == first.summary


def full_disk(monkeypatch, times):
    """The next lines of metrics cannot be written; gives how often that was tried."""
    refused = []

    def refusing(write):
        def written(path, content):
            if path.name == "metrics.jsonl" and content and len(refused) < times:
                refused.append(content)
                raise RjemError("cannot write metrics.jsonl: No space left on device")
            write(path, content)

        return written

    for name in ("append_text", "write_atomically"):
        monkeypatch.setattr(metrics, name, refusing(getattr(metrics, name)))
    return refused


def test_metrics_that_cannot_be_written_are_written_later(tmp_path, monkeypatch):
    train(tmp_path / "whole")
    refused, notes = full_disk(monkeypatch, 3), []
    train(tmp_path / "full", notes=notes)
    assert len(refused) == len(notes) == 3 and all("writes it with the next line" in note for note in notes)
    assert metrics_of(tmp_path / "full") == metrics_of(tmp_path / "whole")


def test_metrics_that_can_never_be_written_cost_no_checkpoint(tmp_path, monkeypatch):
    full_disk(monkeypatch, 1000)
    with pytest.raises(RjemError, match="No space left"):
        train(tmp_path)
    assert checkpoints_in(tmp_path)[-1].name == "step-00000006.safetensors"


def test_metrics_that_wait_are_in_the_state(tmp_path, monkeypatch):
    """So a kill loses none of them."""
    train(tmp_path / "whole")
    full_disk(monkeypatch, 1000)
    with pytest.raises(RjemError):
        train(tmp_path / "full", stop_at=4)
    monkeypatch.undo()
    assert not (tmp_path / "full" / "metrics.jsonl").exists()
    train(tmp_path / "full", resume=True)
    assert metrics_of(tmp_path / "full") == metrics_of(tmp_path / "whole")


def test_settings_of_a_resume_outlive_a_stop_before_its_next_checkpoint(tmp_path):
    train(tmp_path, steps=3)
    stopped, steps = train(tmp_path, resume=True, steps=6, stop_at=0)
    assert not steps and read_info(stopped.checkpoint).config.steps == 6
    again, _ = train(tmp_path, resume=True, steps=6, eval_limit=10)
    before = again.checkpoint.read_bytes()
    train(tmp_path, resume=True, steps=6, eval_limit=20)  # measures again, and writes no checkpoint
    assert again.checkpoint.read_bytes() == before


def test_a_run_that_diverges_after_a_resume_goes_back_to_its_newest_checkpoint(tmp_path, monkeypatch):
    """Not to the last multiple of checkpoint_every, and no finished checkpoint is set aside."""
    end, _ = train(tmp_path, steps=5)  # checkpoints of steps 3 and 5
    content = end.checkpoint.read_bytes()
    poisoned(monkeypatch, {0}, nan_in_a_weight)
    notes = []
    result, steps = train(tmp_path, steps=6, resume=True, notes=notes)
    assert steps == [6] and result.summary["divergences"][0]["step"] == 5
    assert len(notes) == 1 and "back to step 5" in notes[0]
    assert end.checkpoint.read_bytes() == content and not list(tmp_path.rglob(f"*{ASIDE}*"))


def test_an_event_on_a_full_disk_is_recovered_from_and_named_later(tmp_path, monkeypatch):
    poisoned(monkeypatch, {3}, nan_in_a_weight)
    train(tmp_path / "whole")
    monkeypatch.undo()
    poisoned(monkeypatch, {3}, nan_in_a_weight)
    refused = full_disk(monkeypatch, 4)
    assert train(tmp_path / "full")[0].finished and len(refused) == 4
    assert metrics_of(tmp_path / "full") == metrics_of(tmp_path / "whole")


def test_a_refused_resume_leaves_the_config_of_the_run(tmp_path):
    train(tmp_path, stop_at=2)
    before = (tmp_path / "config.yaml").read_bytes()
    with pytest.raises(DataError):
        train(tmp_path, resume=True, buffer_size=64)
    assert (tmp_path / "config.yaml").read_bytes() == before


def test_a_stop_does_not_wait_for_pictures(tmp_path):
    """Neither for one on the way nor for the last one, which the same call draws later."""
    result, steps, drawn = None, [], []

    def stopping_at(phase):
        config = TrainConfig(**{**TINY, "sample_steps": 10**9})
        seen = []

        def watch(progress):
            seen.append(progress.phase)
            if progress.phase == "training" and not (progress.note or progress.warning):
                steps.append(progress.step)

        return run_training(
            config,
            load_digit_splits(config.val_fraction, shifted=False),
            start_runtime(config),
            tmp_path,
            resume=latest_valid(tmp_path, drawn.append) if checkpoints_in(tmp_path) else None,
            watch=watch,
            should_stop=lambda: seen.count(phase) > 1,
        )

    result = stopping_at("drawing samples")
    assert not result.finished and result.checkpoint.name == "step-00000004.safetensors"
    result = stopping_at("drawing samples")
    assert not result.finished and result.summary == {"step": 6, "steps": 6}
    assert steps[-1] == 6 and not list(tmp_path.rglob("*.png")) and (tmp_path / "summary.json").exists()
    assert train(tmp_path, resume=True)[0].finished


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path):
    runs = [train(tmp_path / name, steps=2, seed=seed)[0] for name, seed in (("a", 1), ("b", 1), ("c", 2))]
    a, b, c = (load_checkpoint(run.checkpoint, torch.device("cpu")).model.state_dict() for run in runs)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not all(torch.equal(a[name], c[name]) for name in a)


def test_divergence_ends_the_run_and_leaves_the_last_good_checkpoint(tmp_path):
    good, _ = train(tmp_path, stop_at=3)
    before = good.checkpoint.read_bytes(), state_path(good.checkpoint).read_bytes()
    notes = []
    with pytest.raises(
        DivergedError, match=r"diverged at step \d .*after 3 times of going back; its newest checkpoint is"
    ) as error:
        train(tmp_path, resume=True, lr=1e30, warmup_steps=0, notes=notes)
    assert str(good.checkpoint) in str(error.value) and len(notes) == 3
    assert checkpoints_in(tmp_path)[-1] == good.checkpoint
    assert (good.checkpoint.read_bytes(), state_path(good.checkpoint).read_bytes()) == before
    assert train(tmp_path, resume=True)[0].finished  # with the old rate it goes on as if nothing had been


def poisoned(monkeypatch, sick_calls, poison):
    monkeypatch.setattr(Trainer, "train_step", sickened(Trainer.train_step, dict.fromkeys(sick_calls, poison)))


@pytest.mark.parametrize(("poison", "count"), [(nan_in_a_weight, 12), (nan_in_the_chains, 3), (nan_in_the_images, 3)])
def test_every_nan_is_recovered_from_and_named(tmp_path, monkeypatch, poison, count):
    """At random moments: the run ends where it should, with finite weights, and the metrics name each."""
    steps = count + 5
    sick_calls = set(torch.randperm(2 * count, generator=torch.Generator().manual_seed(0)).tolist()[:count])
    poisoned(monkeypatch, sick_calls, poison)
    notes = []
    options = {"checkpoint_every": 1, "sample_every": 100, "max_divergences": count}
    result, _ = train(tmp_path, steps=steps, notes=notes, **options)
    assert result.finished and len(notes) == count
    events = [line for line in metrics_of(tmp_path) if "event" in line]
    assert len(events) == count and events == result.summary["divergences"]
    assert all("is not finite" in event["what"] and event["step"] <= event["at"] for event in events)
    assert [event["rate_scale"] for event in events[:3]] == [0.5, 0.25, 0.125]
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
def test_what_runs_away_is_watched(tmp_path, limit, name):
    notes = []
    with pytest.raises(DivergedError, match=f"{name} is .*, beyond"):
        train(tmp_path, max_divergences=1, notes=notes, **limit)
    assert len(notes) == 1 and "back to step 0 with 0.5 of the learning rate (1 of 1)" in notes[0]


def test_after_an_event_the_rate_is_halved_and_chains_start_again(tmp_path, monkeypatch):
    seen = []

    def look(trainer):
        seen.append(trainer.buffer.images.clone())
        if len(seen) == 1:
            nan_in_a_weight(trainer)

    poisoned(monkeypatch, {0, 1}, look)
    train(tmp_path, buffer_reset_fraction=0.25, warmup_steps=0, lr_schedule="constant", steps=1, log_every=1)
    assert metrics_of(tmp_path)[-1]["lr"] == TINY["lr"] / 2
    at_first, after_the_event = seen
    assert (at_first != after_the_event).flatten(1).any(dim=1).sum() == 32 // 4


@pytest.mark.parametrize("poison", [nan_in_a_weight, nan_in_the_chains, nan_in_the_images])
def test_a_step_that_is_not_finite_is_not_taken(tmp_path, monkeypatch, poison):
    def moved_by(trainer):
        tensors = trainer.state()
        moving = ("buffer", "sums", "running_", "num_batches")  # chains and BatchNorm's statistics move before the look
        return {name: value.clone() for name, value in tensors.items() if not any(word in name for word in moving)}

    def look(trainer):
        poison(trainer)
        before = moved_by(trainer)
        with pytest.raises(Divergence):
            take(trainer)
        after = moved_by(trainer)
        assert all(torch.equal(before[name].nan_to_num(9.0), after[name].nan_to_num(9.0)) for name in before)
        seen.append(len(before))
        raise Divergence("as it should")

    take, seen = Trainer.train_step, []
    poisoned(monkeypatch, {2}, look)
    assert train(tmp_path)[0].finished and seen


def test_what_is_not_finite_is_not_saved(tmp_path, monkeypatch):
    """Chains that no step has drawn yet: each way back would lead to them."""
    take, sick = Trainer.train_step, []

    def train_step(self):
        scalars = take(self)
        if self.step == 2 and not sick:  # the third step, behind which a checkpoint is due
            sick.append(True)
            self.buffer.images[:] = math.nan
        return scalars

    monkeypatch.setattr(Trainer, "train_step", train_step)
    notes = []
    assert train(tmp_path, notes=notes, log_every=100)[0].finished
    assert notes and "buffer is not finite; back to step 0" in notes[0]


def test_an_event_is_named_though_a_later_one_goes_back_further(tmp_path, monkeypatch):
    def damage_too(trainer):
        nan_in_a_weight(trainer)
        if trainer.guard.count:
            for path in checkpoints_in(tmp_path)[1:]:
                path.write_bytes(b"")

    poisoned(monkeypatch, {4, 6}, damage_too)
    result, _ = train(tmp_path)
    assert [(event["step"], event["at"]) for event in result.summary["divergences"]] == [(3, 4), (0, 4)]


def test_the_clock_saves_between_two_checkpoints_and_changes_nothing(tmp_path, monkeypatch):
    """A kill then loses minutes, though checkpoints are hours apart."""
    whole, _ = train(tmp_path / "whole", keep_last=1)
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
    assert steps == [6] and resumed.checkpoint.read_bytes() == whole.checkpoint.read_bytes()
    assert metrics_of(tmp_path / "killed") == metrics_of(tmp_path / "whole")
    names = [[path.name for path in checkpoints_in(tmp_path / run)] for run in ("killed", "whole")]
    assert names[0] == names[1]


def test_a_stop_after_an_event_is_where_the_run_goes_on(tmp_path, monkeypatch):
    def sick(trainer):
        if trainer.guard.count == 0:
            nan_in_a_weight(trainer)

    train(tmp_path, stop_at=5)
    poisoned(monkeypatch, {0}, sick)
    stopped, _ = train(tmp_path, resume=True, steps=9, stop_at=1, keep_last=1, keep_best=False)
    assert [path.name[5:13] for path in checkpoints_in(tmp_path)] == ["00000006"]
    assert int(read_intact(stopped.checkpoint)[0]["divergences"]) == 1


def test_chains_that_begin_on_resume_are_begun_anew_after_an_event(tmp_path, monkeypatch):
    train(tmp_path, stop_at=2, px_weight=0)
    poisoned(monkeypatch, {0}, nan_in_the_chains)
    notes = []
    result, _ = train(tmp_path, resume=True, notes=notes)
    assert result.finished and sum(note.startswith("diverged") for note in notes) == 1


def test_what_is_not_trained_or_lies_in_the_images_is_no_divergence():
    from rjem_cli.engine.training.guard import Divergence, Guard

    sick = {"cross_entropy": 50.0, "saturation": 0.995}
    config = TrainConfig(ce_weight=0)
    Guard(config, 10, data_saturation=0.99).check_means(sick)
    for guard, name in ((Guard(config, 10, 0.5), "saturation"), (Guard(TrainConfig(), 10, 0.99), "cross_entropy")):
        with pytest.raises(Divergence, match=name):
            guard.check_means(sick)


def test_a_run_killed_after_an_event_meets_it_again(tmp_path, monkeypatch):
    """Nothing of an event is on the disk but its line, which is then written anew."""

    def sick_at_step_4(trainer):
        if trainer.step == 4 and trainer.guard.count == 0:
            nan_in_a_weight(trainer)

    poisoned(monkeypatch, range(1000), sick_at_step_4)
    whole, _ = train(tmp_path / "whole")
    killed = []

    class Killed(BaseException):
        pass

    def die(trainer):
        sick_at_step_4(trainer)
        if trainer.step == 5 and not killed:
            killed.append(True)
            raise Killed

    monkeypatch.undo()
    poisoned(monkeypatch, range(1000), die)
    with pytest.raises(Killed):
        train(tmp_path / "killed")
    assert "event" in (tmp_path / "killed" / "metrics.jsonl").read_text()
    resumed, _ = train(tmp_path / "killed", resume=True)
    assert resumed.checkpoint.read_bytes() == whole.checkpoint.read_bytes()
    assert metrics_of(tmp_path / "killed") == metrics_of(tmp_path / "whole")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 2}, "--width 2: .* was trained with --width 1"),
        ({"norm_layer": "group"}, "was trained with --norm-layer batch"),
        ({"optimizer": "adam"}, "was trained with --optimizer sgd"),
        ({"buffer_size": 64}, "its buffer has 32 images, not 64: --buffer-size"),
        ({"steps": 1}, "is at step 2 already"),
        ({"val_fraction": 0.2}, "was trained on other images"),
    ],
)
def test_a_resume_with_another_setup_is_refused(tmp_path, change, message):
    train(tmp_path, stop_at=2)
    with pytest.raises((ConfigError, DataError), match=message):
        train(tmp_path, resume=True, **change)


def test_a_half_written_line_of_metrics_is_dropped(tmp_path):
    train(tmp_path, stop_at=2)
    file = tmp_path / "metrics.jsonl"
    odd = ['{"step": "abc"}', "null", "[1]", 100_000 * "[", '{"step": 3, "input_grad_norm": {}, "end": 5}']
    odd += ['{"step": 2, "input_grad_norm": 1' + 400 * "0" + "}", '{"step": 1, "event": "divergence"}']
    odd += ['{"step": 1, "end": ["step", {}]}', '{"step": 3, "lo']
    file.write_text(file.read_text() + "\n".join(odd))
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
