"""The default start of chains: one Gaussian per class, fitted to the training images in [-1, 1] (JEM++'s informative
initialisation).

D = C*H*W is the length of an image, K the number of classes, and r_y the rank of the factor of class y. A checkpoint
contains its prior, so it can sample without the training images.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rjem_cli.engine.callbacks import Log, noop
from rjem_cli.engine.data.images import ImageSet, to_model
from rjem_cli.engine.models.tensor_file import read_tensors, write_tensors
from rjem_cli.errors import DataError, RjemError
from rjem_cli.files import json_digest, locked
from rjem_cli.paths import priors_dir

FORMAT = "rjem-prior-2"
PRIOR_PREFIX = "prior."  # of the tensors in a checkpoint
SLOW_DIMENSIONS = 1000  # components of an image, from which a fit takes more than a few seconds
JITTER = 1e-4  # added to the diagonal of the covariance, as in JEM++


@dataclass(frozen=True)
class ClassGaussianPrior:
    """x = mean_y + factor_y z, with z standard normal, for each class y. mean_KD: (K, D). factors: K tensors
    (D, r_y)."""

    mean_KD: Tensor
    factors: tuple[Tensor, ...]
    image_shape: tuple[int, int, int]

    @property
    def normals_per_sample(self) -> int:
        """How many standard normal numbers `sample` needs for each image."""
        return max(factor.shape[1] for factor in self.factors)

    def sample(self, labels_B: Tensor, normals_BN: Tensor, temperature: float = 1.0) -> Tensor:
        """Images (B, C, H, W), clamped to [-1, 1]; `temperature` scales z. One matrix product per class. No device sync
        if the labels are on the host."""
        flat_BD = self.mean_KD[labels_B.to(self.mean_KD.device, non_blocking=True)]
        for label in torch.unique(labels_B).tolist():
            rows = (labels_B == label).nonzero().squeeze(1).to(flat_BD.device, non_blocking=True)
            factor = self.factors[label]
            normals = normals_BN[rows, : factor.shape[1]]
            flat_BD[rows] += temperature * reproducible_matmul(normals, factor.T)
        return flat_BD.clamp_(-1, 1).view(-1, *self.image_shape)

    def to(self, device: torch.device) -> "ClassGaussianPrior":
        factors = tuple(factor.to(device) for factor in self.factors)
        return ClassGaussianPrior(self.mean_KD.to(device), factors, self.image_shape)

    def to_tensors(self) -> dict[str, Tensor]:
        """For a file. Factors are in half precision where that loses nothing."""
        tensors = {f"{PRIOR_PREFIX}factor.{label}": shrink(factor) for label, factor in enumerate(self.factors)}
        return {f"{PRIOR_PREFIX}mean": self.mean_KD, **tensors}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], image_shape: tuple[int, int, int]) -> "ClassGaussianPrior":
        """The inverse of `to_tensors`. Raises ValueError for tensors that it does not return."""
        parts = {name: tensor for name, tensor in tensors.items() if name.startswith(PRIOR_PREFIX)}
        count, dimensions = len(parts) - 1, math.prod(image_shape)
        names = [f"{PRIOR_PREFIX}factor.{label}" for label in range(count)]
        if parts.keys() != {f"{PRIOR_PREFIX}mean", *names}:
            raise ValueError(f"the prior has tensors {', '.join(sorted(parts))[:80]}")
        mean_KD, factors = parts[f"{PRIOR_PREFIX}mean"], [parts[name] for name in names]
        if mean_KD.shape != (count, dimensions) or any(
            factor.dim() != 2 or len(factor) != dimensions or not factor.shape[1] for factor in factors
        ):
            raise ValueError(f"the prior is not of images {image_shape}")
        if any(part.dtype not in (torch.float16, torch.float32) for part in parts.values()):
            raise ValueError("the prior is not in float16 or float32")
        if not all(part.isfinite().all() for part in parts.values()):
            raise ValueError("the prior is not finite")
        return cls(mean_KD.float(), tuple(factor.float() for factor in factors), image_shape)


def reproducible_matmul(a: Tensor, b: Tensor) -> Tensor:
    """a @ b, computed in float64 and rounded to float32. The order of the sums varies with the device, its threads and
    the number of rows, which the rounding hides in nearly all cases. Apple's GPUs have no float64."""
    return a @ b if a.device.type == "mps" else (a.double() @ b.double()).float()


def shrink(x: Tensor) -> Tensor:
    half = x.half()
    return half if torch.equal(half.float(), x) else x


def fit_prior(images: ImageSet, variance: float = 1.0) -> ClassGaussianPrior:
    """Fit each class in float64; store float32. `variance` is the share of each class's variance that its factor keeps.
    Raises DataError for a class with fewer than two images."""
    means, factors = [], []
    for label, class_name in enumerate(images.class_names):
        members = to_model(images.pixels[images.labels == label]).flatten(1).double()
        if len(members) < 2:
            raise DataError(
                f"the prior needs two images per class; class {class_name!r} has {len(members)} for training; add "
                "images, remove its folder, or lower --val-fraction"
            )
        mean = members.mean(dim=0)
        means.append(mean.float())
        factors.append(fit_factor(members - mean, variance).contiguous())
    return ClassGaussianPrior(torch.stack(means), tuple(factors), images.image_shape)


def fit_factor(centred_ND: Tensor, variance: float) -> Tensor:
    """float32 (D, r). With `variance` 1 and enough images, the Cholesky factor of the covariance + JITTER * I, as in
    JEM++. Otherwise the leading principal components, scaled by their standard deviations and rounded to half
    precision; they leave out the JITTER, which would add noise in all directions that images do not have."""
    count, dimensions = centred_ND.shape
    scaled_ND = centred_ND / (count - 1) ** 0.5
    if variance == 1 and count >= dimensions:
        covariance = scaled_ND.T @ scaled_ND
        covariance.diagonal().add_(JITTER)
        factor: Tensor = torch.linalg.cholesky(covariance)
        return factor.float()
    if count >= dimensions:
        values, vectors = torch.linalg.eigh(scaled_ND.T @ scaled_ND)
        components = vectors * values.clamp_min(0).sqrt()
    else:  # the same components from the smaller matrix of inner products
        values, vectors = torch.linalg.eigh(scaled_ND @ scaled_ND.T)
        components = scaled_ND.T @ vectors
    values, components = values.clamp_min(0).flip(0), components.flip(1)
    kept = int((values.cumsum(0) < variance * (1 - 1e-12) * values.sum()).sum()) + 1
    components = components[:, : min(kept, len(values))]
    largest = components.gather(0, components.abs().argmax(dim=0, keepdim=True))
    signed: Tensor = components * torch.where(largest < 0, -1.0, 1.0)  # the sign of a component is arbitrary
    return signed.half().float()


def read_cached_prior(path: Path) -> ClassGaussianPrior | None:
    """The cached prior, or None if the file is missing or invalid."""
    try:
        tensors, description = read_tensors(path)
        channels, height, width = description["image_shape"]
        return ClassGaussianPrior.from_tensors(tensors, (channels, height, width))
    except (RjemError, KeyError, ValueError, TypeError):
        return None


def load_prior(images: ImageSet, variance: float, log: Log = noop) -> ClassGaussianPrior:
    """The prior of these images, fitted once and cached by their content and `variance`. Logs a fit that takes long.
    Raises DataError as `fit_prior` does; a cache that cannot be written is not an error."""
    path = priors_dir() / f"{json_digest([FORMAT, images.digest(), variance])}.safetensors"
    prior = None
    try:
        with locked(path):
            prior = read_cached_prior(path)
            if prior is None:
                if math.prod(images.image_shape) >= SLOW_DIMENSIONS:
                    log(f"fitting the prior to {len(images)} images, once; this can take a minute")
                prior = fit_prior(images, variance)
                write_tensors(path, prior.to_tensors(), {"format": FORMAT, "image_shape": list(prior.image_shape)})
    except DataError:
        raise
    except RjemError:  # the cache cannot be locked or written
        prior = prior or fit_prior(images, variance)
    return prior
