"""The default start of chains: one Gaussian per class, fitted to the training images in [-1, 1] (JEM++'s informative
initialisation).

D = C*H*W is the length of an image, K the number of classes, n_y the number of training images of class y, and
r_y = min(n_y, D).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from rjem_cli.engine.data.images import ImageSet, to_model
from rjem_cli.engine.models.tensor_file import read_tensors, write_tensors
from rjem_cli.errors import DataError, RjemError
from rjem_cli.files import locked
from rjem_cli.paths import priors_dir

FORMAT = "rjem-prior-1"
JITTER = 1e-4  # added to the diagonal of the covariance, as in JEM++


@dataclass(frozen=True)
class ClassGaussianPrior:
    """N(mean_y, cov_y + JITTER * I) for each class y.

    mean_KD: (K, D). factors: K tensors (D, r_y). With at least as many images as dimensions, a factor is the Cholesky
    factor of the whole covariance. With fewer, it is the centred data over sqrt(n_y - 1), so no D x D matrix is needed,
    and `sample` adds the JITTER. Both are exact.
    """

    mean_KD: Tensor
    factors: tuple[Tensor, ...]
    image_shape: tuple[int, int, int]

    @property
    def normals_per_sample(self) -> int:
        """How many standard normal numbers `sample` needs for each image."""
        return self.mean_KD.shape[1] + max(data_rank(factor) for factor in self.factors)

    def sample(self, labels_B: Tensor, normals_BN: Tensor) -> Tensor:
        """Images (B, C, H, W), clamped to [-1, 1]. One matrix product per class. No device sync if the labels are on
        the host."""
        dimensions, device = self.mean_KD.shape[1], self.mean_KD.device
        flat_BD = self.mean_KD[labels_B.to(device, non_blocking=True)]
        for label in torch.unique(labels_B).tolist():
            rows = (labels_B == label).nonzero().squeeze(1).to(device, non_blocking=True)
            normals, factor = normals_BN[rows], self.factors[label]
            if rank := data_rank(factor):
                flat_BD[rows] += reproducible_matmul(normals[:, dimensions : dimensions + rank], factor.T)
                flat_BD[rows] += JITTER**0.5 * normals[:, :dimensions]
            else:
                flat_BD[rows] += reproducible_matmul(normals[:, :dimensions], factor.T)
        return flat_BD.clamp_(-1, 1).view(-1, *self.image_shape)

    def to(self, device: torch.device) -> "ClassGaussianPrior":
        factors = tuple(factor.to(device) for factor in self.factors)
        return ClassGaussianPrior(self.mean_KD.to(device), factors, self.image_shape)


def data_rank(factor: Tensor) -> int:
    """Columns of a factor that is centred data; 0 for a Cholesky factor, whose draws include the jitter."""
    return factor.shape[1] if factor.shape[1] < factor.shape[0] else 0


def reproducible_matmul(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in float32. The order of a CPU's sums depends on the number of threads, so it computes in float64: a sample
    has the same bytes with any number."""
    return (a.double() @ b.double()).float() if a.device.type == "cpu" else a @ b


def fit_prior(images: ImageSet) -> ClassGaussianPrior:
    """Fit each class in float64; store float32. Raises DataError for a class with fewer than two images."""
    means, factors = [], []
    for label, class_name in enumerate(images.class_names):
        members = to_model(images.pixels[images.labels == label]).flatten(1).double()
        count, dimensions = members.shape
        if count < 2:
            raise DataError(f"the prior needs two images per class; class {class_name!r} has {count} for training")
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


def read_cached_prior(data_digest: str) -> ClassGaussianPrior | None:
    """The prior fitted earlier to the images with this digest; None if there is no valid one."""
    try:
        tensors, description = read_tensors(priors_dir() / f"{data_digest}.safetensors")
        if description != {"format": FORMAT}:
            return None
        channels, height, width = tensors["image_shape"].tolist()
        factors = tuple(tensors[f"factor.{label}"] for label in range(len(tensors["mean"])))
        return ClassGaussianPrior(tensors["mean"], factors, (channels, height, width))
    except (RjemError, KeyError, ValueError):
        return None


def load_prior(images: ImageSet, data_digest: str) -> ClassGaussianPrior:
    """The prior of these images, fitted once and cached by the digest of their content. Raises DataError as `fit_prior`
    does; a cache that cannot be written is not an error."""
    path, prior = priors_dir() / f"{data_digest}.safetensors", None
    try:
        with locked(path):
            prior = read_cached_prior(data_digest)
            if prior is None:
                prior = fit_prior(images)
                tensors = {"mean": prior.mean_KD, "image_shape": torch.tensor(prior.image_shape)}
                tensors |= {f"factor.{label}": factor for label, factor in enumerate(prior.factors)}
                write_tensors(path, tensors, {"format": FORMAT})
    except DataError:
        raise
    except RjemError:  # the cache cannot be locked or written
        prior = prior or fit_prior(images)
    return prior
