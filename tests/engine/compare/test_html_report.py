"""The HTML report is self-contained, escapes names, and fits a phone."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from PIL import Image

from rjem_cli.engine.compare.html_report import Run, RunGroup, draw_curves, group_runs, html_report
from rjem_cli.engine.compare.rows import Comparison, ImageGrid, Ordering, Origin, Row, read_published_rows
from rjem_cli.engine.figures import palette
from rjem_cli.engine.sampling.chains import ChainPictures

HOSTILE = '<script>alert(1)</script> & "quotes"'
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


class ParsedPage(HTMLParser):
    """The tags, addresses and text of a page."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href", "srcset", "action", "data")]

    def handle_data(self, data):
        self.text += data


def picture(width: int = 40) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (width, 10)).save(content, format="PNG")
    return content.getvalue()


@pytest.fixture
def comparison(tmp_path):
    """A run that diverged once, samples with hostile names, and the paper's rows."""
    run = tmp_path / "runs" / "digits"
    checkpoint = run / "checkpoints" / "step-00000040.safetensors"
    checkpoint.parent.mkdir(parents=True)
    lines = [
        {"step": step, "energy_data": -step, "energy_buffer": -step / 2, "input_grad_norm": 0.1} for step in (20, 40)
    ]
    lines.insert(1, {"step": 20, "event": "divergence", "diverged_at": 30, "reason": "loss is nan", "lr_scale": 0.5})
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    grid = ImageGrid("real", torch.zeros(20, 1, 8, 8, dtype=torch.uint8), 10, 500, (*"abcdefghi", HOSTILE))
    scoring = {
        "samples": {"count": 1000, "from": None},
        "reference": {"name": HOSTILE, "count": 900},
        "features": {"network": "judge"},
    }
    settings = {"lr": 0.1, "note": HOSTILE}
    origin = Origin("digits", grid, grid, checkpoint, "energy", settings, {"samples": scoring})
    protocol = {"fid": {"count": 900}}
    rows = [
        Row("digits (energy)", {"fid": 3.25, "divergences": 1.0}, protocol, notes=(HOSTILE,), origins=(origin,)),
        Row(HOSTILE, {"fid": 4.5}, protocol, origins=(Origin(HOSTILE, grid),)),
        *read_published_rows(),
    ]
    return Comparison(rows, (Ordering("FID: a < b", "holds", "one seed"),))


@pytest.fixture
def page(comparison):
    chains = {"digits": ChainPictures(picture(), picture(2000))}
    return html_report(comparison, ["rjem", "compare", "digits", HOSTILE], chains)


def test_the_page_is_self_contained(page):
    parsed = ParsedPage(page)
    assert parsed.addresses and all(address.startswith("data:image/") for address in parsed.addresses)
    assert not {"script", "link", "iframe", "object", "a"} & set(parsed.tags) and "@import" not in page
    assert "url(" not in page and "default-src 'none'" in page
    for address in parsed.addresses:
        kind, content = address.removeprefix("data:image/").split(";base64,")
        content = base64.b64decode(content, validate=True)
        if kind == "png":
            Image.open(io.BytesIO(content)).verify()
        else:
            assert kind == "svg+xml" and b"<svg" in content and b"<script" not in content


def test_names_are_escaped(page):
    parsed = ParsedPage(page)
    assert parsed.text.count("<script>alert(1)</script> & ") >= 6  # command, row, note, protocol, class, setting


def test_the_page_shows_rows_marks_verdicts_divergences_and_protocols(page):
    text = " ".join(ParsedPage(page).text.split())
    assert '<td class="best">3.25</td>' in page and '<td class="best">4.50</td>' not in page
    assert text.count("[quoted]") == 7  # six rows, and the explanation
    assert "holds FID: a < b (one seed)" in text and "Divergences (crosses): 1" in text
    assert "reference count900" in text and "some of 500 samples" in text
    assert "samples from" not in text  # an empty entry


def test_the_same_comparison_gives_the_same_page(page, comparison):
    chains = {"digits": ChainPictures(picture(), picture(2000))}
    assert page == html_report(comparison, ["rjem", "compare", "digits", HOSTILE], chains)


def test_quoted_rows_alone_make_a_page():
    text = ParsedPage(html_report(Comparison(read_published_rows()), ["rjem", "compare", "--published"], {})).text
    assert "47.92" in text and not any(title in text for title in ("Samples", "Training", "Protocols"))


def test_rows_of_one_run_share_its_curves(comparison):
    (row, *others) = comparison.rows
    other = replace(row.origins[0], checkpoint=row.origins[0].checkpoint.with_name("step-00000020.safetensors"))
    (group,) = group_runs([row, Row("digits (step 20)", {}, origins=(other,)), *others])
    assert len(group.runs) == 1 and len(draw_curves([group])) == 2  # energies, gradient norms


def test_divergences_of_two_runs_of_one_name_are_both_counted(comparison, tmp_path):
    (row, *others) = comparison.rows
    shutil.copytree(tmp_path / "runs", tmp_path / "copies")
    checkpoint = tmp_path / "copies" / "digits" / "checkpoints" / "step-00000040.safetensors"
    copy = Row("copy", {}, origins=(replace(row.origins[0], checkpoint=checkpoint),))
    page = html_report(Comparison([row, copy, *others]), ["rjem"], {})
    assert "Divergences (crosses): 2" in ParsedPage(page).text


def test_seeds_share_a_name_and_many_runs_have_many_colours():
    def name(*names):
        return RunGroup([Run(Path("runs", name), [], {}) for name in names], "#000000").name

    assert name("digits-0", "digits-1", "digits-2") == "digits-{0,1,2}" and name("digits-0") == "digits-0"
    assert name("a-1", "b-2") == "a-1, b-2"
    for count in (0, 1, 6, 7, 40):
        assert len(set(palette(count))) == count and all(re.fullmatch("#[0-9A-Fa-f]{6}", c) for c in palette(count))


@pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium to render the page in")
@pytest.mark.parametrize("width", [360, 1200])
def test_a_browser_shows_every_picture_and_only_tables_scroll_sideways(page, tmp_path, width):
    """The page in a frame as wide as a phone's screen or a desktop's."""
    looked = """<script>addEventListener("load", () => {
        const root = document.documentElement, pictures = [...document.images]
        parent.document.body.textContent = JSON.stringify({
            wide: root.scrollWidth, seen: root.clientWidth, pictures: pictures.length,
            drawn: pictures.filter(each => each.naturalWidth > 0 && each.clientWidth > 0).length})
    })</script>"""
    open_page = re.sub('<meta http-equiv="Content-Security-Policy"[^>]*>', "", page).replace(
        "</body>", looked + "</body>"
    )
    framed = open_page.replace("&", "&amp;").replace('"', "&quot;")
    shell = tmp_path / "shell.html"
    shell.write_text(
        f'<body><iframe style="width: {width}px; height: 800px; border: 0" srcdoc="{framed}"></iframe></body>'
    )
    offline = "--disable-background-networking --disable-component-update --disable-sync --disable-quic".split()
    shown = subprocess.run(
        [
            str(CHROMIUM),
            *"--headless --no-sandbox --disable-gpu --no-first-run --hide-scrollbars --dump-dom".split(),
            "--virtual-time-budget=5000",
            *offline,
            f"--user-data-dir={tmp_path / 'profile'}",
            shell.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    body = re.search("<body>(.*?)</body>", shown.stdout, re.DOTALL)
    assert body, shown.stderr[-2000:]
    found = json.loads(body[1])
    assert found["seen"] == width and found["wide"] <= found["seen"]
    assert found["drawn"] == found["pictures"] == len(ParsedPage(page).addresses)
