"""A comparison as one HTML page that holds all it shows: no script, and nothing to be fetched."""

from __future__ import annotations

import base64
import colorsys
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from rjem_cli import __version__
from rjem_cli.engine.comparison.forms import limits_of, value_text
from rjem_cli.engine.comparison.rows import COLUMNS, Comparison, Row, best_of, columns_of, flattened, groups_of
from rjem_cli.engine.comparison.sheets import Sheet
from rjem_cli.engine.comparison.table1 import FAILS, HOLDS
from rjem_cli.engine.data.pictures import contact_sheet, png_bytes
from rjem_cli.engine.model.checkpoint import read_info
from rjem_cli.engine.report.chains import ChainPictures
from rjem_cli.engine.report.figures import Curve, training_curves
from rjem_cli.engine.training.metrics import numbers_in, read_lines
from rjem_cli.paths import run_of

OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # told apart by all eyes
PANELS = (  # label, what of metrics.jsonl, the second dashed, log scale
    ("E(x): data solid, chains dashed", ("energy_data", "energy_buffer"), False),
    ("accuracy on validation images", ("val_accuracy",), False),
    ("R1 = |dE/dx| on data", ("r1",), True),
    ("saturation of the chains", ("saturation",), False),
)
MARKS = {HOLDS: "holds", FAILS: "fails"}  # CSS classes of verdicts


@dataclass(frozen=True)
class Run:
    """What metrics.jsonl and a checkpoint's own config tell of it."""

    name: str
    lines: list[dict[str, Any]]
    settings: dict[str, Any]


@dataclass(frozen=True)
class Family:
    """Runs of one model, a seed each, drawn in one colour."""

    name: str
    color: str
    runs: list[Run]

    @property
    def events(self) -> list[tuple[int, str]]:
        return [(line["at"], self.color) for run in self.runs for line in run.lines if "event" in line]


def page_of(comparison: Comparison, command: Sequence[str], chains: Mapping[str, ChainPictures]) -> str:
    """`command` is what made it; `chains` has watched chains by the name of their run."""
    from jinja2 import Environment, StrictUndefined

    source = resources.files("rjem_cli.engine.comparison").joinpath("page.html").read_text(encoding="utf-8")
    template = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    rows, families = comparison.rows, families_of(comparison.rows)
    runs = [run for family in families for run in family.runs]
    return template.from_string(source).render(
        version=__version__,
        command=shlex.join(command),
        columns=[COLUMNS[name].label for name in columns_of(rows)],
        rows=[table_row(rows, place) for place in range(len(rows))],
        notes=limits_of(rows),
        orderings=[(ordering, MARKS.get(ordering.verdict, "open")) for ordering in comparison.orderings],
        sheets=[*real_sheets(rows), *sample_sheets(rows)],
        families=families,
        divergences=sum(len(family.events) for family in families),
        curves=[(label, uri(figure, "svg+xml")) for label, figure in curves_of(families)],
        chains=[(name, uri(each.film, "png"), uri(each.energies, "png")) for name, each in chains.items()],
        protocols=protocols_of(rows),
        runs=runs,
        differing=differing(runs),
    )


def uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def table_row(rows: Sequence[Row], place: int) -> tuple[Row, list[tuple[str, bool]]]:
    row = rows[place]
    return row, [(value_text(row, column), place in best_of(rows, column)) for column in columns_of(rows)]


def sheet_picture(title: str, caption: str, sheet: Sheet) -> dict[str, Any]:
    picture = contact_sheet(sheet.pixels, sheet.columns)
    return {
        "title": title,
        "caption": caption,
        "classes": sheet.classes,
        "uri": uri(png_bytes(picture), "png"),
        "width": picture.width,
    }


def real_sheets(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Of each set that some row was compared with."""
    found = {origin.real.name: origin.real for row in rows for origin in row.origins if origin.real}
    return [sheet_picture(name, f"real images, some of {sheet.of}", sheet) for name, sheet in found.items()]


def sample_sheets(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Of each row's first seed."""
    found = [(row, origin) for row in rows for origin in row.origins[:1] if origin.samples]
    return [
        sheet_picture(row.name, f"{origin.name}: some of {origin.samples.of} samples", origin.samples)
        for row, origin in found
        if origin.samples
    ]


def families_of(rows: Sequence[Row]) -> list[Family]:
    """The runs behind the rows; rows of the same runs share a family."""
    found: dict[tuple[Path, ...], list[Run]] = {}
    for row in rows:
        paths = tuple(dict.fromkeys(origin.checkpoint for origin in row.origins if origin.checkpoint))
        runs = [run for path in paths if (run := read_run(path))]
        if runs:
            found.setdefault(paths, runs)
    colors = palette(len(found))
    return [Family(name_of(runs), color, runs) for color, runs in zip(colors, found.values())]


def read_run(checkpoint: Path) -> Run | None:
    """None for a checkpoint that lies in no run's folder."""
    folder = run_of(checkpoint)
    if folder is None:
        return None
    return Run(folder.name, read_lines(folder / "metrics.jsonl"), read_info(checkpoint).config.to_dict())


def name_of(runs: Sequence[Run]) -> str:
    """`digits-{0,1,2}` for digits-0, digits-1 and digits-2."""
    names = [run.name for run in runs]
    heads = {name.rpartition("-")[0] for name in names}
    if len(names) == 1 or len(heads) > 1:
        return ", ".join(names)
    return f"{heads.pop()}-{{{','.join(name.rpartition('-')[2] for name in names)}}}"


def palette(count: int) -> list[str]:
    if count <= len(OKABE_ITO):
        return list(OKABE_ITO[:count])
    hues = [colorsys.hls_to_rgb(place / count, 0.4, 0.8) for place in range(count)]
    return ["#" + "".join(f"{round(255 * part):02x}" for part in color) for color in hues]


def curves_of(families: Sequence[Family]) -> list[tuple[str, bytes]]:
    """(label, SVG) of each panel that some run has values for; a cross marks each divergence."""
    events = [event for family in families for event in family.events]
    panels = []
    for label, measures, log in PANELS:
        curves = [
            Curve(*points, color=family.color, dashed=bool(place))
            for family in families
            for run in family.runs
            for place, measure in enumerate(measures)
            if (points := points_of(run, measure, log))[0]
        ]
        if curves:
            panels.append((label, training_curves(curves, events, label, log=log)))
    return panels


def points_of(run: Run, measure: str, log: bool) -> tuple[list[int], list[float]]:
    """(steps, values) of the lines that have it, and can be drawn."""
    found = [(line["step"], numbers_in(line).get(measure)) for line in run.lines if "event" not in line]
    points = [(step, value) for step, value in found if value is not None and (value > 0 or not log)]
    return [step for step, _ in points], [value for _, value in points]


def protocols_of(rows: Sequence[Row]) -> list[tuple[str, str, dict[str, Any]]]:
    """(columns, rows, protocol) of each protocol, once."""
    found: dict[tuple[str, str], tuple[list[str], dict[str, Any]]] = {}
    for column in columns_of(rows):
        for group in groups_of(rows, column):
            protocol = flattened(rows[group[0]].protocols.get(column, {}))
            if protocol:
                names = ", ".join(rows[place].name for place in group)
                columns, _ = found.setdefault((names, repr(protocol)), ([], protocol))
                columns.append(COLUMNS[column].label)
    return [(", ".join(columns), names, protocol) for (names, _), (columns, protocol) in found.items()]


def differing(runs: Sequence[Run]) -> list[str]:
    """The settings that not all runs share."""
    return [key for key in runs[0].settings if len({repr(run.settings.get(key)) for run in runs}) > 1] if runs else []
