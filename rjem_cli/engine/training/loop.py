"""From the first step to the last: log, save, draw, and go back where training diverged."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from pathlib import Path

from rjem_cli.engine.model.checkpoint import all_finite
from rjem_cli.engine.training.checkpoints import (
    clean,
    drop_after,
    drop_old,
    newest_valid,
    newest_whole,
    read_state,
    save_pair,
    set_aside,
)
from rjem_cli.engine.training.divergence import Divergence
from rjem_cli.engine.training.metrics import Clock
from rjem_cli.engine.training.progress import TRAINING, Progress, Stopped
from rjem_cli.engine.training.trainer import Trainer
from rjem_cli.errors import DataError, DivergedError, RjemError
from rjem_cli.files import make_dir
from rjem_cli.paths import checkpoint_path, step_of


def start(trainer: Trainer, resume: Path | None) -> None:
    """Put the trainer where `resume`, the newest whole checkpoint of its run, left it; else save the first one, so that
    there is always one to go back to, and what cannot be written is known at once. The run's folder must be locked.
    Raises DataError for a state that does not fit, RjemError for a place that cannot be written and for a run that
    another process took on meanwhile."""
    trainer.watch(Progress(TRAINING, 0 if resume is None else step_of(resume), trainer.steps))
    make_dir(trainer.run_dir / "checkpoints")
    newest, damaged = newest_whole(trainer.run_dir)
    if newest != resume:
        raise RjemError(f"{trainer.run_dir} was trained by another process meanwhile; call again")
    for path in damaged:
        set_aside(path, trainer.tell)
    clean(trainer.run_dir)
    if resume is None:
        save(trainer)
    else:
        go_back(trainer, resume)
    trainer.metrics.forget_after(trainer.step, trainer.guard.count, at_end=trainer.step == trainer.steps)
    trainer.watch(Progress(TRAINING, trainer.step, trainer.steps))


def train_to_end(trainer: Trainer, should_stop: Callable[[], bool]) -> Path:
    """Train to the last step, or until `should_stop`; the checkpoint saved last. Raises DivergedError."""
    clock = Clock(trainer.step)
    while trainer.step < trainer.steps and not should_stop():
        try:
            advance(trainer, clock)
        except Divergence as event:
            recover(trainer, event)
            clock = Clock(trainer.step)
    write_metrics(trainer)
    try:
        return path_of(trainer) if trainer.saved_step == trainer.step else save(trainer)
    except Divergence:  # stopped just where it diverged: the checkpoint before this step is what is good
        return newest_valid(trainer.run_dir, trainer.tell)


def advance(trainer: Trainer, clock: Clock) -> None:
    """One step, and what is due after it. Raises Divergence."""
    config = trainer.config
    trainer.metrics.add(trainer.train_step())
    trainer.step += 1
    last = trainer.step == trainer.steps
    saving, metrics = last or trainer.step % config.checkpoint_every == 0, None
    if saving or trainer.step % config.log_every == 0:
        metrics = trainer.log(clock, measure_val=saving)
        write_metrics(trainer)
    trainer.watch(Progress(TRAINING, trainer.step, trainer.steps, metrics))
    if saving:
        tell_failure(trainer, lambda: save(trainer), "tries again at the next checkpoint")
    if not last and trainer.step % config.sample_every == 0:
        tell_failure(trainer, lambda: draw(trainer), "draws the next")


def write_metrics(trainer: Trainer) -> None:
    tell_failure(trainer, trainer.metrics.flush, "tries again with the next line")


def tell_failure(trainer: Trainer, write: Callable[[], object], then: str) -> None:
    """What cannot be written, on a full disk say, ends a run at its last step only."""
    try:
        write()
    except RjemError as error:
        if trainer.step == trainer.steps:
            raise
        trainer.tell(f"{error}; training goes on, and {then}")


def draw(trainer: Trainer) -> None:
    """The picture of this step, unless a stop is wanted before it is done."""
    with contextlib.suppress(Stopped):
        trainer.draw_samples(trainer.run_dir / "samples" / f"step-{trainer.step:08d}.png", ("energy",))


def recover(trainer: Trainer, event: Divergence) -> None:
    """Back to the last checkpoint that was due, with half the learning rate and a share of the chains started again.
    That checkpoint stays as it is: a run that is killed now meets this event again. One that a stop saved between two
    is passed over, for the run that was not stopped has none there. Raises DivergedError after max_divergences such
    events."""
    at, guard, most = trainer.step, trainer.guard, trainer.config.max_divergences
    path, damaged = newest_whole(trainer.run_dir, due=True)
    for other in damaged:
        set_aside(other, trainer.tell)
    path = path or newest_valid(trainer.run_dir, trainer.tell)
    if guard.count >= most:
        trainer.metrics.add_event(at, at, str(event), rate_scale=None)
        with contextlib.suppress(RjemError):  # of two failures this one is to be known
            trainer.metrics.flush()
        raise DivergedError(
            f"training diverged at step {at} ({event}) after {most} times of going back; the last good checkpoint is "
            f"{path}; try a lower --lr, or set --max-grad-norm"
        )
    drop_after(trainer.run_dir, path)
    count = guard.count + 1  # the checkpoint may be of before an earlier event
    go_back(trainer, path)
    guard.count = count
    if trainer.buffer is not None:
        trainer.buffer.redraw(trainer.config.redraw_share, trainer.generator(f"redraw {guard.count}"))
    trainer.metrics.forget_after(trainer.step, guard.count - 1, at_end=False)
    trainer.metrics.add_event(trainer.step, at, str(event), guard.rate_scale)
    write_metrics(trainer)
    trainer.tell(
        f"diverged at step {at}: {event}; back to step {trainer.step} with {guard.rate_scale:g} of the learning rate "
        f"({guard.count} of {most})"
    )


def go_back(trainer: Trainer, path: Path) -> None:
    """To the state of a checkpoint of this run. Raises DataError for one that does not fit it."""
    try:
        trainer.load_state(read_state(path))
    except (KeyError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0][:160]
        remedy = "resume with the settings it was trained with"
        raise DataError(f"the state of {path} does not fit this run ({reason}); {remedy}") from None
    if trainer.step != step_of(path):
        raise DataError(f"the state of {path} is of step {trainer.step}; remove it")
    trainer.saved_step = trainer.step


def save(trainer: Trainer) -> Path:
    """Write the checkpoint of this step, then drop old ones. Raises Divergence for weights that are not finite,
    RjemError for what cannot be written."""
    config, model = trainer.config, trainer.sampling_model()
    if not all_finite(itertools.chain(trainer.model.state_dict().values(), model.state_dict().values())):
        raise Divergence("a weight is not finite")
    path = path_of(trainer)
    info = trainer.info.at(trainer.step, trainer.metrics.val_accuracy_at(trainer.step))
    save_pair(path, model, info, trainer.state())
    trainer.saved_step = trainer.step
    drop_old(trainer.run_dir, path, config.keep_last, config.keep_best)
    return path


def path_of(trainer: Trainer) -> Path:
    return checkpoint_path(trainer.run_dir, trainer.step)
