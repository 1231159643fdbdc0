"""Whose features: Inception's where they make sense and can be had, else a judge's; always with the reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from rjem_cli.engine.data.collection import ImageCollection
from rjem_cli.engine.data.images import Splits
from rjem_cli.engine.evaluation.accuracy import accuracy
from rjem_cli.engine.model.checkpoint import load_checkpoint, read_info
from rjem_cli.engine.model.frozen import freeze
from rjem_cli.engine.model.wide_resnet import feature_count
from rjem_cli.engine.quality.extractors import (
    DINOV2_FEATURES,
    INCEPTION_FEATURES,
    Extractor,
    dinov2,
    inception,
    judge_extractor,
)
from rjem_cli.engine.quality.judge import JUDGE_FEATURES, train_judge, trained_before
from rjem_cli.engine.quality.reference import Reference
from rjem_cli.engine.quality.weights import INCEPTION, in_cache, published_weights, read_weights
from rjem_cli.engine.runtime import Runtime
from rjem_cli.errors import AbsentError, ConfigError, DataError, did_you_mean
from rjem_cli.paths import expand, offline, weights_dir

NAMED = ("auto", "inception", "dinov2", "judge")
SMALLEST_SIDE = 32  # pixels; below, Inception sees mostly what the resize made


class Choice(NamedTuple):
    """`kind` is one of NAMED but auto, or a path. `suffix` ends the names of scores, `dimensions` is the features'
    number: known before the network is there, so that too few images are refused before it is fetched or trained."""

    kind: str
    reason: str
    suffix: str = ""
    dimensions: int = INCEPTION_FEATURES


def choose(asked: str, reference: Reference) -> Choice:
    """Raises ConfigError for an unknown name, AbsentError for a path that is not there."""
    if asked != "auto":
        if asked not in NAMED and not expand(asked).exists():
            hint = "" if "/" in asked else f"; {did_you_mean(asked, NAMED)}"
            raise (AbsentError if "/" in asked else ConfigError)(f"--features {asked} is no network and no file{hint}")
        return described(asked, "as asked")
    if reference.statistics is not None:
        return Choice("inception", "auto: the reference is statistics")
    assert reference.images is not None
    channels, height, width = reference.images.image_shape
    if min(height, width) < SMALLEST_SIDE or channels == 1:
        kind = "grey" if channels == 1 else "coloured"
        return described("judge", f"auto: Inception was made for photographs, not for {width}x{height} {kind} images")
    if offline() and not in_cache(INCEPTION):
        return described("judge", f"auto: Inception's weights are not in {weights_dir()}, and RJEM_OFFLINE is set")
    return Choice("inception", "auto: coloured images")


def described(kind: str, reason: str) -> Choice:
    if kind == "judge":
        return Choice(kind, reason, "_judge", JUDGE_FEATURES)
    if kind == "dinov2":
        return Choice(kind, reason, "_dinov2", DINOV2_FEATURES)
    if is_judge_file(kind):
        return Choice(kind, reason, "_judge", feature_count(read_info(expand(kind)).config))
    return Choice(kind, reason)


def is_judge_file(kind: str) -> bool:
    return expand(kind).suffix.lower() == ".safetensors"


Watch = Callable[[str, int, int], None]  # phase, done, total


def build(
    choice: Choice, reference: Reference, runtime: Runtime, watch: Watch, should_stop: Callable[[], bool]
) -> Extractor | None:
    """Fetch, load or train the network. None if `should_stop` became true. Raises AbsentError for weights that cannot
    be had, DataError for some that cannot be used."""
    device = runtime.device
    if choice.kind == "inception":
        content = published_weights(INCEPTION, lambda done, total: watch("fetching weights", done, total))
        return inception(content, INCEPTION.file_name, device)
    if choice.kind == "dinov2":
        return dinov2(device)
    if choice.kind == "judge":
        return judge(reference, runtime, watch, should_stop)
    if is_judge_file(choice.kind):
        return own_judge(expand(choice.kind), reference, runtime)
    return inception(read_weights(choice.kind), choice.kind, device)


def judge(reference: Reference, runtime: Runtime, watch: Watch, should_stop: Callable[[], bool]) -> Extractor | None:
    splits = splits_for_judge(reference)
    found = trained_before(splits, runtime.device) or train_judge(
        splits, runtime, lambda progress: watch("training the judge", progress.step, progress.steps), should_stop
    )
    return None if found is None else judge_extractor(found.checkpoint, found.test_accuracy)


def splits_for_judge(reference: Reference) -> Splits:
    if reference.splits is None:
        raise ConfigError(f"--features judge needs images to be trained on, and {reference.name} is statistics")
    return reference.splits()


def own_judge(path: Path, reference: Reference, runtime: Runtime) -> Extractor:
    """A classifier of the user's, tested on the reference's test split where there is one."""
    checkpoint = load_checkpoint(path, runtime.device)
    tested: dict[str, Any] | None = None
    try:
        test = splits_for_judge(reference).test
    except (ConfigError, DataError):
        test = None
    if (
        test is not None
        and test.image_shape == checkpoint.info.image_shape
        and test.class_names == checkpoint.info.class_names
    ):
        tested = accuracy(runtime.logits(freeze(checkpoint.model)), test, torch.device(runtime.device)).to_dict()
    return judge_extractor(checkpoint, tested)


def check_fits(extractor: Extractor, choice: Choice, samples: ImageCollection, reference: Reference) -> None:
    """Raises ConfigError for statistics of other features and for a judge that is the model under test, DataError for
    images of another size than the network takes."""
    for images in (samples, reference.images):
        if images is not None and extractor.side not in (None, images.image_shape[1:]):
            (height, width), (own_height, own_width) = extractor.side, images.image_shape[1:]  # type: ignore[misc]
            raise DataError(
                f"images of {images.name} are {own_width}x{own_height}, the judge takes {width}x{height}; give others"
            )
    if reference.statistics is not None and len(reference.statistics.mu) != extractor.dimensions:
        raise ConfigError(
            f"{reference.name} has {len(reference.statistics.mu)} features, {choice.kind} gives {extractor.dimensions}"
        )
    if (samples.meta or {}).get("checkpoint_sha256") == extractor.identity["weights_sha256"]:
        raise ConfigError(f"--features {choice.kind} made these samples; a judge must be another model")
