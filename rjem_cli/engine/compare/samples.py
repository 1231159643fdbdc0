"""The images of a comparison: cached samples of a checkpoint, recorded chains, and grids of a few images."""

import base64
import contextlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from rjem_cli.config.common import RuntimeOptions
from rjem_cli.config.sampling import GenerateConfig, LangevinConfig
from rjem_cli.config.scoring import CompareConfig
from rjem_cli.engine.compare.cache import CompareCallbacks, cache_path, load_or_measure
from rjem_cli.engine.compare.rows import ImageGrid, Protocol
from rjem_cli.engine.data.collection import ImageCollection, read_collection
from rjem_cli.engine.data.images import spread_indices
from rjem_cli.engine.inference import Model
from rjem_cli.engine.models.checkpoint import Checkpoint
from rjem_cli.engine.runtime import start_runtime
from rjem_cli.engine.sampling.chains import ChainPictures, render_chains, run_chains
from rjem_cli.engine.sampling.generate import SampleJob, SampleSetup
from rjem_cli.engine.sampling.writers import write_samples
from rjem_cli.errors import RjemError
from rjem_cli.files import locked

CHAINS, FRAMES = 8, 11  # of a figure
GRID_ROWS, GRID_COLUMNS = 8, 10
BLANK = 255  # fills the columns of classes with few images


class CheckpointSamples(NamedTuple):
    """Samples in an .npz file; their costs by column, and the protocols under which costs can be ranked."""

    file: Path
    costs: dict[str, float]
    protocols: dict[str, Protocol]


def sample_checkpoint(
    config: CompareConfig, checkpoint: Checkpoint, mode: str, callbacks: CompareCallbacks
) -> CheckpointSamples:
    """Draw samples unless they are cached. Waits while another process draws them. Raises as `rjem generate` does."""
    runtime = start_runtime(RuntimeOptions(device=config.device), reproducible=True)
    options = GenerateConfig(mode=mode, count=config.sample_count, seed=config.sample_seed, data=config.data)
    setup = SampleSetup.build(options, Model.from_checkpoint(checkpoint, runtime))
    job = setup.fit_memory(callbacks.warn).fit_parallel().load_start()
    timing = cache_path("samples", [job.meta["request"], config.sample_count])
    file, phase = timing.with_suffix(".npz"), f"drawing samples ({mode})"

    def measure() -> dict[str, Any]:
        return {"seconds_per_1000": draw_samples(job, file, phase, callbacks), "device": runtime.describe()}

    with locked(file.with_suffix(""), on_wait=lambda: callbacks.on_progress("waiting for another rjem compare", 0, 1)):
        if not holds_samples(file, job):
            timing.unlink(missing_ok=True)
        document = load_or_measure(timing, measure)
    costs = {"gradient_steps": float(job.request.plan.gradient_steps), "seconds_per_1000": document["seconds_per_1000"]}
    return CheckpointSamples(file, costs, {"seconds_per_1000": {"device": document["device"]}})


def draw_samples(job: SampleJob, file: Path, phase: str, callbacks: CompareCallbacks) -> float:
    """Write the samples. Returns seconds per 1000 samples. Raises Stopped."""
    start, total = time.perf_counter(), job.request.count

    def on_done(done: int) -> None:
        callbacks.on_progress(phase, done, total)

    options = GenerateConfig(output=str(file), overwrite=True)
    write_samples(job, options, callbacks.open_stdin, on_done, lambda: False)
    return 1000 * (time.perf_counter() - start) / total


def holds_samples(file: Path, job: SampleJob) -> bool:
    """Whether the file holds all samples of this job. Removes a damaged file."""
    with contextlib.suppress(RjemError):
        images = read_collection(str(file))
        if len(images) == job.request.count and (images.meta or {}).get("request") == job.meta["request"]:
            return True
    file.unlink(missing_ok=True)
    return False


def chain_figures(config: CompareConfig, name: str, path: Path, callbacks: CompareCallbacks) -> ChainPictures:
    """Pictures of a few chains as `rjem langevin` runs them. Raises as it does."""
    options = LangevinConfig(count=CHAINS, seed=config.sample_seed, data=config.data)
    job = SampleSetup.build(options, Model.load_checkpoint(path, RuntimeOptions(device=config.device))).load_start()

    def on_progress(done: int, total: int) -> None:
        callbacks.on_progress(f"{name}: chains", done, total)

    def measure() -> dict[str, str]:
        record = max(1, job.request.plan.sgld_steps // FRAMES)
        chains = run_chains(job, record=record, clamp=options.clamp, on_progress=on_progress)
        pictures = render_chains(chains, options.init)
        return {kind: base64.b64encode(picture).decode() for kind, picture in pictures._asdict().items()}

    document = load_or_measure(cache_path("chains", [job.meta["request"], CHAINS, FRAMES]), measure)
    return ChainPictures._make(base64.b64decode(document[kind]) for kind in ChainPictures._fields)


def image_grid(images: ImageCollection, class_names: Sequence[str] = ()) -> ImageGrid:
    """A few images, evenly spaced in the set. With two classes or more, each column holds one class (of many classes,
    some). `class_names` are the names of numeric labels."""
    rows_of_class: dict[str | int, list[int]] = {}
    numbers = images.class_indices(class_names)
    labels = (images.labels or ()) if numbers is None else tuple(class_names[number] for number in numbers.tolist())
    for index, label in enumerate(labels):
        rows_of_class.setdefault(label, []).append(index)
    if len(rows_of_class) < 2:
        count = min(GRID_ROWS * GRID_COLUMNS, len(images))
        pixels = images.pixels[spread_indices(len(images), count)]
        return ImageGrid(images.name, pixels, min(GRID_COLUMNS, count), len(images))
    names = sorted(rows_of_class)  # all str or all int
    classes = [names[index] for index in spread_indices(len(names), GRID_COLUMNS).tolist()]
    indices = [
        torch.tensor(rows_of_class[name])[spread_indices(len(rows_of_class[name]), GRID_ROWS)] for name in classes
    ]
    height = max(map(len, indices))
    pixels = torch.full((height, len(classes), *images.pixels.shape[1:]), BLANK, dtype=torch.uint8)
    for column, rows in enumerate(indices):
        pixels[: len(rows), column] = images.pixels[rows]
    return ImageGrid(images.name, pixels.flatten(0, 1), len(classes), len(images), tuple(map(str, classes)))
