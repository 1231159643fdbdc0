"""Persistent chains (Du & Mordatch 2019): each step goes on from a stored sample, or now and then from the prior
again."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rjem_cli.engine.model.prior import ClassGaussianPrior


@dataclass
class ReplayBuffer:
    """`images`: float (size, C, H, W) in [-1, 1] on the device. Coins and labels are drawn on the host, so a draw never
    waits for the device."""

    images: Tensor
    prior: ClassGaussianPrior
    reinit_prob: float

    @classmethod
    def from_prior(
        cls, prior: ClassGaussianPrior, size: int, reinit_prob: float, generator: torch.Generator
    ) -> ReplayBuffer:
        return cls(draw_from_prior(prior, size, generator), prior, reinit_prob)

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(chain starts (count, C, H, W), their places (count,), all different); each start is a fresh draw from the
        prior with probability reinit_prob. `count` is at most the buffer's size."""
        places = torch.randperm(len(self.images), generator=generator)[:count]
        restarted = (torch.rand(count, generator=generator) < self.reinit_prob).nonzero().squeeze(1)
        places_here = places.to(self.images.device)
        starts = self.images[places_here]
        if len(restarted):
            starts[restarted.to(starts.device)] = draw_from_prior(self.prior, len(restarted), generator)
        return starts, places_here

    def redraw(self, share: float, generator: torch.Generator) -> None:
        """Start this share of the chains again from the prior."""
        count = round(share * len(self.images))
        if count:
            places = torch.randperm(len(self.images), generator=generator)[:count]
            self.store(places.to(self.images.device), draw_from_prior(self.prior, count, generator))

    def store(self, places: Tensor, images: Tensor) -> None:
        self.images[places] = images


def draw_from_prior(prior: ClassGaussianPrior, count: int, generator: torch.Generator) -> Tensor:
    """`count` images of random classes; `generator` lives on the host."""
    labels = torch.randint(len(prior.mean_KD), (count,), generator=generator)
    normals = torch.randn(count, prior.normals_per_sample, generator=generator)
    return prior.sample(labels, normals.to(prior.mean_KD.device))
