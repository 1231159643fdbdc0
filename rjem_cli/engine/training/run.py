"""A run from its first step to its summary: start or resume, train, save, recover from divergence, evaluate."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from rjem_cli.config.common import SAMPLE_MODES
from rjem_cli.config.training import TrainConfig
from rjem_cli.engine.data.images import Splits
from rjem_cli.engine.distributed import SINGLE, Distributed
from rjem_cli.engine.models.checkpoint import CONFIG_FILE, load_buffer, load_checkpoint, read_info, strip_paths
from rjem_cli.engine.models.prior import ClassGaussianPrior, load_prior
from rjem_cli.engine.runtime import Runtime
from rjem_cli.engine.training import checkpointing
from rjem_cli.engine.training.checkpoint_writer import CheckpointWriter
from rjem_cli.engine.training.evaluation import compute_energies, draw_samples, summarize, val_accuracy
from rjem_cli.engine.training.guard import Divergence
from rjem_cli.engine.training.metrics_log import read_lines, write_curves
from rjem_cli.engine.training.progress import TRAINING, Clock, Stopped, TrainingCallbacks, TrainingProgress
from rjem_cli.engine.training.trainer import Trainer
from rjem_cli.errors import AbsentError, ConfigError, DataError, DivergedError, RjemError
from rjem_cli.errors import summarize as summarize_error
from rjem_cli.files import locked, write_atomically, write_json
from rjem_cli.paths import checkpoint_path, checkpoints_in, parse_step

SUMMARY_FILE = "summary.json"


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
    initial: Path | None = None,
    callbacks: TrainingCallbacks | None = None,
    distributed: Distributed = SINGLE,
) -> RunResult:
    """Train in `run_dir`; if `resume`, from its newest intact checkpoint, else from the `initial` one, if any. After
    the last step, evaluate the model and write summary.json and samples/grid.png. Draw curves.png however training
    ends.

    Raises DivergedError, ConfigError or DataError (options or a state that do not fit), and RjemError (something cannot
    be written).
    """
    callbacks = callbacks or TrainingCallbacks()

    def fit_prior() -> ClassGaussianPrior:
        return load_prior(splits.train, config.prior_variance, callbacks.log)

    with locked(run_dir, wait=False) if distributed.is_main else contextlib.nullcontext():
        trainer = Trainer(config, splits, runtime, run_dir, fit_prior, distributed)
        run = Run(trainer, callbacks)
        with contextlib.closing(run.writer):
            run.start(resume, initial)
            try:
                checkpoint = run.train()
                if run.trainer.step == run.trainer.steps and not run.should_stop() and distributed.is_main:
                    with contextlib.suppress(Stopped):
                        return run.finish(checkpoint)
                return RunResult(checkpoint, False, parse_step(checkpoint), run.trainer.steps)
            finally:
                run.draw_curves()


class Run:
    """A trainer and its folder. The main process writes; all processes take the same decisions."""

    def __init__(self, trainer: Trainer, callbacks: TrainingCallbacks):
        self.trainer, self.callbacks = trainer, callbacks
        self.run_dir, self.metrics, self.distributed = trainer.run_dir, trainer.metrics, trainer.distributed
        self.clock = Clock(trainer.step)
        self.restored_step: int | None = None  # to which the last divergence of this call returned
        self.diverged_at = -1  # the latest step at which this call diverged
        self.recoveries = 0  # of this call
        self.writer = CheckpointWriter(trainer, callbacks)

    def should_stop(self) -> bool:
        return self.distributed.any(self.callbacks.should_stop())

    def on_main(self, action: Callable[[], object]) -> None:
        """Call `action` in the main process, before any other continues. Raises RjemError."""
        if self.distributed.is_main:
            action()
        self.distributed.barrier()

    def on_main_or_warn(self, action: Callable[[], object], remedy: str = "") -> None:
        """Call `action` in the main process; training continues if it fails or is stopped."""
        if self.distributed.is_main:
            try:
                action()
            except RjemError as error:
                self.callbacks.warn(f"{error}; training continues{remedy}")
            except Stopped:
                pass

    # --- start ---

    def start(self, resume: bool, initial: Path | None = None) -> None:
        """Load the newest intact checkpoint, or save the first one of a new run, with the weights of `initial`. So
        there is always one to return to.

        Raises ConfigError or DataError for options, images or a state that do not fit, and RjemError if the folder
        cannot be written."""
        trainer, guard = self.trainer, self.trainer.guard
        self.on_main(lambda: checkpointing.prepare_run_dir(self.run_dir))
        if resume:
            self.check_same_run()
            self.restore()
            self.metrics.lines = read_lines(self.metrics.path)
        finished = trainer.step == trainer.steps
        self.metrics.drop_after(trainer.step, keep_partial=finished)
        self.on_main(self.metrics.flush)
        self.on_main(self.write_config)
        if not resume:
            if initial:
                self.start_from(initial)
            self.save(last=True)
        elif finished:
            again = "evaluating again" if (self.run_dir / SUMMARY_FILE).exists() else "evaluating"
            self.callbacks.log(f"training is already finished; {again} (--steps with more steps continues it)")
        else:
            self.callbacks.log(f"resuming at step {trainer.step}")
            if read_info(checkpoint_path(self.run_dir, trainer.step)).config != strip_paths(trainer.config):
                self.writer.saved_step = None  # so that new options are not lost
        if guard.count:
            self.callbacks.warn(f"the learning rate is {guard.lr_scale:g} of --lr after {guard.count} divergences")
        self.clock = Clock(trainer.step)
        self.callbacks.on_progress(TrainingProgress(TRAINING, trainer.step, trainer.steps))

    def start_from(self, path: Path) -> None:
        """Raises AbsentError or DataError for a checkpoint that is missing, damaged, or of another network."""
        checkpoint = load_checkpoint(path, self.trainer.runtime.device)
        buffer = load_buffer(checkpoint)
        try:
            self.trainer.start_from(checkpoint, buffer)
        except RuntimeError as error:
            raise DataError(f"--init-from {path} has another network ({summarize_error(error)})") from None
        self.callbacks.log(f"starting from {path}" + (" and its replay buffer" if buffer is not None else ""))

    def write_config(self) -> None:
        text = yaml.safe_dump(self.trainer.config.to_dict(), sort_keys=False, allow_unicode=True)
        write_atomically(self.run_dir / CONFIG_FILE, text.encode())

    def check_same_run(self) -> None:
        """Raises ConfigError for options, DataError for images that differ from those of the newest checkpoint."""
        name, now, steps = self.run_dir.name, self.trainer.info, self.trainer.steps
        before = read_info(checkpointing.latest_valid(self.run_dir, self.callbacks.warn))
        self.trainer.info = replace(now, origin=before.origin)
        checkpointing.check_options(name, before, self.trainer.config)
        if before.data_digest != now.data_digest:
            raise DataError(
                f"run {name} was trained on other images than {now.data_name} has now; give those with --data"
            )
        if before.step > steps:
            raise ConfigError(f"run {name} is at step {before.step}, beyond --steps {steps}; give more steps or epochs")

    def restore(self, latest: int | None = None) -> None:
        """Load the newest intact checkpoint, and quarantine damaged ones; with `latest`, the newest of at most that
        step, else the oldest of all. Raises DataError if none is intact or its state does not fit the run."""
        while True:
            checkpoints = self.distributed.broadcast(checkpoints_in(self.run_dir))
            if not checkpoints:
                raise checkpointing.no_valid_checkpoint(self.run_dir)
            allowed = [path for path in checkpoints if latest is None or parse_step(path) <= latest]
            path = allowed[-1] if allowed else checkpoints[0]
            try:
                tensors, damage = checkpointing.read_intact_state(path), None
            except (AbsentError, DataError) as error:
                tensors, damage = {}, error
            if not self.distributed.any(damage is not None):
                break
            if damage:
                self.callbacks.warn(f"skipped: {damage}")
            self.on_main(lambda path=path: checkpointing.quarantine(path, self.callbacks.warn))  # type: ignore[misc]
        try:
            self.trainer.load_state(tensors)
        except (KeyError, RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0][:160]
            raise DataError(
                f"the state of {path} does not fit this run ({reason}); resume with the options it was trained with"
            ) from None
        self.writer.saved_step = self.trainer.step

    # --- train ---

    def train(self) -> Path:
        """Train to the last step, or until asked to stop. Returns the checkpoint saved last. Raises DivergedError, and
        RjemError if that checkpoint cannot be written."""
        trainer = self.trainer
        while trainer.step < trainer.steps and not self.should_stop():
            try:
                trainer.train_step()
                self.log_and_save()
            except Divergence as event:
                self.recover(event)
        self.writer.wait()
        try:
            if self.writer.saved_step != trainer.step:
                self.save(last=True)
        except Divergence as event:
            self.callbacks.warn(f"stopped at step {trainer.step}, where training diverged: {event}")
            return checkpointing.latest_valid(self.run_dir, self.callbacks.warn)
        self.on_main(self.metrics.flush)  # lines that could not be written before
        return checkpoint_path(self.run_dir, trainer.step)

    def log_and_save(self) -> None:
        """Log, save and draw what is due after this step. Raises Divergence, and RjemError as `save` does."""
        trainer, config = self.trainer, self.trainer.config
        step, last = trainer.step, trainer.step == trainer.steps
        due = last or config.saves_at(step)
        metrics, energies = self.log(validate=due) if due or config.logs_at(step) else (None, None)
        self.callbacks.on_progress(TrainingProgress(TRAINING, step, trainer.steps, metrics, energies))
        overdue = 0 < config.checkpoint_minutes <= self.clock.minutes_since_save()
        if due or self.distributed.broadcast(overdue):
            self.save(last)
        if step % config.sample_every == 0 and not last:
            path = self.run_dir / "samples" / f"step-{step:08d}.png"
            self.on_main_or_warn(lambda: draw_samples(trainer, path, ("energy",), self.callbacks))

    def log(self, validate: bool) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Add a line of metrics. Returns its values, and E(x) (B,) of data and chains. Raises Divergence if a value is
        beyond its limit."""
        trainer, config, step = self.trainer, self.trainer.config, self.trainer.step
        values: dict[str, float] = {}
        energies: dict[str, Tensor] = {}
        if self.distributed.is_main:
            means, energies = compute_energies(trainer)
            accuracy = val_accuracy(trainer) if validate else None
            values = {
                **trainer.metrics.means(),
                **means,
                **({} if accuracy is None else {"val_accuracy": accuracy}),
                "divergences": float(trainer.guard.count),
                "lr": trainer.optimizer.param_groups[0]["lr"],
                "images_per_second": trainer.batch_size * self.clock.steps_per_second(step),
            }
        values = self.distributed.broadcast({name: float(f"{value:.6g}") for name, value in values.items()})
        trainer.guard.check_means(values)
        regular = set(values) if config.logs_at(step) else set()
        if not config.saves_at(step):
            regular.discard("val_accuracy")  # it is measured only because the run ends here
        for names, partial in ((regular, False), (set(values) - regular, True)):
            if names:
                self.metrics.add_line(step, {name: values[name] for name in values if name in names}, partial)
        self.flush_metrics()
        return values, energies

    def flush_metrics(self) -> None:
        self.on_main_or_warn(self.metrics.flush, ", and the line is written with the next one")

    # --- save and recover ---

    def save(self, last: bool) -> None:
        """Write the checkpoint of this step. On a GPU, training continues while it is written, unless it is the `last`
        chance. Raises Divergence for a state that is not finite or beyond the limits, and RjemError if the last
        checkpoint cannot be written."""
        trainer = self.trainer
        self.clock.note_save()
        trainer.guard.check_means(trainer.metrics.means())
        snapshot = trainer.snapshot(self.metrics.value_at(trainer.step, "val_accuracy"))
        self.writer.start(snapshot, last)

    def recover(self, event: Divergence) -> None:
        """Return to the newest checkpoint, halve the learning rate and restart a share of the chains. If it diverged
        again before it passed the step of its last divergence, return to an older checkpoint than that time. Raises
        DivergedError after max_divergences such events of one call."""
        self.writer.wait()
        trainer, guard, limit = self.trainer, self.trainer.guard, self.trainer.config.max_divergences
        at = trainer.step if event.step is None else event.step
        count = guard.count + 1  # the checkpoint may be older than an earlier divergence
        self.recoveries += 1
        if self.recoveries > limit:
            self.metrics.add_event(at, at, str(event), lr_scale=None)
            self.flush_metrics()
            lower = "" if trainer.config.max_grad_norm else ", or set --max-grad-norm"
            raise DivergedError(
                f"training diverged {limit + 1} times, last at step {at} ({event}); its newest checkpoint is "
                f"{checkpointing.latest_valid(self.run_dir, self.callbacks.warn)}; try a lower --lr{lower}"
            )
        latest = None
        if self.restored_step is not None and at <= self.diverged_at:
            latest = self.restored_step - 1
        elif self.writer.saved_step == self.restored_step:  # newer files are of the steps that diverged
            latest = self.restored_step
        self.restore(latest)
        self.restored_step, self.diverged_at, guard.count = trainer.step, max(at, self.diverged_at), count
        if trainer.buffer is not None:
            trainer.buffer.reset(trainer.config.buffer_reset_fraction, trainer.generator(f"redraw {count}"))
        self.clock = Clock(trainer.step)
        self.metrics.drop_after(trainer.step, keep_events=True)
        self.metrics.add_event(trainer.step, at, str(event), guard.lr_scale)
        self.flush_metrics()
        self.callbacks.warn(
            f"diverged at step {at}: {event}; back to step {trainer.step} with {guard.lr_scale:g} of the learning "
            f"rate ({self.recoveries} of {limit})"
        )

    # --- finish ---

    def finish(self, checkpoint: Path) -> RunResult:
        """Evaluate the model, and write summary.json and samples/grid.png. Raises Stopped, and RjemError if they cannot
        be written."""
        trainer = self.trainer
        summary = summarize(trainer, self.callbacks)
        write_json(self.run_dir / SUMMARY_FILE, summary)
        grid = self.run_dir / "samples" / "grid.png"
        draw_samples(trainer, grid, SAMPLE_MODES, self.callbacks)
        return RunResult(checkpoint, True, trainer.step, trainer.steps, summary, grid)

    def draw_curves(self) -> None:
        if self.distributed.is_main:
            try:
                if path := write_curves(self.run_dir):
                    self.callbacks.log(f"curves: {path}")
            except RjemError as error:
                self.callbacks.warn(str(error))
