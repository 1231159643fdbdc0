"""InceptionV3 with random weights, built from torch-fidelity's own class, without a download."""

from __future__ import annotations

import io
from pathlib import Path

import torch

THEIR_NAMES = {  # rjem's name of a score with these weights: torch-fidelity's
    "is_custom": "inception_score_mean",
    "is_custom_std": "inception_score_std",
    "fd_custom": "frechet_inception_distance",
    "kd_custom_mean": "kernel_inception_distance_mean",
    "kd_custom_std": "kernel_inception_distance_std",
    "precision_custom": "precision",
    "recall_custom": "recall",
}


def write_random_inception(path: Path, seed: int = 0) -> Path:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Unloaded(FeatureExtractorInceptionV3):
        def load_state_dict(self, *arguments: object, **options: object) -> None:
            """Keep the constructor's random weights."""

    torch.manual_seed(seed)
    nothing = io.BytesIO()
    torch.save({}, nothing)
    nothing.seek(0)
    network = Unloaded("inception-v3-compat", ["2048"], feature_extractor_weights_path=nothing)
    for module in network.modules():  # without this, features vanish with depth
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.normal_(module.weight, std=0.02)
    torch.save(network.state_dict(), path)
    return path
