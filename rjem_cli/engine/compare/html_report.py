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
from rjem_cli.engine.compare.formats import name_text, value_text
from rjem_cli.engine.compare.image_grid import Sheet
from rjem_cli.engine.compare.notes import limits_of, tally_of
from rjem_cli.engine.compare.rows import COLUMNS, Comparison, Origin, Protocol, Row, columns_of, flattened, marks_of
from rjem_cli.engine.compare.table1 import FAILS, HOLDS
from rjem_cli.engine.data.png import contact_sheet, png_bytes
from rjem_cli.engine.figures import Curve, training_curves
from rjem_cli.engine.sampling.chains import ChainPictures
from rjem_cli.engine.training.curves import OKABE_ITO, PANELS, points_of
from rjem_cli.engine.training.metrics_log import events_in, read_lines
from rjem_cli.paths import find_run_dir

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
        return [(line["at"], self.color) for run in self.runs for line in events_in(run.lines)]


def page_of(comparison: Comparison, command: Sequence[str], chains: Mapping[str, ChainPictures]) -> str:
    """`command` is what made it; `chains` has watched chains by the name of their run."""
    from jinja2 import Environment, StrictUndefined

    source = resources.files("rjem_cli.engine.compare").joinpath("html_report.html").read_text(encoding="utf-8")
    template = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    rows, families = comparison.rows, families_of(comparison.rows)
    runs = [run for family in families for run in family.runs]
    return template.from_string(source).render(
        version=__version__,
        command=shlex.join(command),
        columns=[COLUMNS[name].label for name in columns_of(rows)],
        rows=table_rows(rows),
        notes=limits_of(rows),
        tally=tally_of(comparison.orderings),
        orderings=[(ordering, MARKS.get(ordering.verdict, "open")) for ordering in comparison.orderings],
        sheets=[*real_sheets(rows), *sample_sheets(rows)],
        families=families,
        divergences=sum(len(events_in(run.lines)) for run in {run.name: run for run in runs}.values()),
        curves=[(label, uri(figure, "svg+xml")) for label, figure in curves_of(families)],
        chains=[(name, uri(each.film, "png"), uri(each.energies, "png")) for name, each in chains.items()],
        protocols=protocols_of(rows),
        runs=runs,
        differing=differing(runs),
    )


def uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def table_rows(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Name and cells, (text, whether it is the best), of each row."""
    marks = marks_of(rows)
    return [
        {
            "name": name_text(row),
            "quoted": row.quoted,
            "cells": [(value_text(row, column), place in best) for column, best in marks.items()],
        }
        for place, row in enumerate(rows)
    ]


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
    """Of each row's first seed that has samples."""
    found = []
    for row in rows:
        for origin in [origin for origin in row.origins if origin.samples][:1]:
            assert origin.samples
            found.append(sheet_picture(row.name, f"{origin.name}: some of {origin.samples.of} samples", origin.samples))
    return found


def families_of(rows: Sequence[Row]) -> list[Family]:
    """The runs behind the rows; rows of the same runs share a family."""
    found: dict[tuple[Path, ...], list[Run]] = {}
    for row in rows:
        folders = {folder: origin for origin in row.origins if (folder := folder_of(origin))}
        if folders:
            found.setdefault(tuple(folders), [read_run(folder, origin) for folder, origin in folders.items()])
    colors = palette(len(found))
    return [Family(name_of(runs), color, runs) for color, runs in zip(colors, found.values())]


def folder_of(origin: Origin) -> Path | None:
    return find_run_dir(origin.checkpoint) if origin.checkpoint else None


def read_run(folder: Path, origin: Origin) -> Run:
    return Run(folder.name, read_lines(folder / "metrics.jsonl"), origin.settings)


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
            if (points := points_of(run.lines, measure, log))[0]
        ]
        if curves:
            panels.append((label, training_curves(curves, events, label, log=log)))
    return panels


def protocols_of(rows: Sequence[Row]) -> list[tuple[str, dict[str, dict[str, Any]]]]:
    """(what, all that its scores depend on by what they are scores of) of each subject."""
    return [
        (row.name if row.name == origin.name else f"{row.name}, {origin.name}", flat_parts(origin.protocol))
        for row in rows
        for origin in row.origins
        if origin.protocol
    ]


def flat_parts(protocol: Protocol) -> dict[str, dict[str, Any]]:
    return {
        part: {key: value for key, value in flattened(values).items() if value not in ("", None)}
        for part, values in protocol.items()
    }


def differing(runs: Sequence[Run]) -> list[str]:
    """The settings that not all runs share, but for their names."""
    names = [name for name in runs[0].settings if name != "run"] if runs else []
    return [name for name in names if len({repr(run.settings.get(name)) for run in runs}) > 1]
