"""Figures as PNG or SVG bytes. matplotlib is imported when the first one is drawn, and never opens a window."""

import colorsys
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from rjem_cli.config.fields import PIXEL_PER_MODEL_UNIT

DPI = 120
LEVELS = 255 * PIXEL_PER_MODEL_UNIT  # grey levels per model unit
OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # safe for colour-blind readers
Events = Sequence[tuple[int, str]]  # (step, colour)


def palette(count: int) -> list[str]:
    """Colours that differ: Okabe & Ito's, or equally spaced hues if those are too few."""
    if count <= len(OKABE_ITO):
        return list(OKABE_ITO[:count])
    colors = [colorsys.hls_to_rgb(index / count, 0.4, 0.8) for index in range(count)]
    return ["#" + "".join(f"{round(255 * channel):02x}" for channel in color) for color in colors]


def new_figure(width: float = 6.0, height: float = 4.0, rows: int = 1, columns: int = 1, **options: Any) -> Any:
    """(figure, axes of each panel); sizes in inches. Without pyplot, which would keep state and look for a display."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", dpi=DPI)
    panels = figure.subplots(rows, columns, squeeze=False, **options).flatten()
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    return figure, panels


def to_png(figure: Any) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def to_svg(figure: Any) -> bytes:
    """The same figure gives the same bytes: without a date, and with ids that are not random."""
    from matplotlib import rc_context

    content = io.BytesIO()
    with rc_context({"svg.hashsalt": "rjem"}):
        figure.savefig(content, format="svg", metadata={"Date": None})
    return content.getvalue()


def epsilon_curve(
    radii: Sequence[float], shares: Sequence[float], intervals: Sequence[tuple[float, float]], label: str, title: str
) -> bytes:
    """Shares in [0, 1] with their intervals over radii in model units. A second axis shows radii in 1/255."""
    figure, (axes,) = new_figure()
    low, high = zip(*intervals)
    axes.fill_between(radii, low, high, alpha=0.2, label="95 % interval")
    axes.plot(radii, shares, marker="o", label=label)
    axes.set(xlabel="eps, model units ([-1, 1])", ylabel=label, ylim=(0, 1.02))
    axes.set_title(title, parse_math=False)
    levels = axes.secondary_xaxis("top", functions=(lambda eps: eps * LEVELS, lambda level: level / LEVELS))
    levels.set_xlabel("eps, /255")
    axes.legend(loc="best")
    return to_png(figure)


class Curve(NamedTuple):
    """Values over training steps."""

    steps: Sequence[int]
    values: Sequence[float]
    color: str
    dashed: bool = False


class Panel(NamedTuple):
    """Curves of one measure."""

    label: str
    curves: Sequence[Curve]
    log: bool = False


def training_curves(panel: Panel, events: Events) -> bytes:
    """An SVG of one panel. A cross at the top marks each event."""
    figure, (axes,) = new_figure(width=5.0, height=3.2)
    draw_panel(axes, panel, events)
    return to_svg(figure)


def panels_of_curves(panels: Sequence[Panel], events: Events, title: str) -> bytes:
    """A PNG of all panels, two per row. A cross at the top marks each event."""
    rows = -(-len(panels) // 2)
    figure, all_axes = new_figure(10.0, 3.2 * rows, rows, 2)
    for axes, panel in zip(all_axes, panels):
        draw_panel(axes, panel, events)
    for axes in all_axes[len(panels) :]:
        axes.set_visible(False)
    figure.suptitle(title, parse_math=False)
    return to_png(figure)


def draw_panel(axes: Any, panel: Panel, events: Events) -> None:
    for curve in panel.curves:
        style = {"linestyle": "--" if curve.dashed else "-", "marker": "o" if len(curve.steps) == 1 else None}
        axes.plot(curve.steps, curve.values, color=curve.color, linewidth=1.5, **style)
    for step, color in events:
        axes.axvline(step, color=color, linewidth=0.8, linestyle=":")
        axes.plot(step, 0.98, marker="x", color=color, transform=axes.get_xaxis_transform(), clip_on=False)
    axes.set(xlabel="training step", ylabel=panel.label, yscale="log" if panel.log else "linear")


def energy_plot(energies: np.ndarray, title: str, label: str) -> bytes:
    """energies (steps + 1, chains): each chain thin, their median thick. Values that are not finite leave gaps."""
    figure, (axes,) = new_figure()
    steps = np.arange(len(energies))
    shown = np.where(np.isfinite(energies), energies, np.nan)
    axes.plot(steps, shown, color="tab:blue", alpha=max(0.08, min(0.5, 8 / shown.shape[1])), linewidth=0.8)
    drawn = ~np.isnan(shown).all(axis=1)
    axes.plot(steps[drawn], np.nanmedian(shown[drawn], axis=1), color="tab:red", linewidth=2, label="median")
    axes.set(xlabel="SGLD step", ylabel=label)
    axes.set_title(title, parse_math=False)
    axes.legend(loc="best")
    return to_png(figure)


def class_bars(names: Sequence[str], shares: Sequence[float], real_shares: Sequence[float], title: str) -> bytes:
    """The share in [0, 1] of each class among samples and among real images, side by side."""
    figure, (axes,) = new_figure(width=max(6.0, min(20.0, 0.5 * len(names))))
    positions = np.arange(len(names))
    axes.bar(positions - 0.2, shares, width=0.4, label="samples")
    axes.bar(positions + 0.2, real_shares, width=0.4, label="reference", alpha=0.5)
    axes.set_xticks(positions, names, rotation=90 if len(names) > 10 else 0, parse_math=False)
    axes.set(xlabel="class", ylabel="share", xlim=(-0.7, len(names) - 0.3))
    axes.set_title(title, parse_math=False)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))  # beside the bars
    return to_png(figure)


def reliability_diagram(bins: Sequence[tuple[int, float, float]], title: str) -> bytes:
    """Accuracy over confidence, and the gap between them; below, the number of images in each bin.

    bins: (images, confidence, accuracy) of equally wide parts of [0, 1].
    """
    figure, (upper, lower) = new_figure(5.0, 5.5, rows=2, sharex=True, height_ratios=(3, 1))
    counts, confidence, accuracy = (np.array(values, dtype=float) for values in zip(*bins))
    width = 1 / len(bins)
    middles = (np.arange(len(bins)) + 0.5) * width
    filled = counts > 0
    upper.bar(middles[filled], accuracy[filled], width=width, edgecolor="white", label="accuracy")
    gap = confidence[filled] - accuracy[filled]
    style = {"color": "none", "edgecolor": "tab:red", "hatch": "//"}
    upper.bar(middles[filled], gap, width=width, bottom=accuracy[filled], label="gap", **style)
    upper.plot((0, 1), (0, 1), color="black", linewidth=1, linestyle="--", label="calibrated")
    upper.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.02))
    upper.set_title(title, parse_math=False)
    upper.legend(loc="upper left")
    lower.bar(middles, counts, width=width, edgecolor="white")
    lower.set(xlabel="confidence", ylabel="images", yscale="log", ylim=(0.5, 2 * counts.max()))
    return to_png(figure)


def energy_histograms(energies: dict[str, np.ndarray], title: str) -> bytes:
    """A histogram of E(x) (N,) for each kind of images, below each other. The label of a row counts the values that are
    not finite."""
    finite = {kind: values[np.isfinite(values)] for kind, values in energies.items()}
    low, high = np.quantile(np.concatenate(list(finite.values())), (0.002, 0.998))
    edges = np.linspace(low, high if high > low else low + 1, 80)
    figure, rows = new_figure(7.0, 0.8 + 0.75 * len(energies), rows=len(energies), sharex=True)
    for index, (axes, (kind, values)) in enumerate(zip(rows, finite.items())):
        lost = len(energies[kind]) - len(values)
        axes.hist(np.clip(values, edges[0], edges[-1]), bins=edges, density=True, color=f"C{index % 10}")
        if len(values):
            axes.axvline(np.median(values), color="black", linewidth=1)
        axes.set_yticks([])
        label = f"{kind}{f' ({lost} not finite)' if lost else ''}"
        axes.set_ylabel(label, rotation=0, ha="right", va="center", parse_math=False)
        axes.spines[["left"]].set_visible(False)
        axes.grid(False)
    rows[0].set_title(title, parse_math=False)
    rows[-1].set_xlabel("E(x); the line is the median, the outermost bins include all values beyond")
    return to_png(figure)
