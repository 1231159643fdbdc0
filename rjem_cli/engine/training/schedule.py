"""Learning rate over a run: linear warm-up, then steps (JEM++) or a half cosine (Loshchilov & Hutter 2017)."""

from __future__ import annotations

import math

from rjem_cli.config import OptimizerOptions

MILESTONES = (1 / 3, 2 / 3, 5 / 6)  # JEM++: epochs 50, 100 and 125 of 150


def total_steps(options: OptimizerOptions, train_images: int) -> int:
    """`steps` if given, else `epochs` passes of whole batches."""
    return options.steps or max(1, round(options.epochs * steps_per_epoch(options, train_images)))


def steps_per_epoch(options: OptimizerOptions, train_images: int) -> int:
    return max(1, train_images // options.batch_size)


def learning_rate(step: int, steps: int, options: OptimizerOptions) -> float:
    """The rate of step `step` of `steps`, counted from 0."""
    warmup = min(1.0, (step + 1) / options.warmup_steps) if options.warmup_steps else 1.0
    done = step / steps
    if options.lr_schedule == "cosine":
        decay = 0.5 * (1 + math.cos(math.pi * done))
    elif options.lr_schedule == "steps":
        decay = options.lr_decay ** sum(done >= milestone for milestone in MILESTONES)
    else:
        decay = 1.0
    return options.lr * warmup * decay
