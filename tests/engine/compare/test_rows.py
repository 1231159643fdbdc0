"""Laws of a comparison: which rows are ranked, and how each format shows it."""

from __future__ import annotations

import csv
import io
import json

import pytest

from rjem_cli.engine.compare.formats import (
    describe_comparison,
    format_value,
    split_columns,
    table_width,
    to_csv,
    to_latex,
    to_markdown,
    to_tsv,
)
from rjem_cli.engine.compare.notes import TABLE1, all_notes, check_orderings, row_notes, unranked_notes
from rjem_cli.engine.compare.reproduce import average_seeds
from rjem_cli.engine.compare.rows import Comparison, Row, find_best, group_rows, present_columns, read_published_rows

ONE = {"reference": {"name": "digits", "count": 900}, "samples": 1000}
OTHER = {"reference": {"name": "digits", "count": 900}, "samples": 500}


def row(name, value, protocol=ONE, **more):
    return Row(name, {"fid": value, **more}, {"fid": protocol})


def test_the_papers_rows_are_quoted_as_it_prints_them():
    """METHOD's copy of Table 1."""
    table = {row.name: (row.scores["isc_mean"], row.scores["fid"]) for row in read_published_rows()}
    assert table == {
        "Residual Flow": (3.69, 46.40),
        "Glow": (3.92, 48.90),
        "JEM++": (7.54, 48.25),
        "Single Robust Classifier": (7.05, 85.12),
        "Robust JEM-Energy": (8.71, 41.17),
        "Robust JEM": (9.28, 47.92),
    }
    assert all(row.quoted and not row.protocols for row in read_published_rows())


def test_the_best_is_the_lowest_or_the_highest_and_ties_share_it():
    rows = [row("a", 3.0, recall=0.1), row("b", 1.0, recall=0.5), row("c", 1.0, recall=0.2)]
    assert find_best(rows, "fid") == {1, 2} and find_best(rows, "recall") == {1}
    assert find_best([row("a", 1.0), row("b", 1.0)], "fid") == set()  # all as good
    assert find_best([row("a", 1.0)], "fid") == set()  # nothing beside it


def test_quoted_rows_are_not_ranked_and_do_not_keep_others_from_being_ranked():
    rows = [row("a", 50.0), row("b", 60.0), *read_published_rows()]
    assert find_best(rows, "fid") == {0}  # though Robust JEM-Energy is quoted with 41.17
    assert not any(index > 1 for group in group_rows(rows, "fid") for index in group)


def test_rows_of_different_protocols_are_not_ranked_and_a_note_names_the_difference():
    of_few = {**ONE, "reference": {"name": "digits", "count": 10}}
    rows = [row("a", 3.0), row("b", 1.0, of_few), row("c", 2.0)]
    assert find_best(rows, "fid") == set() and group_rows(rows, "fid") == [[0, 2], [1]]
    assert unranked_notes(rows) == ["FID: not ranked, reference count is 900 (a/c), 10 (b)"]
    comparison = Comparison(rows)
    assert "**" not in to_markdown(comparison) and "- FID: not ranked" in to_markdown(comparison)
    assert "% FID: not ranked" in to_latex(comparison)


def test_if_only_counts_differ_a_note_suggests_num():
    assert unranked_notes([row("a", 3.0), row("b", 1.0, OTHER)]) == [
        "FID: not ranked, samples is 1000 (a), 500 (b); --num 500 scores the same number of each"
    ]
    far = {**OTHER, "reference": {"name": "cifar10", "count": 900}}
    assert not any("--num" in reason for reason in unranked_notes([row("a", 3.0), row("b", 1.0, far)]))


def test_a_find_best_one_measurement_is_said_to_be_one():
    once = [row("a", 3.0, gradient_steps=5.0), row("b", 1.0, gradient_steps=9.0)]
    assert row_notes(once) == ["FID: the best is of one measurement each, with unknown deviation"]
    several = [Row(name, {"fid": value}, spreads={"fid": 0.1}) for name, value in (("a", 3.0), ("b", 1.0))]
    assert row_notes(several) == []
    close = [Row(name, {"fid": value}, spreads={"fid": 0.1}) for name, value in (("a", 1.1), ("b", 1.0))]
    assert row_notes(close) == ["FID: no best is marked, because all rows are within their deviations"]


def test_the_same_protocol_in_another_order_is_the_same():
    assert find_best([row("a", 3.0), row("b", 1.0, dict(reversed(ONE.items())))], "fid") == {1}


def test_all_formats_show_the_same_scores():
    rows = [row("a_1 & co | x", 3.21987), row("b", 2.5), *read_published_rows()]
    comparison = Comparison(rows)
    assert "| a\\_1 & co \\| x | - | 3.22 |" in to_markdown(comparison) and "| b | - | **2.50** |" in to_markdown(
        comparison
    )
    tex = to_latex(comparison)
    assert r"a\_1 \& co | x & - & 3.22 \\" in tex and r"b & - & \textbf{2.50} \\" in tex
    assert r"\toprule" in tex and tex.count(r"\begin{tabular}{lrr}") == 1
    read = list(csv.DictReader(io.StringIO(to_csv(comparison))))
    assert [float(line["fid"]) for line in read] == [each.scores["fid"] for each in rows]  # full digits
    assert read[0]["isc_mean"] == "" and read[0]["quoted"] == "" and read[-1]["quoted"]
    document = json.loads(json.dumps(describe_comparison(comparison), allow_nan=False))
    assert [each["best"] for each in document["rows"][:3]] == [[], ["fid"], []]


@pytest.mark.parametrize(
    ("value", "text"),
    [(2.35e3, "2350"), (53.94, "53.9"), (0.000123, "0.000123"), (9.0, "9.00"), (100.0, "100"), (1e300, "1.00e+300")],
)
def test_a_distance_has_three_digits(value, text):
    assert format_value(Row("a", {"fd_judge": value}), "fd_judge") == text


def test_a_script_gets_numbers_and_deviations_in_present_columns_their_own():
    rows = [Row("a", {"fid": 1.5, "recall": 0.25}, spreads={"fid": 0.2}), Row("b", {"fid": 2.5}, spreads={"fid": 0.0})]
    assert to_tsv(Comparison(rows)) == "model\tFID\trecall\t± FID\na\t1.50\t0.250\t0.2\nb\t2.50\t-\t-\n"


def test_a_note_on_all_rows_appears_once():
    rows = [Row("a", {}, notes=("of few", "small")), Row("b", {}, notes=("of few",)), *read_published_rows()]
    quoted, *own = row_notes(rows)
    assert "Glow: Kingma & Dhariwal 2018" in quoted and own == ["of few", "a: small"]


@pytest.mark.parametrize("width", [40, 60, 80, 120, 10**9])
def test_a_wide_table_is_split_to_fit_the_terminal(width):
    rows = [row("a", 3.0, recall=0.5, accuracy=0.9, images_seen=1e6, kid_mean=1e-3), *read_published_rows()]
    parts = split_columns(rows, width)
    assert [column for _, columns in parts for column in columns] == present_columns(rows)
    assert all(table_width(shown, columns) <= width or len(columns) == 1 for shown, columns in parts)
    assert (len(parts) == 1) == (width >= 120)
    assert all(each in shown for shown, columns in parts for each in rows if set(columns) & each.scores.keys())


def test_seeds_are_averaged_with_their_deviation():
    rows = [row("JEM++", value, recall=value / 10) for value in (1.0, 2.0, 3.0)]
    mean = average_seeds(rows)
    assert mean.scores["fid"] == 2.0 and mean.spreads["fid"] == pytest.approx(1.0)
    assert mean.protocols["fid"] == ONE and mean.seeds == 3
    mixed = average_seeds([row("JEM++", 1.0), row("JEM++", 2.0, OTHER)])
    assert not find_best([mixed, row("b", 9.0)], "fid") and len(group_rows([mixed, row("b", 9.0, OTHER)], "fid")) == 2
    assert "2.00 ± 1" in to_markdown(Comparison([mean])) and average_seeds(rows[:1]) == rows[0]


@pytest.mark.parametrize(
    ("energy", "combined", "spread", "word"),
    [(1.0, 2.0, 0.1, "holds"), (2.0, 1.0, 0.1, "does not hold"), (1.0, 1.1, 0.1, "not resolved")],
)
def test_the_papers_orderings_get_their_verdicts(energy, combined, spread, word):
    """The paper has FID 41.17 for energy and 47.92 for combined."""
    rows = [
        Row("Robust JEM-Energy", {"fd_judge": energy}, spreads={"fd_judge": spread}),
        Row("Robust JEM", {"fd_judge": combined}, spreads={"fd_judge": spread}),
        Row("JEM++", {"fd_judge": 5.0}, spreads={"fd_judge": spread}),
        Row("Single Robust Classifier", {}),
    ]
    checked = list(check_orderings(rows))
    assert len(checked) == 12  # pairs of four rows, in two columns
    verdicts = {each.claim: each.verdict for each in checked}
    assert verdicts["FD-judge: Robust JEM-Energy < Robust JEM"] == word
    assert verdicts["FD-judge: Robust JEM < JEM++"] == "holds"
    assert [claim for claim, verdict in verdicts.items() if verdict == "unknown"] == [
        claim for claim in verdicts if claim.startswith("IS:") or "Single Robust Classifier" in claim
    ]
    assert set(all_notes(Comparison(rows, tuple(checked)))) >= {each.text for each in checked}


def test_a_verdict_names_its_number_of_seeds():
    one = [Row(entry.name, {"fid": index}) for index, entry in enumerate(TABLE1)]
    known = [each for each in check_orderings(one) if each.verdict != "unknown"]
    assert len(known) == 6 and all(each.reason.endswith("; one seed") for each in known)
    assert {each.verdict for each in known} == {"holds on one measurement", "does not hold on one measurement"}
    three = [
        average_seeds([row(entry.name, index + seed / 9) for seed in range(3)]) for index, entry in enumerate(TABLE1)
    ]
    assert "holds: FID: JEM++ < Single Robust Classifier (0.111 ± 0.11 and 1.11 ± 0.11; 3 seeds)" in {
        each.text for each in check_orderings(three)
    }


def test_scores_within_their_deviations_share_the_best():
    close = Row("a", {"fid": 1.0}, spreads={"fid": 0.2}), Row("b", {"fid": 1.3}, spreads={"fid": 0.2})
    far = Row("c", {"fid": 2.0}, spreads={"fid": 0.1})
    assert find_best([*close, far], "fid") == {0, 1} and find_best(close, "fid") == set()


def test_rows_that_cannot_be_ranked_get_no_verdict():
    rows = [
        row(entry.name, float(index), OTHER if entry.mode == "combined" else ONE) for index, entry in enumerate(TABLE1)
    ]
    assert find_best(rows, "fid") == set()
    for each in check_orderings(rows):
        of_other = each.claim.startswith("IS") or each.claim.endswith(" Robust JEM") or " Robust JEM <" in each.claim
        assert (each.verdict == "unknown") == of_other
    assert any("samples is" in each.reason for each in check_orderings(rows))


def test_no_name_breaks_a_format():
    comparison = Comparison([row("[a\nb\x1b[31m\u202ec", 1.0), row("a\\|b", 2.0)])
    for form in (to_markdown, to_latex):
        text = form(comparison)
        assert not any(sign in text for sign in "\x1b\u202e") and "a\nb" not in text
    assert "{[}a" in to_latex(comparison) and "| a\\\\\\|b |" in to_markdown(comparison)
