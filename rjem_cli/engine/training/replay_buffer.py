"""Persistent chains (Du & Mordatch 2019): each step goes on from a stored sample, or now and then from the prior
again."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rjem_cli.engine.model.prior import ClassGaussianPrior
from rjem_cli.engine.ranks import ALONE, Ranks

DRAWN_AT_ONCE = 1000  # images, whose normals take several times their memory


@dataclass
class ReplayBuffer:
    """`own`: this rank's share of `size` images, float (C, H, W) in [-1, 1] on the device. Places, coins and labels are
    drawn on the host, the same on each rank, so a draw never waits for the device, and what is drawn does not depend
    on the number of ranks."""

    own: Tensor
    size: int
    prior: ClassGaussianPrior
    reinit_prob: float
    ranks: Ranks = ALONE

    @classmethod
    def from_prior(
        cls,
        prior: ClassGaussianPrior,
        size: int,
        reinit_prob: float,
        generator: torch.Generator,
        ranks: Ranks = ALONE,
    ) -> ReplayBuffer:
        own = ranks.rows(draw_from_prior(prior, size, generator))
        return cls(own if ranks.world == 1 else own.clone(), size, prior, reinit_prob, ranks)

    @property
    def images(self) -> Tensor:
        """All of it, (size, C, H, W), on every rank."""
        return self.ranks.whole(self.own, self.size)

    @images.setter
    def images(self, images: Tensor) -> None:
        self.own.copy_(self.ranks.rows(images))

    def at(self, places: Tensor) -> Tensor:
        """Images (B, C, H, W) at `places` (B,), on the host, from whichever rank holds them."""
        mine, rows = self.held(places)
        if self.ranks.world == 1:
            return self.own[rows]
        found = self.own.new_zeros(len(places), *self.own.shape[1:])
        found[mine] = self.own[rows]
        return self.ranks.sum(found)

    def held(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """Which of `places` this rank holds, and in which of its rows."""
        share = self.ranks.share(self.size)
        mine = ((places >= share.start) & (places < share.stop)).nonzero().squeeze(1)
        return mine.to(self.own.device), (places[mine] - share.start).to(self.own.device)

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(chain starts (count, C, H, W), their places (count,) on the host, all different); each start is a fresh draw
        from the prior with probability reinit_prob. `count` is at most the buffer's size."""
        places = torch.randperm(self.size, generator=generator)[:count]
        restarted = (torch.rand(count, generator=generator) < self.reinit_prob).nonzero().squeeze(1)
        starts = self.at(places)
        if len(restarted):
            starts[restarted.to(starts.device)] = draw_from_prior(self.prior, len(restarted), generator)
        return starts, places

    def redraw(self, share: float, generator: torch.Generator) -> None:
        """Start this share of the chains again from the prior."""
        count = round(share * self.size)
        if count:
            places = torch.randperm(self.size, generator=generator)[:count]
            self.store(places, draw_from_prior(self.prior, count, generator))

    def store(self, places: Tensor, images: Tensor) -> None:
        """`images` (B, C, H, W) of all ranks; each keeps those of its own places."""
        mine, rows = self.held(places)
        self.own[rows] = images[mine]


def draw_from_prior(prior: ClassGaussianPrior, count: int, generator: torch.Generator) -> Tensor:
    """`count` images of random classes, DRAWN_AT_ONCE; `generator` lives on the host."""
    labels = torch.randint(len(prior.mean_KD), (count,), generator=generator)
    drawn = torch.empty(count, *prior.image_shape, device=prior.mean_KD.device)
    for own, images in zip(labels.split(DRAWN_AT_ONCE), drawn.split(DRAWN_AT_ONCE)):
        normals = torch.randn(len(own), prior.normals_per_sample, generator=generator)
        images.copy_(prior.sample(own, normals.to(drawn.device)))
    return drawn
