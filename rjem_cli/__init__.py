"""rjem: Robust JEM, one network that is a classifier, a robust classifier and an energy-based generator.

import rjem_cli as rjem

model = rjem.load("first")                                    # a run, or a checkpoint file
x = rjem.sample(model, classes=[3, 8], n=16)                  # (16, C, H, W) in [-1, 1]
result = rjem.attack(model, x, labels, eps="8/255")           # result.x, result.success
scores = rjem.score(x, reference="shifted-digits:train")      # scores["fd_judge"]
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rjem_cli.api import Model, Scores, attack, load, sample, score

__version__ = "0.1.0"
__all__ = ["Model", "Scores", "__version__", "attack", "load", "sample", "score"]


def __getattr__(name: str) -> Any:
    """Load the API, and with it PyTorch, when it is first used."""
    if name in __all__:
        from rjem_cli import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
