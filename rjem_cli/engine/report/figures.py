"""Figures as PNG bytes. matplotlib is imported when one is drawn, and never opens a window."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from rjem_cli.knobs import PIXEL_PER_MODEL_UNIT

DPI = 120
LEVELS = 255 * PIXEL_PER_MODEL_UNIT  # grey levels in one model unit


def new_figure(width: float = 6.0, height: float = 4.0) -> tuple[Any, Any]:
    """(figure, axes) without pyplot, which would keep state and look for a display."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", dpi=DPI)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    return figure, axes


def png(figure: Any) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def epsilon_curve(
    radii: Sequence[float], shares: Sequence[float], intervals: Sequence[tuple[float, float]], label: str, title: str
) -> bytes:
    """Shares in [0, 1] with their intervals over radii in model units; a second axis has them in 1/255."""
    figure, axes = new_figure()
    low, high = zip(*intervals)
    axes.fill_between(radii, low, high, alpha=0.2, label="95 % interval")
    axes.plot(radii, shares, marker="o", label=label)
    axes.set(xlabel="eps, model units ([-1, 1])", ylabel=label, ylim=(0, 1.02))
    axes.set_title(title, parse_math=False)
    axes.secondary_xaxis("top", functions=(lambda eps: eps * LEVELS, lambda level: level / LEVELS)).set_xlabel(
        "eps, /255"
    )
    axes.legend(loc="best")
    return png(figure)


def energy_plot(energies: np.ndarray, title: str, label: str) -> bytes:
    """energies (steps + 1, chains): each chain thin, their median thick. Values that are not finite leave gaps."""
    figure, axes = new_figure()
    steps = np.arange(len(energies))
    shown = np.where(np.isfinite(energies), energies, np.nan)
    axes.plot(steps, shown, color="tab:blue", alpha=max(0.08, min(0.5, 8 / shown.shape[1])), linewidth=0.8)
    some = ~np.isnan(shown).all(axis=1)
    axes.plot(steps[some], np.nanmedian(shown[some], axis=1), color="tab:red", linewidth=2, label="median")
    axes.set(xlabel="SGLD step", ylabel=label)
    axes.set_title(title, parse_math=False)
    axes.legend(loc="best")
    return png(figure)


def class_bars(names: Sequence[str], shares: Sequence[float], real_shares: Sequence[float], title: str) -> bytes:
    """Shares in [0, 1] of each class among samples and among real images, side by side."""
    figure, axes = new_figure(width=max(6.0, min(20.0, 0.5 * len(names))))
    places = np.arange(len(names))
    axes.bar(places - 0.2, shares, width=0.4, label="samples")
    axes.bar(places + 0.2, real_shares, width=0.4, label="reference", alpha=0.5)
    axes.set_xticks(places, names, rotation=90 if len(names) > 10 else 0, parse_math=False)
    axes.set(ylabel="share", xlim=(-0.7, len(names) - 0.3))
    axes.set_title(title, parse_math=False)
    axes.legend(loc="best")
    return png(figure)
