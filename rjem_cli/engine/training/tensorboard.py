"""A run's TensorBoard events: scalars of each line of metrics, histograms of energies, sample grids."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from rjem_cli.engine.callbacks import Log
from rjem_cli.engine.training.progress import TRAINING, TrainingProgress
from rjem_cli.errors import AbsentError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FOLDER = "tensorboard"  # of a run


class EventWriter:
    """Replaces what an earlier call wrote of later steps than the first one it is called with."""

    def __init__(self, run_dir: Path, first_step: int):
        from torch.utils.tensorboard import SummaryWriter

        self.run_dir, self.step = run_dir, first_step
        self.images = self.find_images()  # by earlier calls
        self.writer: SummaryWriter = SummaryWriter(str(run_dir / FOLDER), purge_step=first_step + 1)

    def find_images(self) -> set[tuple[Path, int]]:
        return {(path, path.stat().st_mtime_ns) for path in (self.run_dir / "samples").glob("*.png")}

    def write(self, progress: TrainingProgress) -> None:
        """Write a line of metrics, its energies, and the images drawn since the previous one. Raises OSError."""
        self.step = progress.step
        for name, value in (progress.metrics or {}).items():
            self.writer.add_scalar(f"training/{name}", value, self.step)
        for name, values in (progress.energies or {}).items():
            if values.isfinite().all():
                self.writer.add_histogram(f"energy/{name}", values.numpy(), self.step)
        self.write_images()

    def write_images(self) -> None:
        """samples/step-00000500.png as `samples` of step 500, samples/grid.png as `grid` of the current step."""
        images = self.find_images()
        for path, _ in sorted(images - self.images):
            name, _, number = path.stem.partition("-")
            with Image.open(path) as image:
                pixels = np.asarray(image.convert("RGB"))
            step = int(number) if number.isdecimal() else self.step
            self.writer.add_image("samples" if number else name, pixels, step, dataformats="HWC")
        self.images = images


@contextmanager
def event_writer(requested: bool, run_dir: Path, warn: Log) -> Iterator[Callable[[TrainingProgress], None]]:
    """A callback that writes events if they are `requested`, or if the run has some. Warns once if they can no longer
    be written. Raises AbsentError if they are requested and the package tensorboard is missing."""
    enabled = requested or (run_dir / FOLDER).is_dir()
    if enabled and importlib.util.find_spec("tensorboard") is None:
        missing = "--tensorboard needs the package tensorboard; install it: pip install tensorboard"
        if requested:
            raise AbsentError(missing)
        warn(f"this run no longer logs to TensorBoard: {missing}")
        enabled = False
    events: EventWriter | None = None

    def attempt(action: Callable[[], None]) -> None:
        nonlocal enabled
        try:
            action()
        except OSError as error:
            enabled = False
            warn(f"this run no longer logs to TensorBoard: {error.strerror or error}")

    def write(progress: TrainingProgress) -> None:
        nonlocal events
        events = events or EventWriter(run_dir, progress.step)  # now this process owns the run's folder
        if progress.metrics is not None:
            events.write(progress)

    try:
        yield lambda progress: attempt(lambda: write(progress)) if enabled and progress.phase == TRAINING else None
    finally:
        if events and enabled:
            attempt(events.write_images)
            attempt(events.writer.close)
