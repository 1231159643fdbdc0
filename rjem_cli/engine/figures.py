"""Figures as PNG bytes. matplotlib is imported when one is drawn, and never opens a window."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from rjem_cli.config.fields import PIXEL_PER_MODEL_UNIT

DPI = 120
LEVELS = 255 * PIXEL_PER_MODEL_UNIT  # grey levels in one model unit


def new_figure(width: float = 6.0, height: float = 4.0) -> tuple[Any, Any]:
    """(figure, axes) without pyplot, which would keep state and look for a display."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", dpi=DPI)
    axes = figure.add_subplot()
    unframe(axes)
    return figure, axes


def unframe(axes: Any) -> None:
    """Two of four spines, and a grid in their place."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)


def png(figure: Any) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def svg(figure: Any) -> bytes:
    """The same figure gives the same bytes: no date in it, and names that are not random."""
    from matplotlib import rc_context

    content = io.BytesIO()
    with rc_context({"svg.hashsalt": "rjem"}):
        figure.savefig(content, format="svg", metadata={"Date": None})
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


class Curve(NamedTuple):
    """Values over training steps, in a colour."""

    steps: Sequence[int]
    values: Sequence[float]
    color: str
    dashed: bool = False


def training_curves(
    curves: Sequence[Curve], events: Sequence[tuple[int, str]], label: str, *, log: bool = False
) -> bytes:
    """An SVG of curves over training steps; a cross at the top marks each of `events`, (step, colour)."""
    figure, axes = new_figure(width=5.0, height=3.2)
    draw_curves(axes, curves, events, label, log)
    return svg(figure)


def draw_curves(
    axes: Any, curves: Sequence[Curve], events: Sequence[tuple[int, str]], label: str, log: bool = False
) -> None:
    for curve in curves:
        style = {"linestyle": "--" if curve.dashed else "-", "marker": "o" if len(curve.steps) == 1 else None}
        axes.plot(curve.steps, curve.values, color=curve.color, linewidth=1.5, **style)
    for step, color in events:
        axes.axvline(step, color=color, linewidth=0.8, linestyle=":")
        axes.plot(step, 0.98, marker="x", color=color, transform=axes.get_xaxis_transform(), clip_on=False)
    axes.set(xlabel="training step", ylabel=label, yscale="log" if log else "linear")


def panels_of_curves(
    panels: Sequence[tuple[str, Sequence[Curve], bool]], events: Sequence[tuple[int, str]], title: str
) -> bytes:
    """A PNG of (label, curves, log scale) side by side, two in a row."""
    from matplotlib.figure import Figure

    rows = -(-len(panels) // 2)
    figure = Figure(figsize=(10.0, 3.2 * rows), layout="constrained", dpi=DPI)
    places = figure.subplots(rows, 2, squeeze=False).flatten()
    for axes, (label, curves, log) in zip(places, panels):
        unframe(axes)
        draw_curves(axes, curves, events, label, log)
    for axes in places[len(panels) :]:
        axes.set_visible(False)
    figure.suptitle(title, parse_math=False)
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
    axes.set(xlabel="class", ylabel="share", xlim=(-0.7, len(names) - 0.3))
    axes.set_title(title, parse_math=False)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))  # beside the bars, which may be everywhere
    return png(figure)


def reliability_diagram(bins: Sequence[tuple[int, float, float]], title: str) -> bytes:
    """Bins of (images, confidence, accuracy) over equal widths of [0, 1]: accuracy over confidence, the gap between
    them, and below how many images each is of: a bin of one image says nothing."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.0, 5.5), layout="constrained", dpi=DPI)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    counts, confidence, accuracy = (np.array(values, dtype=float) for values in zip(*bins))
    width = 1 / len(bins)
    middles = (np.arange(len(bins)) + 0.5) * width
    some = counts > 0
    upper.bar(middles[some], accuracy[some], width=width, edgecolor="white", label="accuracy")
    gap = confidence[some] - accuracy[some]
    style = {"color": "none", "edgecolor": "tab:red", "hatch": "//"}
    upper.bar(middles[some], gap, width=width, bottom=accuracy[some], label="gap", **style)
    upper.plot((0, 1), (0, 1), color="black", linewidth=1, linestyle="--", label="calibrated")
    upper.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.02))
    upper.set_title(title, parse_math=False)
    upper.legend(loc="upper left")
    lower.bar(middles, counts, width=width, edgecolor="white")
    lower.set(xlabel="confidence", ylabel="images", yscale="log", ylim=(0.5, 2 * counts.max()))
    for axes in (upper, lower):
        unframe(axes)
    return png(figure)


def energy_histograms(energies: dict[str, np.ndarray], title: str) -> bytes:
    """E(x) (N,) of each kind of images: a histogram a row, on one axis. Values that are not finite are counted in the
    row's name."""
    from matplotlib.figure import Figure

    finite = {kind: values[np.isfinite(values)] for kind, values in energies.items()}
    everything = np.concatenate(list(finite.values()))
    low, high = np.quantile(everything, (0.002, 0.998))
    edges = np.linspace(low, high if high > low else low + 1, 80)
    figure = Figure(figsize=(7.0, 0.8 + 0.75 * len(energies)), layout="constrained", dpi=DPI)
    rows = figure.subplots(len(energies), 1, sharex=True, squeeze=False)[:, 0]
    for place, (axes, (kind, values)) in enumerate(zip(rows, finite.items())):
        lost = len(energies[kind]) - len(values)
        axes.hist(np.clip(values, edges[0], edges[-1]), bins=edges, density=True, color=f"C{place % 10}")
        if len(values):
            axes.axvline(np.median(values), color="black", linewidth=1)
        axes.set_yticks([])
        axes.set_ylabel(
            f"{kind}{f' ({lost} lost)' if lost else ''}", rotation=0, ha="right", va="center", parse_math=False
        )
        axes.spines[["top", "right", "left"]].set_visible(False)
    rows[0].set_title(title, parse_math=False)
    rows[-1].set_xlabel("E(x); the line is the median, ends gather what lies beyond")
    return png(figure)
