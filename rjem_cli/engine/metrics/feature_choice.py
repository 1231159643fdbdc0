"""Whose features: Inception's where they make sense and can be had, else a judge's; always with the reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from rjem_cli.config import FEATURES
from rjem_cli.engine.callbacks import OnProgress
from rjem_cli.engine.data.collection import ImageCollection
from rjem_cli.engine.data.downloads import fetch_file, is_present
from rjem_cli.engine.data.images import Splits
from rjem_cli.engine.metrics.accuracy import accuracy
from rjem_cli.engine.metrics.extractors import (
    DINOV2_FEATURES,
    INCEPTION_FEATURES,
    Extractor,
    dinov2,
    inception,
    judge_extractor,
)
from rjem_cli.engine.metrics.judge import JUDGE_FEATURES, noted_accuracy, train_judge
from rjem_cli.engine.metrics.reference import Reference
from rjem_cli.engine.metrics.weights import INCEPTION, read_weights
from rjem_cli.engine.models.checkpoint import load_checkpoint, read_info
from rjem_cli.engine.models.wide_resnet import feature_count
from rjem_cli.engine.runtime import Runtime
from rjem_cli.engine.sampling.request import json_digest
from rjem_cli.engine.training.progress import TrainingCallbacks
from rjem_cli.errors import AbsentError, ConfigError, DataError, RjemError, did_you_mean
from rjem_cli.paths import expand, offline, weights_dir

SMALLEST_SIDE = 32  # pixels; below, Inception sees mostly what the resize made


class FeatureChoice(NamedTuple):
    """`kind` is one of FEATURES but auto, or a path. `suffix` ends the names of scores, `dimensions` is the features'
    number, `image_shape` (C, H, W) that of the only images the network takes: all known before the network is there,
    so that what cannot be is refused before it is fetched or trained."""

    kind: str
    reason: str
    suffix: str = ""
    dimensions: int = INCEPTION_FEATURES
    image_shape: tuple[int, int, int] | None = None

    @property
    def is_judge(self) -> bool:
        return self.suffix == "_judge"


def check_features(asked: str) -> None:
    """Before anything is read. Raises ConfigError for an unknown name, AbsentError for a path that is not there."""
    if asked in FEATURES or expand(asked).exists():
        return
    is_path = "/" in asked or Path(asked).suffix
    hint = "" if is_path else f"; {did_you_mean(asked, FEATURES)}"
    raise (AbsentError if is_path else ConfigError)(f"--features {asked} is no network and no file{hint}")


def choose(asked: str, reference: Reference) -> FeatureChoice:
    """Raises ConfigError or DataError for a network that this reference cannot go with."""
    if asked != "auto":
        return described(asked, "as asked", reference)
    if reference.statistics is not None:
        return described("inception", "auto: the reference is statistics", reference)
    assert reference.images is not None
    channels, height, width = reference.images.image_shape
    if min(height, width) < SMALLEST_SIDE or channels == 1:
        kind = "grey" if channels == 1 else "coloured"
        why = f"auto: Inception was made for photographs, not for {width}x{height} {kind} images"
        return described("judge", why, reference)
    if offline() and not is_present(INCEPTION, weights_dir()) and reference.images.labels is not None:
        why = f"auto: Inception's weights are not in {weights_dir()}, and RJEM_OFFLINE is set"
        return described("judge", why, reference)
    return described("inception", "auto: coloured images", reference)


def described(kind: str, reason: str, reference: Reference) -> FeatureChoice:
    if kind == "judge":
        if reference.images is None:
            raise ConfigError(f"--features judge needs images to be trained on, and {reference.name} is statistics")
        if reference.images.labels is None:
            raise DataError(f"{reference.name} has no classes that a judge could learn; give class folders")
        return FeatureChoice(kind, reason, "_judge", JUDGE_FEATURES, reference.images.image_shape)
    if kind == "dinov2":
        return FeatureChoice(kind, reason, "_dinov2", DINOV2_FEATURES)
    if is_judge_file(kind):
        info = read_info(expand(kind))
        return FeatureChoice(kind, reason, "_judge", feature_count(info.config), info.image_shape)
    return FeatureChoice(kind, reason)


def is_judge_file(kind: str) -> bool:
    return expand(kind).suffix.lower() == ".safetensors"


def check_fits(choice: FeatureChoice, samples: ImageCollection, reference: Reference) -> None:
    """Raises ConfigError for statistics of other features and for a judge that is the model under test, DataError for
    images of another size than the network takes."""
    for images in (samples, reference.images):
        if images is not None and choice.image_shape is not None and choice.image_shape[1:] != images.image_shape[1:]:
            (_, height, width), (_, own_height, own_width) = choice.image_shape, images.image_shape
            raise DataError(
                f"images of {images.name} are {own_width}x{own_height}, the judge takes {width}x{height}; give others"
            )
    if reference.statistics is not None and len(reference.statistics.mu) != choice.dimensions:
        raise ConfigError(
            f"{reference.name} has {len(reference.statistics.mu)} features, {choice.kind} gives {choice.dimensions}"
        )
    if is_judge_file(choice.kind) and made_by(samples.meta or {}, expand(choice.kind)):
        raise ConfigError(f"--features {choice.kind} made these samples, or is of their run; take another judge")


def made_by(meta: dict[str, Any], path: Path) -> bool:
    """Whether rjem's protocol of samples names a checkpoint of the same run."""
    return meta.get("config_sha256") == json_digest(read_info(path).config.to_dict())


def build(
    choice: FeatureChoice,
    reference: Reference,
    runtime: Runtime,
    watch: OnProgress,
    train_watch: OnProgress,
    stop: Callable[[], bool],
) -> Extractor | None:
    """Fetch, load or train the network. None if `stop` became true while a judge was trained. Raises AbsentError for
    weights that cannot be had, DataError for some that cannot be used."""
    device = runtime.device
    if choice.kind == "inception":
        content = fetch_file(
            INCEPTION, weights_dir(), lambda phase, done, total: watch("fetching weights", done, total)
        )
        return inception(content, INCEPTION.file_name, device)
    if choice.kind == "dinov2":
        return dinov2(device)
    if choice.kind == "judge":
        assert reference.splits is not None
        callbacks = TrainingCallbacks(
            on_progress=lambda progress: train_watch("training the judge", progress.step, progress.steps),
            should_stop=stop,
        )
        found = train_judge(
            reference.splits(),
            runtime,
            callbacks,
            lambda: watch("waiting for another process, which trains this judge", 0, 1),
        )
        return None if found is None else judge_extractor(found.checkpoint, found.test_accuracy, ours=True)
    if is_judge_file(choice.kind):
        return own_judge(expand(choice.kind), reference, runtime)
    return inception(read_weights(choice.kind), choice.kind, device)


def own_judge(path: Path, reference: Reference, runtime: Runtime) -> Extractor:
    """A classifier of the user's, or a judge of rjem's by its file: with the accuracy that was measured when it was
    trained, else tested on the reference's test split where there is one."""
    checkpoint = load_checkpoint(path, runtime.device)
    info, tested = checkpoint.info, noted_accuracy(path)
    if tested is not None:
        return judge_extractor(checkpoint, tested, ours=True)
    test = test_split(reference)
    if test is not None and (test.test.image_shape, test.class_names) == (info.image_shape, info.class_names):
        tested = accuracy(runtime.frozen(checkpoint.model), test.test, runtime.device).to_dict()
    return judge_extractor(checkpoint, tested, ours=False)


def test_split(reference: Reference) -> Splits | None:
    """None where the reference's images have no classes, or too few of them."""
    try:
        return None if reference.splits is None else reference.splits()
    except RjemError:
        return None
