"""Persistent chains (Du & Mordatch 2019): each step goes on from a stored sample, or now and then from the prior
again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from rjem_cli.engine.model.prior import ClassGaussianPrior
from rjem_cli.engine.ranks import ALONE, Ranks

DRAWN_AT_ONCE = 1000  # images, whose normals take several times their memory


class Held(NamedTuple):
    """Which of some places this rank holds, and in which of its rows; on the device."""

    mine: Tensor
    rows: Tensor


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
        return self.found(len(places), self.held(places))

    def found(self, count: int, held: Held) -> Tensor:
        if self.ranks.world == 1:
            return self.own[held.rows]
        found = self.own.new_zeros(count, *self.own.shape[1:])
        found[held.mine] = self.own[held.rows]
        return self.ranks.sum(found)

    def held(self, places: Tensor) -> Held:
        """`places` (B,) are on the host."""
        share = self.ranks.share(self.size)
        mine = ((places >= share.start) & (places < share.stop)).nonzero().squeeze(1)
        return Held(*(part.to(self.own.device, non_blocking=True) for part in (mine, places[mine] - share.start)))

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Held]:
        """(chain starts (count, C, H, W), the places where `store` puts their ends, all different); each start is a
        fresh draw from the prior with probability reinit_prob. `count` is at most the buffer's size."""
        places = torch.randperm(self.size, generator=generator)[:count]
        restarted = (torch.rand(count, generator=generator) < self.reinit_prob).nonzero().squeeze(1)
        held = self.held(places)
        starts = self.found(count, held)
        if len(restarted):
            starts[restarted.to(starts.device, non_blocking=True)] = draw_from_prior(
                self.prior, len(restarted), generator
            )
        return starts, held

    def redraw(self, share: float, generator: torch.Generator) -> None:
        """Start this share of the chains again from the prior."""
        count = round(share * self.size)
        if count:
            places = torch.randperm(self.size, generator=generator)[:count]
            self.store(self.held(places), draw_from_prior(self.prior, count, generator))

    def store(self, held: Held, images: Tensor) -> None:
        """`images` (B, C, H, W) of all ranks; each keeps those of its own places."""
        self.own[held.rows] = images[held.mine]


def draw_from_prior(prior: ClassGaussianPrior, count: int, generator: torch.Generator) -> Tensor:
    """`count` images of random classes, DRAWN_AT_ONCE; `generator` lives on the host."""
    labels = torch.randint(len(prior.mean_KD), (count,), generator=generator)
    drawn = torch.empty(count, *prior.image_shape, device=prior.mean_KD.device)
    for own, images in zip(labels.split(DRAWN_AT_ONCE), drawn.split(DRAWN_AT_ONCE)):
        normals = torch.randn(len(own), prior.normals_per_sample, generator=generator)
        images.copy_(prior.sample(own, normals.to(drawn.device, non_blocking=True)))
    return drawn
