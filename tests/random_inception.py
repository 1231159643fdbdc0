"""InceptionV3 with random weights, made from torch-fidelity's own class: what can be had without a download."""

from __future__ import annotations

import io
from pathlib import Path

import torch

THEIR_NAMES = {  # rjem's name of a score: torch-fidelity's
    "isc_mean": "inception_score_mean",
    "isc_std": "inception_score_std",
    "fid": "frechet_inception_distance",
    "kid_mean": "kernel_inception_distance_mean",
    "kid_std": "kernel_inception_distance_std",
    "precision": "precision",
    "recall": "recall",
}


def write_random_inception(path: Path, seed: int = 0) -> Path:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Unloaded(FeatureExtractorInceptionV3):
        def load_state_dict(self, *arguments: object, **options: object) -> None:
            """Keep what the constructor drew."""

    torch.manual_seed(seed)
    nothing = io.BytesIO()
    torch.save({}, nothing)
    nothing.seek(0)
    network = Unloaded("inception-v3-compat", ["2048"], feature_extractor_weights_path=nothing)
    for module in network.modules():  # without this, features vanish on their way up
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.normal_(module.weight, std=0.02)
    torch.save(network.state_dict(), path)
    return path
