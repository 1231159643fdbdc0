"""Features of images, cached in chunks under a digest of the pixels, the network and the resize.

An interrupted call loses at most one chunk, and a cached file can never be used for other images.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from rjem_cli.engine.batching import BatchSizer, concatenate
from rjem_cli.engine.callbacks import noop
from rjem_cli.engine.data.images import convert_channels
from rjem_cli.engine.kernels import Kernels
from rjem_cli.engine.metrics.extractors import Extractor, Features
from rjem_cli.engine.models.tensor_file import read_tensors, write_tensors
from rjem_cli.errors import RjemError
from rjem_cli.paths import features_dir

CHUNK = 200  # images per file
VERSION = 3  # of how features are computed and cached

Chunk = tuple[Path, Tensor]  # where its features are cached, and its pixels with the extractor's channels


def split_chunks(pixels: Tensor, extractor: Extractor, name: str) -> list[Chunk]:
    """Raises DataError for colour images if the extractor takes grey ones."""
    parts = convert_channels(pixels, extractor.channels, name).split(CHUNK)
    return [(cache_path(extractor, part), part) for part in parts]


def cache_path(extractor: Extractor, pixels: Tensor) -> Path:
    key = hashlib.sha256(json.dumps([VERSION, extractor.identity, list(pixels.shape)], sort_keys=True).encode())
    key.update(pixels.contiguous().numpy().data)
    return features_dir() / f"{key.hexdigest()[:40]}.safetensors"


def count_missing(chunks: Sequence[Chunk]) -> int:
    """How many images have no cached features."""
    return sum(len(part) for path, part in chunks if not path.is_file())


def load_features(
    chunks: Sequence[Chunk],
    extractor: Extractor,
    device: torch.device,
    batches: BatchSizer,
    on_progress: Callable[[int], None] = noop,
) -> Features:
    """Features of all chunks, cached or computed, on the host. `on_progress` gets the number of images done, and may
    raise."""
    parts: list[Features] = []
    done = 0
    for path, pixels in chunks:
        features = read_cache(path, (len(pixels), extractor.dimensions))
        if features is None:
            batch_parts: list[Features] = []
            for batch in pixels.split(batches.batch_size):
                batch_parts.append(compute_features(batch, extractor, device, batches))
                done += len(batch)
                on_progress(done)
            features = concatenate(batch_parts)
            write_cache(path, features)
        else:
            done += len(pixels)
            on_progress(done)
        parts.append(features)
    return concatenate(parts)


@torch.inference_mode()
def compute_features(pixels: Tensor, extractor: Extractor, device: torch.device, batches: BatchSizer) -> Features:
    """float32 on the host."""
    with Kernels().active():
        features, logits = batches.run(extractor.compute, pixels.to(device, non_blocking=True))
    return Features(features.float().cpu(), None if logits is None else logits.float().cpu())


def read_cache(path: Path, shape: tuple[int, int]) -> Features | None:
    """None for a chunk that is missing or invalid, which is then computed again."""
    with contextlib.suppress(RjemError, KeyError):
        tensors, _ = read_tensors(path)
        features = Features(tensors["features"], tensors.get("logits"))
        return features if features.features.shape == shape and is_finite(features) else None
    return None


def write_cache(path: Path, features: Features) -> None:
    """Values that are not finite are not cached. A folder that cannot be written, or is full, is no error."""
    if is_finite(features):
        tensors = {name: part for name, part in features._asdict().items() if part is not None}
        with contextlib.suppress(RjemError):
            write_tensors(path, tensors, {"format": "rjem-features"})


def is_finite(features: Features) -> bool:
    return all(bool(part.isfinite().all()) for part in features if part is not None)
