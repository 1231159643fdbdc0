"""The start of every chain: one Gaussian per class, fitted to the training images in [-1, 1] (JEM++'s informative
initialisation).

D = C*H*W is an image's length, K the number of classes, n_y the number of training images of class y, r_y = min(n_y,
D).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rjem_cli.engine.data.images import ImageSet, to_model
from rjem_cli.engine.models.tensor_file import read_tensors, write_tensors
from rjem_cli.errors import DataError, RjemError
from rjem_cli.files import locked
from rjem_cli.paths import priors_dir

FORMAT = "rjem-prior-1"
JITTER = 1e-4  # added to the covariance's diagonal, as JEM++ does


@dataclass(frozen=True)
class ClassGaussianPrior:
    """N(mean_y, cov_y + JITTER * I) for each class y.

    mean_KD: (K, D). factors: K tensors (D, r_y). With at least as many images as dimensions a factor is the Cholesky
    factor of the whole covariance; with fewer it is the centred data over sqrt(n_y - 1), no D x D matrix is made, and
    the JITTER is drawn apart. Both are exact.
    """

    mean_KD: Tensor
    factors: tuple[Tensor, ...]
    image_shape: tuple[int, int, int]

    @property
    def normals_per_sample(self) -> int:
        """How many standard normal numbers `sample` wants for each image."""
        return self.mean_KD.shape[1] + max(self._rank(factor) for factor in self.factors)

    def _rank(self, factor: Tensor) -> int:
        """Columns of a low-rank factor; 0 for a Cholesky factor, which shares its draws with no jitter."""
        return factor.shape[1] if factor.shape[1] < factor.shape[0] else 0

    def sample(self, labels_B: Tensor, normals_BN: Tensor) -> Tensor:
        """Images in [-1, 1], (B, C, H, W), clamped. One matrix product per class; with labels on the host, no device
        sync."""
        dimensions, device = self.mean_KD.shape[1], self.mean_KD.device
        flat_BD = self.mean_KD[labels_B.to(device, non_blocking=True)]
        for label in torch.unique(labels_B).tolist():
            rows = (labels_B == label).nonzero().squeeze(1).to(device, non_blocking=True)
            normals, factor = normals_BN[rows], self.factors[label]
            rank = self._rank(factor)
            if rank:
                flat_BD[rows] += product(normals[:, dimensions : dimensions + rank], factor.T)
                flat_BD[rows] += JITTER**0.5 * normals[:, :dimensions]
            else:
                flat_BD[rows] += product(normals[:, :dimensions], factor.T)
        return flat_BD.clamp_(-1, 1).view(-1, *self.image_shape)

    def to(self, device: torch.device) -> ClassGaussianPrior:
        return ClassGaussianPrior(
            self.mean_KD.to(device), tuple(factor.to(device) for factor in self.factors), self.image_shape
        )


def product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in float32. On a CPU the order of its sums depends on the number of threads, so they are taken in float64
    there, and a sample has the same bytes with any."""
    return (a.double() @ b.double()).float() if a.device.type == "cpu" else a @ b


def fit_prior(images: ImageSet) -> ClassGaussianPrior:
    """Fit each class in float64, keep float32. Raises DataError for a class with fewer than two images."""
    means, factors = [], []
    for label, class_name in enumerate(images.class_names):
        members = to_model(images.pixels[images.labels == label]).flatten(1).double()
        count, dimensions = members.shape
        if count < 2:
            raise DataError(f"class {class_name!r} has {count} training images; the prior needs two or more")
        centred = members - members.mean(dim=0)
        if count >= dimensions:
            covariance = centred.T @ centred / (count - 1)
            covariance.diagonal().add_(JITTER)
            factor = torch.linalg.cholesky(covariance)
        else:
            factor = centred.T / (count - 1) ** 0.5
        means.append(members.mean(dim=0).float())
        factors.append(factor.float().contiguous())
    return ClassGaussianPrior(torch.stack(means), tuple(factors), images.image_shape)


def cached_prior(data_digest: str) -> ClassGaussianPrior | None:
    """The prior fitted earlier to the images with this digest; None if there is none, or none that can be read."""
    path = priors_dir() / f"{data_digest}.safetensors"
    try:
        tensors, description = read_tensors(path)
        if description != {"format": FORMAT}:
            return None
        channels, height, width = tensors["image_shape"].tolist()
        factors = tuple(tensors[f"factor.{label}"] for label in range(len(tensors["mean"])))
        return ClassGaussianPrior(tensors["mean"], factors, (channels, height, width))
    except (RjemError, KeyError, ValueError):
        return None


def load_prior(images: ImageSet, data_digest: str) -> ClassGaussianPrior:
    """The prior of these images, fitted once and then kept by the digest of their content."""
    path = priors_dir() / f"{data_digest}.safetensors"
    prior = None
    try:
        with locked(path):
            prior = cached_prior(data_digest)
            if prior is None:
                prior = fit_prior(images)
                tensors = {"mean": prior.mean_KD, "image_shape": torch.tensor(prior.image_shape)}
                tensors |= {f"factor.{label}": factor for label, factor in enumerate(prior.factors)}
                write_tensors(path, tensors, {"format": FORMAT})
    except DataError:
        raise
    except RjemError:  # a place that cannot be written, or is full, keeps no prior, and needs none
        prior = prior or fit_prior(images)
    return prior
