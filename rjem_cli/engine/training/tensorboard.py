"""A run for TensorBoard: scalars of each line of metrics, histograms of energies, pictures of samples."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from rjem_cli.engine.training.progress import TrainingProgress
from rjem_cli.errors import AbsentError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FOLDER = "tensorboard"  # of a run


@dataclass
class EventFile:
    """In the folder of a run, in place of what an earlier call wrote of steps after `begin`. It opens once it hears of
    progress, when the run's folder is this process's, and ends where it cannot be written: that is no reason to lose
    the run."""

    run_dir: Path
    begin: int
    say: Callable[[str], None]
    writer: SummaryWriter | None = None
    shown: set[tuple[Path, int]] = field(default_factory=set)
    step: int = 0
    lost: bool = False

    def __call__(self, progress: TrainingProgress) -> None:
        """Write what a line of metrics comes with, and the pictures that are new since then."""
        if progress.metrics is None:
            return
        self.step = progress.step
        self.attempt(lambda: self.add(progress))

    def close(self) -> None:
        self.attempt(self.add_pictures)
        if self.writer is not None:
            self.attempt(self.writer.close)

    def attempt(self, write: Callable[[], None]) -> None:
        if self.lost:
            return
        try:
            write()
        except OSError as error:
            self.lost = True
            self.say(f"nothing more is written for TensorBoard: {error.strerror or error}")

    def opened(self) -> SummaryWriter:
        from torch.utils.tensorboard import SummaryWriter

        if self.writer is None:
            self.shown = {(path, path.stat().st_mtime_ns) for path in self.pictures()}  # by earlier calls
            self.writer = SummaryWriter(str(self.run_dir / FOLDER), purge_step=self.begin + 1)
        return self.writer

    def add(self, progress: TrainingProgress) -> None:
        writer = self.opened()
        for name, value in (progress.metrics or {}).items():
            writer.add_scalar(f"training/{name}", value, progress.step)
        for kind, energy_B in (progress.energies or {}).items():
            if energy_B.isfinite().all():
                writer.add_histogram(f"energy/{kind}", energy_B.numpy(), progress.step)
        self.add_pictures()

    def add_pictures(self) -> None:
        """samples/step-00000500.png as `samples`, samples/grid.png as `grid`."""
        for path in self.pictures():
            if (version := (path, path.stat().st_mtime_ns)) in self.shown:
                continue
            self.shown.add(version)
            name, _, number = path.stem.partition("-")
            with Image.open(path) as picture:
                pixels = np.asarray(picture.convert("RGB"))
            step = int(number) if number.isdecimal() else self.step
            self.opened().add_image("samples" if number else name, pixels, step, dataformats="HWC")

    def pictures(self) -> list[Path]:
        return sorted((self.run_dir / "samples").glob("*.png"))


def is_wanted(asked: bool, run_dir: Path, say: Callable[[str], None]) -> bool:
    """Whether events are written: where it is asked for, and into a run that has some. Raises AbsentError where they
    are asked for without the package tensorboard; of others `say` hears."""
    if not (asked or (run_dir / FOLDER).is_dir()):
        return False
    if importlib.util.find_spec("tensorboard") is not None:
        return True
    missing = "needs the package tensorboard; install it: pip install tensorboard"
    if asked:
        raise AbsentError(f"--tensorboard {missing}")
    say(f"nothing more is written into {run_dir / FOLDER}, which {missing}")
    return False


@contextmanager
def event_file(run_dir: Path, begin: int, say: Callable[[str], None]) -> Iterator[EventFile]:
    """`say` hears where it can no longer be written."""
    events = EventFile(run_dir, begin, say)
    try:
        yield events
    finally:
        events.close()
