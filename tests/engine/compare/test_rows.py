"""Laws of a comparison: what may be ranked, and what each form says of it."""

from __future__ import annotations

import csv
import io
import json

import pytest

from rjem_cli.engine.compare.formats import (
    comma_separated,
    document,
    latex,
    markdown,
    pieces,
    plain_cells,
    value_text,
    width_of,
)
from rjem_cli.engine.compare.notes import limits_of, notes_of, reasons
from rjem_cli.engine.compare.reproduce import over_seeds
from rjem_cli.engine.compare.rows import Comparison, Row, best_of, columns_of, groups_of, published_rows
from rjem_cli.engine.compare.table1 import TABLE1, orderings

ONE = {"reference": {"name": "digits", "count": 900}, "samples": 1000}
OTHER = {"reference": {"name": "digits", "count": 900}, "samples": 500}


def row(name, value, protocol=ONE, **more):
    return Row(name, {"fid": value, **more}, {"fid": protocol})


def test_the_papers_rows_are_quoted_as_it_prints_them():
    """METHOD's copy of Table 1."""
    table = {row.name: (row.scores["isc_mean"], row.scores["fid"]) for row in published_rows()}
    assert table == {
        "Residual Flow": (3.69, 46.40),
        "Glow": (3.92, 48.90),
        "JEM++": (7.54, 48.25),
        "Single Robust Classifier": (7.05, 85.12),
        "Robust JEM-Energy": (8.71, 41.17),
        "Robust JEM": (9.28, 47.92),
    }
    assert all(row.quoted and not row.protocols for row in published_rows())


def test_the_best_is_the_lowest_or_the_highest_and_ties_share_it():
    rows = [row("a", 3.0, recall=0.1), row("b", 1.0, recall=0.5), row("c", 1.0, recall=0.2)]
    assert best_of(rows, "fid") == {1, 2} and best_of(rows, "recall") == {1}
    assert best_of([row("a", 1.0), row("b", 1.0)], "fid") == set()  # all as good
    assert best_of([row("a", 1.0)], "fid") == set()  # nothing beside it


def test_quoted_rows_are_never_ranked_nor_kept_from_ranking_others():
    rows = [row("a", 50.0), row("b", 60.0), *published_rows()]
    assert best_of(rows, "fid") == {0}  # though Robust JEM-Energy is quoted with 41.17
    assert not any(place > 1 for group in groups_of(rows, "fid") for place in group)


def test_rows_of_different_protocols_are_not_ranked_and_it_is_said_why():
    of_few = {**ONE, "reference": {"name": "digits", "count": 10}}
    rows = [row("a", 3.0), row("b", 1.0, of_few), row("c", 2.0)]
    assert best_of(rows, "fid") == set() and groups_of(rows, "fid") == [[0, 2], [1]]
    assert reasons(rows) == ["FID: not ranked, reference count is 900 (a/c), 10 (b)"]
    comparison = Comparison(rows)
    assert "**" not in markdown(comparison) and "- FID: not ranked" in markdown(comparison)
    assert "% FID: not ranked" in latex(comparison)


def test_where_only_counts_differ_the_remedy_is_told():
    assert reasons([row("a", 3.0), row("b", 1.0, OTHER)]) == [
        "FID: not ranked, samples is 1000 (a), 500 (b); --num 500 scores as many of each"
    ]
    far = {**OTHER, "reference": {"name": "cifar10", "count": 900}}
    assert not any("--num" in reason for reason in reasons([row("a", 3.0), row("b", 1.0, far)]))


def test_a_best_of_one_measurement_is_said_to_be_one():
    once = [row("a", 3.0, gradient_steps=5.0), row("b", 1.0, gradient_steps=9.0)]
    assert limits_of(once) == ["FID: the best of one measurement each, whose deviation is not known"]
    several = [Row(name, {"fid": value}, spreads={"fid": 0.1}) for name, value in (("a", 3.0), ("b", 1.0))]
    assert limits_of(several) == []
    close = [Row(name, {"fid": value}, spreads={"fid": 0.1}) for name, value in (("a", 1.1), ("b", 1.0))]
    assert limits_of(close) == ["FID: no best is marked, for all lie within their deviations"]


def test_the_same_protocol_in_another_order_is_the_same():
    assert best_of([row("a", 3.0), row("b", 1.0, dict(reversed(ONE.items())))], "fid") == {1}


def test_each_form_says_the_same():
    rows = [row("a_1 & co | x", 3.21987), row("b", 2.5), *published_rows()]
    comparison = Comparison(rows)
    assert "| a\\_1 & co \\| x | - | 3.22 |" in markdown(comparison) and "| b | - | **2.50** |" in markdown(comparison)
    tex = latex(comparison)
    assert r"a\_1 \& co | x & - & 3.22 \\" in tex and r"b & - & \textbf{2.50} \\" in tex
    assert r"\toprule" in tex and tex.count(r"\begin{tabular}{lrr}") == 1
    read = list(csv.DictReader(io.StringIO(comma_separated(comparison))))
    assert [float(line["fid"]) for line in read] == [each.scores["fid"] for each in rows]  # full digits
    assert read[0]["isc_mean"] == "" and read[0]["quoted"] == "" and read[-1]["quoted"]
    found = json.loads(json.dumps(document(comparison), allow_nan=False))
    assert [each["best"] for each in found["rows"][:3]] == [[], ["fid"], []]


@pytest.mark.parametrize(
    ("value", "text"),
    [(2.35e3, "2350"), (53.94, "53.9"), (0.000123, "0.000123"), (9.0, "9.00"), (100.0, "100"), (1e300, "1.00e+300")],
)
def test_a_distance_is_told_in_three_digits(value, text):
    assert value_text(Row("a", {"fd_judge": value}), "fd_judge") == text


def test_a_script_gets_numbers_and_deviations_in_columns_of_their_own():
    rows = [Row("a", {"fid": 1.5, "recall": 0.25}, spreads={"fid": 0.2}), Row("b", {"fid": 2.5}, spreads={"fid": 0.0})]
    titles, (one, other) = plain_cells(rows)
    assert titles == ["model", "FID", "recall", "± FID"]
    assert one == ["a", "1.50", "0.250", "0.2"] and other == ["b", "2.50", "-", "-"]


def test_what_limits_all_rows_is_said_once():
    rows = [Row("a", {}, notes=("of few", "small")), Row("b", {}, notes=("of few",)), *published_rows()]
    quoted, *own = limits_of(rows)
    assert "Glow: Kingma & Dhariwal 2018" in quoted and own == ["of few", "a: small"]


@pytest.mark.parametrize("width", [40, 60, 80, 120, 10**9])
def test_a_terminal_gets_pieces_that_fit(width):
    rows = [row("a", 3.0, recall=0.5, accuracy=0.9, images_seen=1e6, kid_mean=1e-3), *published_rows()]
    found = pieces(rows, width)
    assert [column for _, columns in found for column in columns] == columns_of(rows)
    assert all(width_of(some, columns) <= width or len(columns) == 1 for some, columns in found)
    assert (len(found) == 1) == (width >= 120)
    assert all(each in some for some, columns in found for each in rows if set(columns) & each.scores.keys())


def test_seeds_become_mean_and_deviation():
    rows = [row("JEM++", value, recall=value / 10) for value in (1.0, 2.0, 3.0)]
    mean = over_seeds(rows)
    assert mean.scores["fid"] == 2.0 and mean.spreads["fid"] == pytest.approx(1.0)
    assert mean.protocols["fid"] == ONE and mean.seeds == 3
    mixed = over_seeds([row("JEM++", 1.0), row("JEM++", 2.0, OTHER)])
    assert not best_of([mixed, row("b", 9.0)], "fid") and len(groups_of([mixed, row("b", 9.0, OTHER)], "fid")) == 2
    assert "2.00 ± 1" in markdown(Comparison([mean])) and over_seeds(rows[:1]) == rows[0]


@pytest.mark.parametrize(
    ("energy", "combined", "spread", "word"),
    [(1.0, 2.0, 0.1, "holds"), (2.0, 1.0, 0.1, "does not hold"), (1.0, 1.1, 0.1, "is not resolved")],
)
def test_the_papers_orderings_are_told_as_they_are(energy, combined, spread, word):
    """The paper has FID 41.17 for energy and 47.92 for combined."""
    rows = [
        Row("Robust JEM-Energy", {"fd_judge": energy}, spreads={"fd_judge": spread}),
        Row("Robust JEM", {"fd_judge": combined}, spreads={"fd_judge": spread}),
        Row("JEM++", {"fd_judge": 5.0}, spreads={"fd_judge": spread}),
        Row("Single Robust Classifier", {}),
    ]
    found = list(orderings(rows))
    assert len(found) == 12  # pairs of four rows, in two columns
    verdicts = {each.claim: each.verdict for each in found}
    assert verdicts["FD-judge: Robust JEM-Energy < Robust JEM"] == word
    assert verdicts["FD-judge: Robust JEM < JEM++"] == "holds"
    assert [claim for claim, told in verdicts.items() if told == "cannot be told"] == [
        claim for claim in verdicts if claim.startswith("IS:") or "Single Robust Classifier" in claim
    ]
    assert set(notes_of(Comparison(rows, tuple(found)))) >= {each.text for each in found}


def test_a_verdict_says_how_many_seeds_it_rests_on():
    one = [Row(entry.name, {"fid": place}) for place, entry in enumerate(TABLE1)]
    told = [each for each in orderings(one) if each.verdict != "cannot be told"]
    assert len(told) == 6 and all(each.why.endswith("; one seed") for each in told)
    assert {each.verdict for each in told} == {"holds on one measurement", "does not hold on one measurement"}
    three = [over_seeds([row(entry.name, place + seed / 9) for seed in range(3)]) for place, entry in enumerate(TABLE1)]
    assert "holds: FID: JEM++ < Single Robust Classifier (0.111 ± 0.11 and 1.11 ± 0.11; 3 seeds)" in {
        each.text for each in orderings(three)
    }


def test_what_seeds_do_not_tell_apart_shares_the_best():
    close = Row("a", {"fid": 1.0}, spreads={"fid": 0.2}), Row("b", {"fid": 1.3}, spreads={"fid": 0.2})
    far = Row("c", {"fid": 2.0}, spreads={"fid": 0.1})
    assert best_of([*close, far], "fid") == {0, 1} and best_of(close, "fid") == set()


def test_verdicts_and_ranks_agree_on_what_can_be_compared():
    rows = [
        row(entry.name, float(place), OTHER if entry.mode == "combined" else ONE) for place, entry in enumerate(TABLE1)
    ]
    assert best_of(rows, "fid") == set()
    for each in orderings(rows):
        of_other = each.claim.startswith("IS") or each.claim.endswith(" Robust JEM") or " Robust JEM <" in each.claim
        assert (each.verdict == "cannot be told") == of_other
    assert any("samples is" in each.why for each in orderings(rows))


def test_no_name_breaks_a_form():
    comparison = Comparison([row("[a\nb\x1b[31m\u202ec", 1.0), row("a\\|b", 2.0)])
    for form in (markdown, latex):
        text = form(comparison)
        assert not any(sign in text for sign in "\x1b\u202e") and "a\nb" not in text
    assert "{[}a" in latex(comparison) and "| a\\\\\\|b |" in markdown(comparison)
