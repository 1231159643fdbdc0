"""A picture of what the prior gave and what the model made of it, side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torch import Tensor

from rjem_cli.engine.chains.pgd import Logits
from rjem_cli.engine.chains.pipeline import SamplePlan, sampler_of
from rjem_cli.engine.chains.stages import Sampler
from rjem_cli.engine.chains.starts import prior_draws
from rjem_cli.engine.data.images import to_pixels
from rjem_cli.engine.data.pictures import contact_sheet, side_by_side
from rjem_cli.engine.model.prior import ClassGaussianPrior

LARGEST_CLASS_COUNT = 10  # a picture shows the first ten classes, one a row


def preview(
    logits_of: Logits,
    prior: ClassGaussianPrior,
    plans: Sequence[SamplePlan],
    per_class: int,
    seed: int,
    watch: Callable[[int, int], None],
) -> Image.Image:
    """One sheet for the prior and one for each plan, all from the same starts; a row a class. `watch` hears of network
    passes, done and in all, and may raise."""
    device, done, total = prior.mean_KD.device, 0, sum(plan.gradient_steps for plan in plans)

    def counted(x: Tensor) -> Tensor:
        nonlocal done
        watch(done, total)
        done += 1
        return logits_of(x)

    labels = torch.arange(min(len(prior.mean_KD), LARGEST_CLASS_COUNT)).repeat_interleave(per_class)
    seeds = (seed + torch.arange(len(labels))).to(device)
    starts = prior_draws(prior)(labels, seeds)
    sheets = [("prior", contact_sheet(to_pixels(starts), per_class))]
    for plan in plans:
        samples = sampler_of(plan, Sampler(()), counted)(labels, seeds, starts)
        sheets.append((plan.mode, contact_sheet(to_pixels(samples), per_class)))
    watch(total, total)
    return side_by_side(sheets)
