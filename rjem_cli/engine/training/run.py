"""A run from its first step to its summary: start or resume, train, save, recover from divergence, evaluate."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from rjem_cli.config import SAMPLE_MODES, TrainConfig
from rjem_cli.engine.data.images import Splits, to_model
from rjem_cli.engine.data.png import png_bytes
from rjem_cli.engine.distributed import SINGLE, Distributed
from rjem_cli.engine.gradients import value_and_grad
from rjem_cli.engine.metrics.accuracy import accuracy, evenly_spaced
from rjem_cli.engine.models.checkpoint import CONFIG_FILE, all_finite, read_info, strip_paths
from rjem_cli.engine.models.energy import energy
from rjem_cli.engine.runtime import Runtime
from rjem_cli.engine.sampling.generate import preview
from rjem_cli.engine.sampling.pipeline import SamplePlan
from rjem_cli.engine.training.checkpointing import (
    check_same_run,
    latest_described,
    latest_valid,
    no_valid_checkpoint,
    quarantine,
    read_intact_state,
    remove_leftovers,
    remove_old,
    save_pair,
)
from rjem_cli.engine.training.guard import Divergence
from rjem_cli.engine.training.metrics_log import read_lines
from rjem_cli.engine.training.progress import TRAINING, Stopped, TrainingCallbacks, TrainingProgress
from rjem_cli.engine.training.summary import summarize
from rjem_cli.engine.training.trainer import Trainer
from rjem_cli.errors import AbsentError, DataError, DivergedError, RjemError
from rjem_cli.files import locked, make_dir, write_atomically
from rjem_cli.paths import checkpoint_path, checkpoints_dir, checkpoints_in, parse_step

VALIDATION_IMAGES = 2000
PREVIEW_PER_CLASS = 8


@dataclass(frozen=True)
class RunResult:
    """How a run ended. `finished` is False if it was stopped; it can then be resumed."""

    checkpoint: Path
    finished: bool
    step: int
    steps: int
    summary: dict[str, Any] = field(default_factory=dict)
    grid: Path | None = None


def run_training(
    config: TrainConfig,
    splits: Splits,
    runtime: Runtime,
    run_dir: Path,
    *,
    resume: bool = False,
    callbacks: TrainingCallbacks | None = None,
    distributed: Distributed = SINGLE,
) -> RunResult:
    """Train in `run_dir`; if `resume`, from its newest intact checkpoint. After the last step, evaluate the model and
    write summary.json and samples/grid.png.

    Raises DivergedError, ConfigError or DataError (options or a state that do not fit), and RjemError (something cannot
    be written).
    """
    lock = locked(run_dir, wait=False) if distributed.is_main else contextlib.nullcontext()
    with lock:
        run = Run(Trainer(config, splits, runtime, run_dir, distributed), callbacks or TrainingCallbacks())
        run.start(resume)
        checkpoint = run.train()
        stopped = RunResult(checkpoint, False, parse_step(checkpoint), run.trainer.steps)
        if run.trainer.step < run.trainer.steps or run.should_stop():
            return stopped
        try:
            return run.finish(checkpoint) if distributed.is_main else stopped
        except Stopped:
            return stopped


class Run:
    """A trainer and its folder. The main process writes; all processes take the same decisions."""

    def __init__(self, trainer: Trainer, callbacks: TrainingCallbacks):
        self.trainer, self.callbacks = trainer, callbacks
        self.config, self.run_dir, self.metrics = trainer.config, trainer.run_dir, trainer.metrics
        self.distributed = trainer.distributed
        self.val = evenly_spaced(trainer.splits.val, VALIDATION_IMAGES)
        self.saved_step: int | None = None  # the step of the newest checkpoint on disk, if it is of this run
        self.restored_step: int | None = None  # to which the last divergence returned
        self.clock = Clock(trainer.step)
        self.energies: dict[str, Tensor] = {}  # E(x) (B,) of data and chains, at the last line of metrics

    def should_stop(self) -> bool:
        return self.distributed.any(self.callbacks.should_stop())

    # --- start ---

    def start(self, resume: bool) -> None:
        """Load the newest intact checkpoint, or save the first one of a new run: there is always one to return to, and
        a folder that cannot be written is known at once. Raises DataError for a state that does not fit, and RjemError
        if the folder cannot be written."""
        trainer = self.trainer
        if self.distributed.is_main:
            make_dir(checkpoints_dir(self.run_dir))
            remove_leftovers(self.run_dir)
        self.distributed.barrier()
        if resume:
            newest = latest_valid(self.run_dir, self.callbacks.warn)
            check_same_run(self.run_dir.name, read_info(newest), trainer.info, trainer.steps)
            path = self.restore()
            self.metrics.lines = read_lines(self.metrics.path)
        self.write(lambda: self.metrics.cut(trainer.step))
        self.write(self.write_config)
        if not resume:
            self.save()
        elif trainer.step == trainer.steps:
            self.callbacks.log("training is already finished; evaluating again (--steps with more steps continues it)")
        elif read_info(path).config != strip_paths(self.config):
            self.saved_step = None  # save again when stopped, so that new options are not lost
        if trainer.guard.count:
            scale, count = trainer.guard.rate_scale, trainer.guard.count
            self.callbacks.warn(f"the learning rate is {scale:g} of --lr after {count} divergences of this run")
        self.clock = Clock(trainer.step)
        self.callbacks.on_progress(TrainingProgress(TRAINING, trainer.step, trainer.steps))

    def write_config(self) -> None:
        text = yaml.safe_dump(self.config.to_dict(), sort_keys=False, allow_unicode=True)
        write_atomically(self.run_dir / CONFIG_FILE, text.encode())

    def restore(self) -> Path:
        """Load the newest intact checkpoint, and quarantine damaged ones. Raises DataError if none is intact or its
        state does not fit the run."""
        for path in reversed(checkpoints_in(self.run_dir)):
            try:
                tensors = read_intact_state(path)
            except (AbsentError, DataError) as error:
                self.callbacks.warn(f"skipped: {error}")
                self.write(lambda path=path: quarantine(path, self.callbacks.warn))  # type: ignore[misc]
                continue
            try:
                self.trainer.load_state(tensors)
            except (KeyError, RuntimeError, ValueError) as error:
                reason = str(error).splitlines()[0][:160]
                raise DataError(
                    f"the state of {path} does not fit this run ({reason}); resume with the options it was trained with"
                ) from None
            self.saved_step = self.trainer.step
            return path
        raise no_valid_checkpoint(self.run_dir)

    def write(self, action: Callable[[], object]) -> None:
        """Do it in the main process, before any other goes on. Raises RjemError."""
        if self.distributed.is_main:
            action()
        self.distributed.barrier()

    # --- train ---

    def train(self) -> Path:
        """Train to the last step, or until asked to stop. Returns the checkpoint saved last. Raises DivergedError, and
        RjemError if that checkpoint cannot be written."""
        trainer, config = self.trainer, self.config
        while trainer.step < trainer.steps and not self.should_stop():
            try:
                trainer.train_step()
                last = trainer.step == trainer.steps
                due = last or config.saves_at(trainer.step)
                metrics = self.log(due) if due or config.logs_at(trainer.step) else None
                energies = self.energies if metrics else None
                progress = TrainingProgress(TRAINING, trainer.step, trainer.steps, metrics, energies)
                self.callbacks.on_progress(progress)
                if due or self.save_is_overdue():
                    self.save_or_warn(last)
                if trainer.step % config.sample_every == 0 and not last and self.distributed.is_main:
                    self.draw_or_warn()
            except Divergence as event:
                self.recover(event)
        try:
            if self.saved_step != trainer.step:
                self.save_or_warn(last=True)
        except Divergence as event:
            self.callbacks.warn(f"stopped at step {trainer.step}, where training diverged: {event}")
            return latest_valid(self.run_dir, self.callbacks.warn)
        self.write(self.metrics.flush)  # lines that could not be written before
        return checkpoint_path(self.run_dir, trainer.step)

    def log(self, validate: bool) -> dict[str, float]:
        """Add a line of metrics. Raises Divergence if a value in it is beyond its limit."""
        trainer = self.trainer
        values: dict[str, float] = {}
        if self.distributed.is_main:
            values = {
                **trainer.metrics.means(),
                **self.energy_stats(),
                **({"val_accuracy": self.val_accuracy()} if validate and len(self.val) else {}),
                "divergences": float(trainer.guard.count),
                "lr": trainer.optimizer.param_groups[0]["lr"],
                "images_per_second": trainer.batch_size * self.clock.steps_per_second(trainer.step),
            }
        values = self.distributed.broadcast({name: float(f"{value:.6g}") for name, value in values.items()})
        trainer.guard.check_means(values)
        self.metrics.add_line(trainer.step, values, partial=not self.config.logs_at(trainer.step))
        self.flush_or_warn()
        return values

    def energy_stats(self) -> dict[str, float]:
        """Mean E(x) of data and of the buffer, and the mean L2 norm of dE/dx on data; keeps the energies for
        histograms. The literature's R1 penalty is the mean of the squared norm."""
        trainer = self.trainer
        if trainer.buffer is None:
            return {}
        frozen = trainer.frozen.refresh(trainer.model)
        _, data_B, gradient = value_and_grad(frozen, energy, to_model(trainer.watched.pixels))
        with torch.no_grad():
            chains_B = energy(frozen(trainer.buffer.images[: trainer.batch_size]))
        self.energies = {"data": data_B.cpu(), "chains": chains_B.cpu()}
        norms = gradient.flatten(1).norm(dim=1).cpu()
        names = ("energy_data", "energy_buffer", "input_grad_norm")
        return {name: float(part.mean()) for name, part in zip(names, (*self.energies.values(), norms))}

    def val_accuracy(self) -> float:
        """Of the EMA network on the validation images."""
        model = self.trainer.runtime.scoring().frozen(self.trainer.sampling_model())
        return accuracy(model, self.val, self.trainer.runtime.device).value

    def flush_or_warn(self) -> None:
        if self.distributed.is_main:
            try:
                self.metrics.flush()
            except RjemError as error:
                self.callbacks.warn(f"{error}; training continues, and the line is written with the next one")

    def draw_or_warn(self) -> None:
        """Sample grid of this step, unless asked to stop before it is done."""
        path = self.run_dir / "samples" / f"step-{self.trainer.step:08d}.png"
        try:
            self.draw_samples(path, ("energy",))
        except Stopped:
            return
        except RjemError as error:
            self.callbacks.warn(f"{error}; training continues")

    def draw_samples(self, path: Path, modes: tuple[str, ...]) -> None:
        """A figure with samples in these modes. Raises Stopped, and RjemError if it cannot be written."""
        trainer = self.trainer
        figure = preview(
            trainer.runtime.frozen(trainer.sampling_model()),
            trainer.prior,
            [SamplePlan.from_config(self.config, mode) for mode in modes],
            PREVIEW_PER_CLASS,
            self.config.seed,
            lambda done, total: self.callbacks.progress("drawing samples", done, total),
        )
        write_atomically(path, png_bytes(figure))

    # --- save and recover ---

    def save_is_overdue(self) -> bool:
        minutes = self.config.checkpoint_minutes
        return self.distributed.any(0 < minutes <= self.clock.minutes_since_save())

    def save_or_warn(self, last: bool) -> None:
        """A full disk does not end the run, unless it was the last chance. Raises Divergence, and RjemError with the
        step of the newest checkpoint."""
        self.clock.note_save()
        try:
            self.save()
        except RjemError as error:
            if not last:
                self.callbacks.warn(f"{error}; training continues, and saves again at the next checkpoint")
                return
            newest, _ = latest_described(self.run_dir)
            raise RjemError(
                f"{error}; the newest checkpoint is that of step {parse_step(newest)}" if newest else str(error)
            ) from None

    def save(self) -> None:
        """Write the checkpoint of this step, then remove old ones. Raises Divergence for a state that is not finite or
        beyond the limits, RjemError if it cannot be written."""
        trainer = self.trainer
        trainer.guard.check_means(trainer.metrics.means())
        state = trainer.state()
        for name, tensor in state.items():
            if not all_finite([tensor]):
                raise Divergence(f"{name} is not finite")
        if self.distributed.is_main:
            path = checkpoint_path(self.run_dir, trainer.step)
            model = trainer.sampling_model()
            if not all_finite(model.state_dict().values()):
                raise Divergence("the statistics of the EMA network are not finite")
            lines = [line for line in self.metrics.lines if line["step"] == trainer.step and "event" not in line]
            val_accuracy = lines[-1].get("val_accuracy") if lines else None
            info = replace(trainer.info, step=trainer.step, images_seen=trainer.images_seen, val_accuracy=val_accuracy)
            save_pair(path, model, info, state)
            remove_old(self.run_dir, path, self.config.keep_last, self.config.keep_best)
        self.saved_step = trainer.step

    def recover(self, event: Divergence) -> None:
        """Return to the newest checkpoint, halve the learning rate and restart a share of the chains. If training
        diverges again before it saved another checkpoint, return to an older one. Raises DivergedError after
        max_divergences such events."""
        trainer, guard, limit = self.trainer, self.trainer.guard, self.config.max_divergences
        at, count = trainer.step, guard.count + 1  # the checkpoint may be older than an earlier divergence
        if guard.count >= limit:
            self.metrics.add_event(at, at, str(event), rate_scale=None)
            self.flush_or_warn()
            lower = "" if self.config.max_grad_norm else ", or set --max-grad-norm"
            raise DivergedError(
                f"training diverged {limit + 1} times, last at step {at} ({event}); its newest checkpoint is "
                f"{latest_valid(self.run_dir, self.callbacks.warn)}; try a lower --lr{lower}"
            )
        checkpoints = checkpoints_in(self.run_dir)
        if len(checkpoints) > 1 and parse_step(checkpoints[-1]) == self.restored_step:
            self.write(lambda: quarantine(checkpoints[-1], self.callbacks.warn))
        self.restore()
        self.restored_step, guard.count = trainer.step, count
        if trainer.buffer is not None:
            trainer.buffer.reset(self.config.buffer_reset_fraction, trainer.generator(f"redraw {count}"))
        self.clock = Clock(trainer.step)
        try:
            self.write(lambda: self.metrics.cut(trainer.step, keep_events=True))
        except RjemError as error:
            self.callbacks.warn(f"{error}; training continues")
        self.metrics.add_event(trainer.step, at, str(event), guard.rate_scale)
        self.flush_or_warn()
        self.callbacks.warn(
            f"diverged at step {at}: {event}; back to step {trainer.step} with {guard.rate_scale:g} of the learning "
            f"rate ({count} of {limit})"
        )

    # --- finish ---

    def finish(self, checkpoint: Path) -> RunResult:
        """Evaluate the model, and write summary.json and samples/grid.png. Raises Stopped."""
        trainer = self.trainer
        summary = summarize(trainer, self.callbacks)
        write_atomically(self.run_dir / "summary.json", json.dumps(summary, indent=2).encode())
        grid = self.run_dir / "samples" / "grid.png"
        self.draw_samples(grid, SAMPLE_MODES)
        return RunResult(checkpoint, True, trainer.step, trainer.steps, summary, grid)


class Clock:
    """Steps per second since the previous question, and minutes since the last attempt to save."""

    def __init__(self, step: int):
        self.step, self.time = step, time.perf_counter()
        self.saved_at = self.time

    def steps_per_second(self, step: int) -> float:
        now = time.perf_counter()
        rate = (step - self.step) / max(1e-9, now - self.time)
        self.step, self.time = step, now
        return rate

    def minutes_since_save(self) -> float:
        return (time.perf_counter() - self.saved_at) / 60

    def note_save(self) -> None:
        self.saved_at = time.perf_counter()
