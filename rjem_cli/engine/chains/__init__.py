"""Chains move images along a model's gradients: start, gradient, step, projection, noise.

The names below are rjem's public Python interface; README shows it at work.
"""

from rjem_cli.engine.chains.apgd import ApgdState
from rjem_cli.engine.chains.moves import together, walk
from rjem_cli.engine.chains.pgd import pgd, random_start
from rjem_cli.engine.chains.pipeline import SamplePlan, plan_of, sampler_of
from rjem_cli.engine.chains.sgld import ChainState, sgld, sgld_step
from rjem_cli.engine.chains.stages import Sampler, contrast, langevin, targeted_pgd
from rjem_cli.engine.chains.starts import given_images, prior_draws, random_images, uniform_noise

__all__ = [
    "ApgdState",
    "ChainState",
    "SamplePlan",
    "Sampler",
    "contrast",
    "given_images",
    "langevin",
    "pgd",
    "plan_of",
    "prior_draws",
    "random_images",
    "random_start",
    "sampler_of",
    "sgld",
    "sgld_step",
    "targeted_pgd",
    "together",
    "uniform_noise",
    "walk",
]
