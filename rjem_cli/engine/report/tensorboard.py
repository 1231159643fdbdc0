"""A run for TensorBoard: scalars of each line of metrics, histograms of energies, pictures of samples."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from rjem_cli.engine.training.progress import Progress
from rjem_cli.errors import AbsentError
from rjem_cli.files import explained, make_dir

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FOLDER = "tensorboard"  # of a run


@contextmanager
def event_file(run_dir: Path, step: int) -> Iterator[Callable[[Progress], None]]:
    """What writes down the progress that it hears of, in the run's folder, in place of what an earlier call wrote of
    steps after `step`. Raises AbsentError without the package tensorboard."""
    if importlib.util.find_spec("tensorboard") is None:
        raise AbsentError("--tensorboard needs the package tensorboard; install it: pip install tensorboard")
    with ExitStack() as held:
        writers: list[SummaryWriter] = []

        def write(progress: Progress) -> None:
            if not writers:  # the run's folder is this process's once it speaks of progress
                writers.append(open_writer(run_dir / FOLDER, step))
                held.callback(writers[0].close)
            add(writers[0], progress)

        yield write


def open_writer(folder: Path, step: int) -> SummaryWriter:
    from torch.utils.tensorboard import SummaryWriter

    with explained("write to", folder):
        return SummaryWriter(str(make_dir(folder)), purge_step=step + 1)


def add(writer: SummaryWriter, progress: Progress) -> None:
    if progress.metrics:
        for name, value in progress.metrics.items():
            writer.add_scalar(f"training/{name}", value, progress.step)
        for kind, energy_B in (progress.energies or {}).items():
            if energy_B.isfinite().all():
                writer.add_histogram(f"energy/{kind}", energy_B.numpy(), progress.step)
    if progress.picture:
        with Image.open(progress.picture) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        writer.add_image(progress.picture.stem.partition("-")[0], pixels, progress.step, dataformats="HWC")
