"""Features of a set of images, computed once: kept chunk by chunk under a name made of the chunk's pixels and of the
network and the resize. An interrupted call loses at most a chunk, and no name can stand for other images."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rjem_cli.engine.batching import BatchSizer
from rjem_cli.engine.data.images import convert_channels
from rjem_cli.engine.metrics.extractors import Extractor, FeaturePair
from rjem_cli.engine.models.tensor_file import read_tensors, write_tensors
from rjem_cli.errors import RjemError
from rjem_cli.paths import features_dir

CHUNK = 200  # images a file
VERSION = 3  # of the way features are computed and kept
PROBE = 3  # batches that a speed is measured on; the first ones are slow

Report = Callable[[int], None]  # how many images are done


@dataclass(frozen=True)
class Features:
    """features (N, D) and, of a classifier, logits (N, K); float32 on the host."""

    features: Tensor
    logits: Tensor | None

    def __len__(self) -> int:
        return len(self.features)


def chunk_path(extractor: Extractor, pixels: Tensor) -> Path:
    key = hashlib.sha256(json.dumps([VERSION, extractor.identity, list(pixels.shape)], sort_keys=True).encode())
    key.update(pixels.contiguous().numpy().data)
    return features_dir() / f"{key.hexdigest()[:40]}.safetensors"


def chunks_of(pixels: Tensor, extractor: Extractor, name: str) -> list[tuple[Path, Tensor]]:
    """(where its features are kept, pixels with the extractor's channels) of each chunk."""
    parts = convert_channels(pixels, extractor.channels, name).split(CHUNK)
    return [(chunk_path(extractor, part), part) for part in parts]


def kept(path: Path, shape: tuple[int, int]) -> FeaturePair | None:
    """None for a chunk that is not there, cannot be read or cannot be right: it is then computed again."""
    try:
        tensors, _ = read_tensors(path)
        features, logits = tensors["features"], tensors.get("logits")
    except (RjemError, KeyError):
        return None
    return (features, logits) if features.shape == shape and is_finite((features, logits)) else None


def is_finite(pair: FeaturePair) -> bool:
    return all(bool(part.isfinite().all()) for part in pair if part is not None)


def missing_images(chunks: list[tuple[Path, Tensor]]) -> int:
    """How many images have no features yet."""
    return sum(len(part) for path, part in chunks if not path.is_file())


def extract(
    chunks: list[tuple[Path, Tensor]],
    extractor: Extractor,
    device: torch.device,
    batches: BatchSizer,
    report: Report,
) -> Features:
    """Features of all chunks, from where they are kept or computed and then kept."""
    found: list[FeaturePair] = []
    done = 0

    def kept_or_computed(chunk: tuple[Path, Tensor]) -> FeaturePair:
        path, part = chunk
        pair = kept(path, (len(part), extractor.dimensions))
        if pair is None:
            pair = compute(part, extractor, device, batches, lambda count: report(done + count))
            if is_finite(pair):
                keep(path, pair)
        return pair

    for (_, part), pair in zip(chunks, map(kept_or_computed, chunks)):
        found.append(pair)
        done += len(part)
        report(done)
    logits = [logits for _, logits in found if logits is not None]
    return Features(torch.cat([features for features, _ in found]), torch.cat(logits) if logits else None)


def compute(
    part: Tensor, extractor: Extractor, device: torch.device, batches: BatchSizer, report: Report
) -> FeaturePair:
    found: list[FeaturePair] = []
    done = 0
    with torch.inference_mode():
        for batch in part.to(device, non_blocking=True).split(batches.batch_size):
            found.append(batches.run(extractor.compute, batch))
            done += len(batch)
            report(done)
    features = torch.cat([features for features, _ in found]).float().cpu()
    logits = [logits for _, logits in found if logits is not None]
    return features, torch.cat(logits).float().cpu() if logits else None


def keep(path: Path, pair: FeaturePair) -> None:
    """A place that cannot be written, or is full, keeps nothing, and the call goes on."""
    features, logits = pair
    tensors = {"features": features} | ({} if logits is None else {"logits": logits})
    try:
        write_tensors(path, tensors, {"format": "rjem-features"})
    except RjemError:
        return


def images_per_second(
    pixels: Tensor, extractor: Extractor, device: torch.device, batches: BatchSizer, report: Report
) -> float:
    """Measured on the first images, the fastest batch; what a call will take is told before it begins."""
    fastest = math.inf
    first = convert_channels(pixels[: PROBE * CHUNK], extractor.channels, "images").split(
        min(batches.batch_size, CHUNK)
    )
    for part in first[:PROBE]:
        started = time.perf_counter()
        compute(part, extractor, device, batches, report)
        fastest = min(fastest, (time.perf_counter() - started) / len(part))
    return 1 / fastest
