"""From the first step to the last: log, save, draw, and go back where training diverged."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from rjem_cli.engine.model.checkpoint import CONFIG_FILE, all_finite, read_info, without_places
from rjem_cli.engine.training.checkpoints import (
    clean,
    drop_old,
    latest_described,
    latest_valid,
    no_valid_checkpoint,
    read_intact,
    save_pair,
    set_aside,
)
from rjem_cli.engine.training.divergence import Divergence
from rjem_cli.engine.training.metrics import Clock
from rjem_cli.engine.training.progress import TRAINING, Progress, Stopped
from rjem_cli.engine.training.trainer import Trainer
from rjem_cli.errors import AbsentError, DataError, DivergedError, RjemError
from rjem_cli.files import make_dir, write_atomically
from rjem_cli.paths import checkpoint_path, checkpoints_dir, checkpoints_in, step_of


def start(trainer: Trainer, resume: Path | None) -> None:
    """Load the newest intact checkpoint of a resumed run, or save the first one of a new run: there is always one to go
    back to, and a place that cannot be written is known at once. `resume`: the run's newest described checkpoint. The
    run's folder must be locked; its config.yaml is written once nothing can be refused any more.

    Raises DataError for a state that does not fit, and RjemError for a place that cannot be written or a run that
    another process trained meanwhile.
    """
    trainer.watch(Progress(TRAINING, 0 if resume is None else step_of(resume), trainer.steps))
    trainer.ranks.from_first(lambda: clear(trainer, resume))
    unwritten: list[dict[str, Any]] = []
    if resume is None:
        write_config(trainer)
        save(trainer)
    else:
        path, unwritten = go_back(trainer)
        if path != resume:
            trainer.warn(f"resumes from step {trainer.step} instead")
        write_config(trainer)
        if trainer.step == trainer.steps:
            trainer.tell("all its steps are done already; its tests and pictures are made anew (more --steps go on)")
        if trainer.guard.count:
            scale, count = trainer.guard.rate_scale, trainer.guard.count
            trainer.warn(f"the rate is {scale:g} of --lr: divergences of this run so far, {count}")
        if trainer.step < trainer.steps and read_info(path).config != without_places(trainer.config):
            trainer.saved_step = None  # the new settings are to outlive a stop before the next checkpoint
    trainer.metrics.read(unwritten)
    trainer.metrics.forget_after(trainer.step, trainer.guard.count, at_end=trainer.step == trainer.steps)
    flush_metrics(trainer)
    trainer.watch(Progress(TRAINING, trainer.step, trainer.steps))


def clear(trainer: Trainer, resume: Path | None) -> None:
    """The run's folder of what is damaged or was left by a kill."""
    make_dir(checkpoints_dir(trainer.run_dir))
    newest, damaged = latest_described(trainer.run_dir)
    if newest != resume:
        raise RjemError(f"{trainer.run_dir} was trained by another process meanwhile; call again")
    for path in damaged:
        set_aside(path, trainer.warn)
    clean(trainer.run_dir)


def write_config(trainer: Trainer) -> None:
    text = yaml.safe_dump(trainer.config.to_dict(), sort_keys=False, allow_unicode=True)
    trainer.ranks.from_first(lambda: write_atomically(trainer.run_dir / CONFIG_FILE, text.encode()))


def train_to_end(trainer: Trainer, should_stop: Callable[[], bool]) -> Path:
    """Train to the last step, or until `should_stop`; the checkpoint saved last. Raises DivergedError, and RjemError
    for what cannot be written."""
    clock = Clock(trainer.step)
    while trainer.step < trainer.steps and not trainer.ranks.agree(should_stop()):
        try:
            advance(trainer, clock)
        except Divergence as event:
            recover(trainer, event)
            clock = Clock(trainer.step)
    try:
        path = path_of(trainer) if trainer.saved_step == trainer.step else save_last(trainer)
    except Divergence as event:  # the checkpoint before this step is what is good
        trainer.warn(f"stopped where it diverged, at step {trainer.step}: {event}")
        path = trainer.ranks.from_first(lambda: latest_valid(trainer.run_dir, trainer.warn))
    flush_metrics(trainer)  # nothing else would write what waits
    return path


def advance(trainer: Trainer, clock: Clock) -> None:
    """One step, and what is due after it. Raises Divergence, and RjemError for a last checkpoint that cannot be
    written."""
    config = trainer.config
    trainer.metrics.add(trainer.train_step())
    trainer.step += 1
    trainer.images_seen += trainer.batch_size
    last = trainer.step == trainer.steps
    saving, metrics = last or config.saves_at(trainer.step), None
    if saving or config.logs_at(trainer.step):
        metrics = trainer.log(clock, measure_val=saving)
        write_metrics(trainer)
    trainer.watch(
        Progress(TRAINING, trainer.step, trainer.steps, metrics, energies=trainer.energies if metrics else None)
    )
    if saving and last:
        save_last(trainer)
    elif saving or trainer.ranks.agree(0 < config.checkpoint_minutes <= clock.minutes_since_save()):
        clock.save()
        tell_failure(trainer, lambda: save(trainer), "tries again at the next checkpoint")
    if not last and trainer.step % config.sample_every == 0 and trainer.ranks.is_first:
        tell_failure(trainer, lambda: draw(trainer), "draws the next")


def flush_metrics(trainer: Trainer) -> None:
    trainer.ranks.from_first(trainer.metrics.flush)


def write_metrics(trainer: Trainer) -> None:
    tell_failure(trainer, lambda: flush_metrics(trainer), "writes it with the next line")


def tell_failure(trainer: Trainer, write: Callable[[], object], then: str) -> None:
    """What cannot be written on the way, on a full disk say, ends no run."""
    try:
        write()
    except RjemError as error:
        trainer.warn(f"{error}; training goes on, and {then}")


def draw(trainer: Trainer) -> None:
    """The picture of this step, unless a stop is wanted before it is done."""
    with contextlib.suppress(Stopped):
        trainer.draw_samples(trainer.run_dir / "samples" / f"step-{trainer.step:08d}.png", ("energy",))


def recover(trainer: Trainer, event: Divergence) -> None:
    """Return to the newest checkpoint, halve the learning rate and redraw a share of the chains. The checkpoint is not
    changed, so a killed run meets the same event again. Raises DivergedError after max_divergences such events."""
    at, guard, most = trainer.step, trainer.guard, trainer.config.max_divergences
    if guard.count >= most:
        path = trainer.ranks.from_first(lambda: latest_valid(trainer.run_dir, trainer.warn))
        trainer.metrics.add_event(at, at, str(event), rate_scale=None)
        with contextlib.suppress(RjemError):  # of two failures this one is to be known
            flush_metrics(trainer)
        raise DivergedError(
            f"training diverged at step {at} ({event}) after {most} times of going back; its newest checkpoint is "
            f"{path}; try a lower --lr{'' if trainer.config.max_grad_norm else ', or set --max-grad-norm'}"
        )
    count = guard.count + 1  # the checkpoint may be of before an earlier event
    go_back(trainer)
    guard.count = count
    if trainer.buffer is not None:
        trainer.buffer.redraw(trainer.config.redraw_share, trainer.generator(f"redraw {guard.count}"))
    trainer.metrics.forget_after(trainer.step, guard.count - 1, at_end=False)
    trainer.metrics.add_event(trainer.step, at, str(event), guard.rate_scale)
    write_metrics(trainer)
    trainer.warn(
        f"diverged at step {at}: {event}; back to step {trainer.step} with {guard.rate_scale:g} of the learning rate "
        f"({guard.count} of {most})"
    )


def go_back(trainer: Trainer) -> tuple[Path, list[dict[str, Any]]]:
    """Load the newest intact checkpoint, and set damaged ones aside. Returns its path and unwritten metric lines.
    Raises DataError if none is intact or the state does not fit the run."""
    ranks = trainer.ranks
    for path in reversed(ranks.from_first(lambda: checkpoints_in(trainer.run_dir))):
        try:
            tensors, unwritten = ranks.jointly(partial(read_intact, path))
        except (AbsentError, DataError) as error:
            trainer.warn(f"skipped: {error}")
            ranks.from_first(partial(set_aside, path, trainer.warn))
            continue
        ranks.jointly(partial(load_state, trainer, path, tensors))
        trainer.saved_step = trainer.step
        return path, unwritten
    raise no_valid_checkpoint(trainer.run_dir)


def load_state(trainer: Trainer, path: Path, tensors: dict[str, Tensor]) -> None:
    """Raises DataError for tensors of another run, or another step."""
    try:
        trainer.load_state(tensors)
    except (KeyError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0][:160]
        remedy = "resume with the settings it was trained with"
        raise DataError(f"the state of {path} does not fit this run ({reason}); {remedy}") from None
    if trainer.step != step_of(path):
        raise DataError(f"the state of {path} is of step {trainer.step}; remove it")


def save(trainer: Trainer) -> Path:
    """Write the checkpoint of this step, then drop old ones. Raises Divergence for a state that is not finite,
    RjemError for what cannot be written."""
    state = trainer.state()
    path = trainer.ranks.from_first(lambda: write(trainer, state))
    trainer.saved_step = trainer.step
    return path


def write(trainer: Trainer, state: dict[str, Tensor]) -> Path:
    config, model = trainer.config, trainer.sampling_model()
    for name, tensor in itertools.chain(state.items(), model.state_dict().items()):
        if not all_finite([tensor]):
            raise Divergence(f"{name} is not finite")
    path = path_of(trainer)
    val_accuracy = trainer.metrics.val_accuracy_at(trainer.step)
    info = trainer.info.at(trainer.step, trainer.images_seen, val_accuracy)
    save_pair(path, model, info, state, trainer.metrics.unwritten)
    drop_old(trainer.run_dir, path, config.keep_last, config.keep_best)
    return path


def save_last(trainer: Trainer) -> Path:
    """`save` where no other checkpoint comes after. Raises RjemError with what is lost."""
    try:
        return save(trainer)
    except RjemError as error:
        newest, _ = latest_described(trainer.run_dir)
        lost = RjemError(f"{error}; the newest checkpoint is that of step {step_of(newest)}" if newest else str(error))
        lost.told = error.told
        raise lost from None


def path_of(trainer: Trainer) -> Path:
    return checkpoint_path(trainer.run_dir, trainer.step)
