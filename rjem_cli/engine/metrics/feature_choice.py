"""Which network computes the features, and why: Inception where it makes sense and is available, else
EfficientNet-Lite0 or a judge."""

import contextlib
from pathlib import Path
from typing import NamedTuple

from rjem_cli.config.common import FEATURES
from rjem_cli.engine.accuracy import accuracy
from rjem_cli.engine.callbacks import OnProgress, noop
from rjem_cli.engine.data.collection import ImageCollection
from rjem_cli.engine.data.remote_file import fetch_file, is_present
from rjem_cli.engine.metrics import efficientnet, extractors
from rjem_cli.engine.metrics.extractors import Extractor, classifier_extractor
from rjem_cli.engine.metrics.judge import JUDGE_FEATURES, read_test_accuracy, train_judge
from rjem_cli.engine.metrics.reference import Reference
from rjem_cli.engine.models.checkpoint import load_checkpoint, read_info
from rjem_cli.engine.networks.build import feature_count
from rjem_cli.engine.runtime import Runtime
from rjem_cli.errors import AbsentError, ConfigError, DataError, RjemError, did_you_mean
from rjem_cli.paths import expand, offline, weights_dir

SMALLEST_SIDE = 32  # pixels; below, Inception sees mostly what the resize made


class FeatureChoice(NamedTuple):
    """`kind` is one of FEATURES except auto, or a path; `reason` says why it was chosen. `suffix` ends the names of
    scores, `dimensions` is the number of features, `image_shape` (C, H, W) the only shape that the network takes, or
    None. All are known before the network is downloaded or trained, so that impossible requests fail early."""

    kind: str
    reason: str
    suffix: str = ""
    dimensions: int = extractors.INCEPTION_FEATURES
    image_shape: tuple[int, int, int] | None = None

    @property
    def is_checkpoint(self) -> bool:
        return is_checkpoint(self.kind)

    @property
    def needs_download(self) -> bool:
        return self.kind == "dinov2" or (self.kind == "inception" and not has_inception())


def is_checkpoint(kind: str) -> bool:
    return expand(kind).suffix.lower() == ".safetensors"


def has_inception() -> bool:
    return is_present(extractors.INCEPTION, weights_dir())


def check_features(name: str) -> None:
    """Raises ConfigError for an unknown name, AbsentError for a missing file."""
    if name in FEATURES or expand(name).exists():
        return
    if "/" in name or Path(name).suffix:
        raise AbsentError(f"--features {name}: no such file")
    raise ConfigError(f"--features {name!r} is not a network or a file; {did_you_mean(name, FEATURES)}")


def feature_dimensions(name: str) -> int | None:
    """Of a network by name; None for `auto` and for files, whose networks are not known yet."""
    known = {"judge": JUDGE_FEATURES, "dinov2": extractors.DINOV2_FEATURES}
    known |= {"efficientnet-lite0": efficientnet.FEATURES, "inception": extractors.INCEPTION_FEATURES}
    return known.get(name)


def choose_features(name: str, reference: Reference) -> FeatureChoice:
    """Resolve `auto`. Raises ConfigError or DataError for a network that does not go with this reference."""
    images = reference.images
    if name != "auto":
        return describe_features(name, "as asked", reference)
    if reference.statistics is not None or images is None:
        return describe_features("inception", "auto: the reference is statistics", reference)
    channels, height, width = images.image_shape
    if min(height, width) < SMALLEST_SIDE or channels == 1:
        kind = "grey" if channels == 1 else "colour"
        reason = f"auto: Inception was not trained on {width}x{height} {kind} images"
        return describe_features("judge", reason, reference)
    if offline() and not has_inception():
        reason = f"auto: Inception's weights are not in {weights_dir()}, and RJEM_OFFLINE is set"
        if (replacement := find_replacement(reference)) is not None:
            return describe_features(replacement, reason, reference)
    return describe_features("inception", "auto: colour images", reference)


def find_replacement(reference: Reference) -> str | None:
    """The features to use without Inception: EfficientNet-Lite0, else a judge; None if neither is available."""
    if efficientnet.is_installed():
        return "efficientnet-lite0"
    return "judge" if reference.images is not None and reference.images.labels is not None else None


def describe_features(kind: str, reason: str, reference: Reference) -> FeatureChoice:
    """What is known of a network before it is loaded. Raises ConfigError or DataError if no judge can be trained."""
    if kind == "judge":
        if reference.images is None:
            raise ConfigError(f"--features judge is trained on images, but {reference.name} holds statistics")
        if reference.images.labels is None:
            raise DataError(f"{reference.name} has no classes to train a judge on; use class folders")
        return FeatureChoice(kind, reason, "_judge", JUDGE_FEATURES, reference.images.image_shape)
    if kind == "dinov2":
        return FeatureChoice(kind, reason, "_dinov2", extractors.DINOV2_FEATURES)
    if kind == "efficientnet-lite0":
        return FeatureChoice(kind, reason, "_efficientnet", efficientnet.FEATURES)
    if is_checkpoint(kind):
        info = read_info(expand(kind))
        return FeatureChoice(kind, reason, "_judge", feature_count(info.config), info.image_shape)
    return FeatureChoice(kind, reason, extractors.inception_suffix(read_weights(kind)) if kind != "inception" else "")


def read_weights(path: str) -> bytes:
    """Raises DataError for a file that cannot be read."""
    try:
        return expand(path).read_bytes()
    except OSError as error:
        raise DataError(f"cannot read --features {path}: {error.strerror or error}") from None


def check_fits(choice: FeatureChoice, samples: ImageCollection, reference: Reference) -> None:
    """Raises ConfigError for statistics of other features and for a judge that is the model under test, DataError for
    images of another size than the network takes."""
    for images in (samples, reference.images):
        if images is not None and choice.image_shape is not None and choice.image_shape[1:] != images.image_shape[1:]:
            (_, height, width), (_, own_height, own_width) = choice.image_shape, images.image_shape
            raise DataError(
                f"images of {images.name} are {own_width}x{own_height}, but the judge takes {width}x{height}"
            )
    if reference.statistics is not None and len(reference.statistics.mu) != choice.dimensions:
        count = len(reference.statistics.mu)
        raise ConfigError(f"{reference.name} has {count} features, but {choice.kind} has {choice.dimensions}")
    meta = samples.meta or {}
    if choice.is_checkpoint and meta.get("config_sha256") == read_info(expand(choice.kind)).config_sha256:
        raise ConfigError(f"--features {choice.kind} is from the run that made these samples; use another judge")


def check_same_features(reference: Reference, extractor: Extractor) -> None:
    """Raises DataError for statistics whose protocol names other features than the extractor's."""
    saved = reference.statistics.features if reference.statistics else {}
    for key in ("network", "weights_sha256", "resize"):
        if saved and saved.get(key) != extractor.identity[key]:
            raise DataError(
                f"{reference.name} has the {key} {saved.get(key)}, the samples' features have "
                f"{extractor.identity[key]}; give the same --features"
            )


def load_extractor(
    choice: FeatureChoice, reference: Reference, runtime: Runtime, on_progress: OnProgress = noop
) -> Extractor:
    """Download, load or train the network; `on_progress` may raise to stop. Raises AbsentError for weights that are not
    available, DataError for unusable ones."""
    device = runtime.device
    if choice.kind == "inception":
        weights = extractors.INCEPTION
        content = fetch_file(weights, weights_dir(), on_progress)
        return extractors.load_inception(content, weights.file_name, device)
    if choice.kind == "efficientnet-lite0":
        return extractors.load_efficientnet(device)
    if choice.kind == "dinov2":
        return extractors.load_dinov2(device)
    if choice.kind == "judge":
        assert reference.load_splits is not None
        judge = train_judge(reference.load_splits(), runtime, on_progress)
        return classifier_extractor(judge.checkpoint, judge.test_accuracy, is_judge=True)
    if choice.is_checkpoint:
        return load_checkpoint_extractor(expand(choice.kind), reference, runtime)
    return extractors.load_inception(read_weights(choice.kind), choice.kind, device)


def load_checkpoint_extractor(path: Path, reference: Reference, runtime: Runtime) -> Extractor:
    """A judge by its file, with the test accuracy measured when it was trained; or any classifier, tested on the
    reference's test split if that has the same classes."""
    checkpoint, test_accuracy = load_checkpoint(path, runtime.device), read_test_accuracy(path)
    if test_accuracy is not None:
        return classifier_extractor(checkpoint, test_accuracy, is_judge=True)
    with contextlib.suppress(RjemError):  # the reference's images may have no classes, or too few of them
        splits = None if reference.load_splits is None else reference.load_splits()
        info = checkpoint.info
        if splits and (splits.test.image_shape, splits.class_names) == (info.image_shape, info.class_names):
            test_accuracy = accuracy(runtime.frozen(checkpoint.model), splits.test, runtime.device).to_dict()
    return classifier_extractor(checkpoint, test_accuracy, is_judge=False)
