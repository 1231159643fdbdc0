"""Make a run of a network of another project, and check that it was read as it was meant."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from rjem_cli.config.exchange import ImportConfig
from rjem_cli.config.training import TrainConfig
from rjem_cli.engine.accuracy import Accuracy, accuracy, evenly_spaced
from rjem_cli.engine.callbacks import Log, OnProgress, noop
from rjem_cli.engine.data.images import Splits, to_model
from rjem_cli.engine.data.load import load_splits
from rjem_cli.engine.exchange.layouts import CIFAR_MEAN, CIFAR_STD, DAT_MEAN, DAT_STD
from rjem_cli.engine.exchange.recognise import ForeignNetwork, recognise
from rjem_cli.engine.exchange.torch_file import open_torch_file
from rjem_cli.engine.gradients import LogitsFn
from rjem_cli.engine.models.checkpoint import CONFIG_FILE, IMPORTED_STEP, CheckpointInfo, checkpoint_tensors
from rjem_cli.engine.models.energy import energy
from rjem_cli.engine.models.prior import load_prior
from rjem_cli.engine.models.tensor_file import write_tensors
from rjem_cli.engine.networks.build import Network, build_model, place
from rjem_cli.engine.runtime import Runtime
from rjem_cli.engine.training.checkpointing import Snapshot
from rjem_cli.engine.training.optimizer import refresh_statistics
from rjem_cli.errors import ConfigError
from rjem_cli.files import file_sha256, make_dir, write_atomically, write_json
from rjem_cli.paths import checkpoint_path

UNUSED_FILE = "unused.safetensors"  # what the file has beside the network, for `rjem export`
RANGE_IMAGES = 200  # that decide whether another input range fits better
RANGE_MARGIN = 0.05  # of accuracy
Channels = tuple[float, ...]
# mean and standard deviation of images in [0, 1], by what is written about them
INPUT_RANGES: dict[str, tuple[Channels, Channels]] = {
    "[0, 1]": ((0.0,) * 3, (1.0,) * 3),
    "[-1, 1]": ((0.5,) * 3, (0.5,) * 3),
    "DAT's normalisation": (DAT_MEAN, DAT_STD),
    "MadryLab's normalisation": (CIFAR_MEAN, CIFAR_STD),
}


@dataclass(frozen=True)
class Check:
    """What the imported network does. Energies are means of E(x), with those of the `buffer` if the file has one.
    `ranges`: accuracy on RANGE_IMAGES images by input range, `own` with that of the import."""

    accuracy: Accuracy
    energy_data: float
    energy_buffer: float | None
    own: float
    ranges: dict[str, float]

    @property
    def better_range(self) -> str | None:
        """The input range in which the network is clearly better than as imported."""
        best = max(self.ranges, key=lambda name: self.ranges[name])
        return best if self.ranges[best] > self.own + RANGE_MARGIN else None


@dataclass(frozen=True)
class ImportedRun:
    """`before`: the accuracy before statistics were recomputed, if they were."""

    network: ForeignNetwork
    splits: Splits
    model: Network
    info: CheckpointInfo
    check: Check
    before: Accuracy | None = None


def read_network(path: Path, config: ImportConfig) -> ForeignNetwork:
    """Raises AbsentError or DataError."""
    with open_torch_file(path) as file:
        return recognise(file, config.layout)


def training_config(config: ImportConfig, network: ForeignNetwork) -> TrainConfig:
    """The options of rjem that fit the network. How it was trained is not known: those options are the defaults."""
    options = network.match.options.to_dict() | {
        "image_size": config.image_size,
        "val_fraction": 0.0,
        "steps": IMPORTED_STEP,
    }
    images = {"data": config.data} if config.data else {"dataset": config.dataset or TrainConfig.dataset}
    return TrainConfig.from_dict(options | images)


def import_network(
    path: Path,
    config: ImportConfig,
    network: ForeignNetwork,
    runtime: Runtime,
    log: Log = noop,
    on_progress: OnProgress = noop,
) -> ImportedRun:
    """Load the images, build the network and check it. Raises ConfigError for images of another kind."""
    train_config = training_config(config, network)
    splits = load_splits(train_config, on_progress, log)
    check_images(path, network, splits)
    if network.buffer is not None and network.buffer.shape[1:] != splits.train.pixels.shape[1:]:
        log(f"left out the replay buffer: its images are not those of {splits.name}")
        network = replace(network, buffer=None)
    model = build_model(train_config, network.match.channels, network.match.classes)
    model.load_state_dict(network.weights)
    model = place(model, runtime.device).eval()
    origin: dict[str, Any] = {"file": path.name, "sha256": file_sha256(path), "layout": network.match.layout.name}
    origin |= {"place": network.place, "doubled": network.doubled}
    info = replace(CheckpointInfo.from_splits(train_config, splits), step=IMPORTED_STEP, origin=origin)
    before = None
    if config.recompute_statistics:
        before = accuracy(runtime.frozen(model), evenly_spaced(splits.test, config.limit), runtime.device)
        with runtime.kernels.active():
            refresh_statistics(model, splits.train, 0.0, torch.Generator().manual_seed(0))
    return ImportedRun(network, splits, model, info, check_network(model, network, splits, config, runtime), before)


def check_images(path: Path, network: ForeignNetwork, splits: Splits) -> None:
    classes, channels = len(splits.class_names), splits.train.image_shape[0]
    expected = network.match
    if (classes, channels) != (expected.classes, expected.channels):
        raise ConfigError(
            f"{path} has {expected.classes} classes and {expected.channels} channels, {splits.name} has {classes} and "
            f"{channels}; give its data set with --dataset or --data"
        )


def check_network(
    model: Network, network: ForeignNetwork, splits: Splits, config: ImportConfig, runtime: Runtime
) -> Check:
    images, device = evenly_spaced(splits.test, config.limit), runtime.device
    frozen = runtime.frozen(model)
    few = evenly_spaced(splits.test, RANGE_IMAGES)
    ranges = {
        name: accuracy(
            with_range(frozen, model, *(values[: network.match.channels] for values in pair)), few, device
        ).value
        for name, pair in INPUT_RANGES.items()
    }
    buffer = None if network.buffer is None else mean_energy(frozen, network.buffer[: len(images)], device)
    data = mean_energy(frozen, to_model(images.pixels), device)
    own = accuracy(frozen, few, device).value
    return Check(accuracy(frozen, images, device), data, buffer, own, ranges)


def with_range(frozen: LogitsFn, model: nn.Module, mean: Channels, std: Channels) -> LogitsFn:
    """The network as if it took images in [0, 1], less a mean and over a deviation. `frozen` is `model`, frozen."""
    normalizer = getattr(model, "normalizer", None)

    def logits(x_BCHW: Tensor) -> Tensor:
        wanted = ((x_BCHW + 1) / 2 - x_BCHW.new_tensor(mean)[:, None, None]) / x_BCHW.new_tensor(std)[:, None, None]
        if normalizer is not None:  # which the network applies: undo it
            wanted = 2 * (wanted * normalizer.std[:, None, None] + normalizer.mean[:, None, None]) - 1
        return frozen(wanted)

    return logits


@torch.no_grad()
def mean_energy(logits_fn: LogitsFn, x_NCHW: Tensor, device: torch.device) -> float:
    return float(torch.cat([energy(logits_fn(x.to(device))).cpu() for x in x_NCHW.split(128)]).mean())


def write_run(run: ImportedRun, run_dir: Path, runtime: Runtime, log: Log = noop) -> Path:
    """The run's folder with its checkpoint, config.yaml and summary.json. Returns the checkpoint. Raises RjemError if
    something cannot be written, DataError for images without a prior."""
    prior = load_prior(run.splits.train, run.info.config.prior_variance, log)
    state = {"step": torch.tensor(IMPORTED_STEP)} | (
        {} if run.network.buffer is None else {"buffer": run.network.buffer}
    )
    make_dir(run_dir)
    (run_dir / UNUSED_FILE).unlink(missing_ok=True)  # of an import that failed
    if run.network.unused:
        write_tensors(run_dir / UNUSED_FILE, run.network.unused, {"origin": run.info.origin})
    config = yaml.safe_dump(run.info.config.to_dict(), sort_keys=False, allow_unicode=True)
    write_atomically(run_dir / CONFIG_FILE, config.encode())
    path = checkpoint_path(run_dir, IMPORTED_STEP)
    Snapshot(run.info, checkpoint_tensors(run.model, prior), state, runtime).write(path)
    write_json(run_dir / "summary.json", summarize(run, runtime))
    return path


def summarize(run: ImportedRun, runtime: Runtime) -> dict[str, Any]:
    splits, check = run.splits, run.check
    summary: dict[str, Any] = {"step": IMPORTED_STEP, "origin": run.info.origin, "device": runtime.describe()}
    measured = {**check.accuracy.to_dict(), "dataset": f"{splits.name}:test", "dataset_size": len(splits.test)}
    summary |= {"test_accuracy": measured, "energy_data": check.energy_data, "energy_buffer": check.energy_buffer}
    return summary | ({"test_accuracy_before": run.before.to_dict()} if run.before else {})
