"""A figure with samples of the prior and what the model makes of them, side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torch import Tensor

from rjem_cli.engine.data.images import to_pixels
from rjem_cli.engine.data.png import contact_sheet, side_by_side
from rjem_cli.engine.gradients import Logits
from rjem_cli.engine.models.prior import ClassGaussianPrior
from rjem_cli.engine.sampling.pipeline import SamplePlan, Sampler, build_sampler, prior_start

LARGEST_CLASS_COUNT = 10  # the figure shows the first ten classes


def preview(
    logits_of: Logits,
    prior: ClassGaussianPrior,
    plans: Sequence[SamplePlan],
    per_class: int,
    seed: int,
    on_progress: Callable[[int, int], None],
) -> Image.Image:
    """One grid for the prior and one for each plan, all from the same starts; one row per class. `on_progress` is told
    of network passes, done and total, and may raise."""
    device, done, total = prior.mean_KD.device, 0, sum(plan.gradient_steps for plan in plans)

    def counting(x: Tensor) -> Tensor:
        nonlocal done
        on_progress(done, total)
        done += 1
        return logits_of(x)

    labels = torch.arange(min(len(prior.mean_KD), LARGEST_CLASS_COUNT)).repeat_interleave(per_class)
    seeds = (seed + torch.arange(len(labels))).to(device)
    starts = prior_start(prior)(labels, seeds)
    sheets = [("prior", contact_sheet(to_pixels(starts), per_class))]
    for plan in plans:
        samples = build_sampler(plan, Sampler(()), counting)(labels, seeds, starts)
        sheets.append((plan.mode, contact_sheet(to_pixels(samples), per_class)))
    on_progress(total, total)
    return side_by_side(sheets)
