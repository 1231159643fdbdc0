"""A comparison as one self-contained HTML page: no script, nothing to download."""

import base64
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from rjem_cli import __version__
from rjem_cli.engine.compare.formats import format_name, format_value
from rjem_cli.engine.compare.notes import FAILS, HOLDS, count_verdicts, row_notes
from rjem_cli.engine.compare.rows import COLUMNS, Comparison, ImageGrid, Row, find_best, flatten, present_columns
from rjem_cli.engine.data.png import contact_sheet, png_bytes
from rjem_cli.engine.figures import palette, training_curves
from rjem_cli.engine.sampling.chains import ChainPictures
from rjem_cli.engine.training.metrics_log import Lines, build_panels, events_in, read_lines
from rjem_cli.paths import find_run_dir

VERDICT_CLASSES = {HOLDS: "holds", FAILS: "fails"}  # in CSS; others are "open"


@dataclass(frozen=True)
class Run:
    """A run's lines of metrics.jsonl, and the options of its checkpoint."""

    folder: Path
    lines: Lines
    settings: dict[str, Any]

    @property
    def name(self) -> str:
        return self.folder.name


@dataclass(frozen=True)
class RunGroup:
    """The runs behind a row, one per seed, drawn in one colour."""

    runs: list[Run]
    color: str

    @property
    def name(self) -> str:
        """`digits-{0,1,2}` for digits-0, digits-1 and digits-2."""
        names = [run.name for run in self.runs]
        heads = {name.rpartition("-")[0] for name in names}
        if len(names) == 1 or len(heads) > 1:
            return ", ".join(names)
        return f"{heads.pop()}-{{{','.join(name.rpartition('-')[2] for name in names)}}}"


def html_report(comparison: Comparison, command: Sequence[str], chains: Mapping[str, ChainPictures]) -> str:
    """The page. `command`: the command line that made it. `chains`: pictures of chains, by the name of their run."""
    from jinja2 import Environment, StrictUndefined

    source = resources.files("rjem_cli.engine.compare").joinpath("html_report.html").read_text(encoding="utf-8")
    template = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    rows, orderings = comparison.rows, comparison.orderings
    groups = group_runs(rows)
    runs = list({run.folder: run for group in groups for run in group.runs}.values())
    return template.from_string(source).render(
        version=__version__,
        command=shlex.join(command),
        columns={column: COLUMNS[column].label for column in present_columns(rows)},
        best={column: find_best(rows, column) for column in present_columns(rows)},
        rows=rows,
        format_name=format_name,
        format_value=format_value,
        flatten=flatten,
        notes=row_notes(rows),
        verdict_counts=count_verdicts(orderings),
        orderings=[(ordering, VERDICT_CLASSES.get(ordering.verdict, "open")) for ordering in orderings],
        grids=draw_grids(rows),
        groups=groups,
        divergences=sum(len(events_in(run.lines)) for run in runs),
        curves=[(label, data_uri(figure, "svg+xml")) for label, figure in draw_curves(groups)],
        chains=[(name, data_uri(each.film), data_uri(each.energies)) for name, each in chains.items()],
        runs=runs,
        differing=differing_settings(runs),
    )


def data_uri(content: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def draw_grids(rows: list[Row]) -> list[dict[str, Any]]:
    """A grid of real images of each reference, and a grid of samples of each row, of its first seed."""
    real = {origin.real.name: origin.real for row in rows for origin in row.origins if origin.real}
    grids = [draw_grid(name, f"real images, some of {grid.total}", grid) for name, grid in real.items()]
    for row in rows:
        if (origin := row.sampled_origin) and (grid := origin.samples):
            grids.append(draw_grid(row.name, f"{origin.name}: some of {grid.total} samples", grid))
    return grids


def draw_grid(title: str, caption: str, grid: ImageGrid) -> dict[str, Any]:
    image = contact_sheet(grid.pixels, grid.columns)
    uri = data_uri(png_bytes(image))
    return {"title": title, "caption": caption, "classes": grid.classes, "uri": uri, "width": image.width}


def group_runs(rows: list[Row]) -> list[RunGroup]:
    """The runs behind the rows; rows of the same runs share a group."""
    groups: dict[tuple[Path, ...], list[Run]] = {}
    for row in rows:
        origins = {find_run_dir(origin.checkpoint): origin for origin in row.origins if origin.checkpoint}
        settings = {folder: origin.settings for folder, origin in origins.items() if folder}
        if settings and tuple(settings) not in groups:
            lines = {folder: read_lines(folder / "metrics.jsonl") for folder in settings}
            groups[tuple(settings)] = [Run(folder, lines[folder], settings[folder]) for folder in settings]
    return [RunGroup(runs, color) for color, runs in zip(palette(len(groups)), groups.values())]


def draw_curves(groups: list[RunGroup]) -> list[tuple[str, bytes]]:
    """(label, SVG) of each measure. A cross marks each divergence."""
    events = [
        (line["diverged_at"], group.color) for group in groups for run in group.runs for line in events_in(run.lines)
    ]
    panels = build_panels([(run.lines, group.color) for group in groups for run in group.runs])
    return [(panel.label, training_curves(panel, events)) for panel in panels]


def differing_settings(runs: list[Run]) -> list[str]:
    """The options that the runs do not share, without their names."""
    names = [name for name in runs[0].settings if name != "run"] if runs else []
    return [name for name in names if len({repr(run.settings.get(name)) for run in runs}) > 1]
