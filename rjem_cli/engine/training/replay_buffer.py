"""The replay buffer of persistent chains (Du & Mordatch 2019): a training step continues stored samples, and restarts a
share `reinit_prob` of them from the prior."""

from dataclasses import dataclass

import torch
from torch import Tensor

from rjem_cli.engine.models.prior import ClassGaussianPrior

PRIOR_BATCH = 1000  # images sampled at once; their normals take several times the memory of the images


@dataclass
class ReplayBuffer:
    """`images`: float (N, C, H, W) in [-1, 1] on the device. Indices, restarts and labels are drawn on the host, so a
    draw never waits for the device."""

    images: Tensor
    prior: ClassGaussianPrior
    reinit_prob: float

    @classmethod
    def from_prior(
        cls, prior: ClassGaussianPrior, size: int, reinit_prob: float, generator: torch.Generator
    ) -> "ReplayBuffer":
        return cls(sample_prior(prior, size, generator), prior, reinit_prob)

    def __len__(self) -> int:
        return len(self.images)

    def sample(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(chain starts (count, C, H, W), their indices (count,), all different). Each start is replaced by a new
        sample of the prior with probability reinit_prob. `count` is at most the buffer's size."""
        indices = torch.randperm(len(self), generator=generator)[:count]
        restarted = (torch.rand(count, generator=generator) < self.reinit_prob).nonzero().squeeze(1)
        indices = indices.to(self.images.device, non_blocking=True)
        starts = self.images[indices]
        if len(restarted):
            new = sample_prior(self.prior, len(restarted), generator)
            starts[restarted.to(starts.device, non_blocking=True)] = new
        return starts, indices

    def store(self, indices: Tensor, images: Tensor) -> None:
        """Replace the images at `indices` (B,) by the final states of the chains, (B, C, H, W)."""
        self.images[indices] = images

    def reset(self, fraction: float, generator: torch.Generator) -> None:
        """Restart this fraction of the chains from the prior."""
        count = round(fraction * len(self))
        if count:
            indices = torch.randperm(len(self), generator=generator)[:count].to(self.images.device)
            self.store(indices, sample_prior(self.prior, count, generator))


def sample_prior(prior: ClassGaussianPrior, count: int, generator: torch.Generator) -> Tensor:
    """`count` images of random classes (count, C, H, W); `generator` lives on the host."""
    labels = torch.randint(len(prior.mean_KD), (count,), generator=generator)
    images = torch.empty(count, *prior.image_shape, device=prior.mean_KD.device)
    for batch_labels, batch in zip(torch.split(labels, PRIOR_BATCH), torch.split(images, PRIOR_BATCH)):
        normals = torch.randn(len(batch), prior.normals_per_sample, generator=generator)
        batch.copy_(prior.sample(batch_labels, normals.to(images.device, non_blocking=True)))
    return images
