"""Writes the checkpoints of a run in its main process, one at a time. On a GPU, training continues meanwhile."""

import time
from concurrent.futures import Future, ThreadPoolExecutor

from rjem_cli.engine.training import checkpointing
from rjem_cli.engine.training.checkpointing import Snapshot
from rjem_cli.engine.training.progress import TrainingCallbacks
from rjem_cli.engine.training.trainer import Trainer
from rjem_cli.errors import PeerLostError, RjemError
from rjem_cli.paths import checkpoint_path, checkpoints_in, parse_step


class CheckpointWriter:
    """`saved_step`: the step of the newest checkpoint on disk; None if none has the run's present options. All
    processes of a run call the same methods in the same order."""

    def __init__(self, trainer: Trainer, callbacks: TrainingCallbacks):
        self.run_dir, self.config, self.distributed = trainer.run_dir, trainer.config, trainer.distributed
        self.callbacks = callbacks
        self.saved_step: int | None = None
        self.in_background = trainer.runtime.device.type != "cpu"  # on a CPU it would slow the next steps
        self.thread = ThreadPoolExecutor(1)
        self.writing: tuple[int, Future[None] | None] | None = None  # its step; in the main process, the future

    def start(self, snapshot: Snapshot, last: bool) -> None:
        """Write a checkpoint, then remove old ones. If it is the `last` chance, it is written before this returns, and
        a failure raises RjemError; else a failure is a warning, and training continues."""
        self.wait()
        step, is_main = snapshot.info.step, self.distributed.is_main
        if self.in_background and not last:
            self.writing = step, self.thread.submit(self.write, snapshot.copy()) if is_main else None
            return
        error = None
        try:
            if is_main:
                self.write(snapshot)
        except RjemError as failure:
            error = failure
        self.finish(step, error, last)

    def write(self, snapshot: Snapshot) -> None:
        """Raises RjemError."""
        path, started = checkpoint_path(self.run_dir, snapshot.info.step), time.perf_counter()
        snapshot.write(path)
        checkpointing.remove_others(self.run_dir, path, self.config, self.callbacks.warn)
        self.callbacks.on_save(time.perf_counter() - started)

    def wait(self) -> None:
        """Until no checkpoint is being written."""
        if self.writing is None:
            return
        (step, future), self.writing = self.writing, None
        error = future.exception() if future else None
        if isinstance(error, RjemError | None):
            self.finish(step, error, last=False)
        else:
            raise error

    def finish(self, step: int, error: RjemError | None, last: bool) -> None:
        """Tell all processes whether the checkpoint of `step` was written."""
        if not self.distributed.any(error is not None):
            self.saved_step = step
        elif error and last:
            if newest := checkpoints_in(self.run_dir):
                raise RjemError(f"{error}; the newest checkpoint is that of step {parse_step(newest[-1])}")
            raise error
        elif last:
            raise PeerLostError("the main process cannot write its checkpoint")
        elif error:
            self.callbacks.warn(f"{error}; training continues, and saves again at the next checkpoint")

    def close(self) -> None:
        """Wait, also if training ended with an error. A failure is then a warning."""
        self.thread.shutdown()
        if self.writing and (future := self.writing[1]) and (error := future.exception()):
            self.callbacks.warn(str(error))
