"""The transcription of the paper's tables, by what can be computed again from it."""

from __future__ import annotations

import csv
import subprocess
import sys

import pandas as pd
import pytest

from fisherdyn.sweep.orders import FIGURE_4
from paper_figures import consistency, published


def test_disagreements_are_the_known_ones():
    known = pd.read_csv(published.PAPER / "disagreements.csv", dtype=str)
    found = consistency.disagreements()
    pd.testing.assert_frame_equal(found.reset_index(drop=True).astype(str), known.astype(str))


@pytest.fixture
def changed(monkeypatch):
    """The results with one number changed."""

    def change(value, **where):
        rows = published.results().copy()
        chosen = pd.Series(True, index=rows.index)
        for column, wanted in where.items():
            chosen &= rows[column] == wanted
        assert chosen.sum() == 1
        rows.loc[chosen, "value"] = value
        monkeypatch.setattr(published, "results", lambda: rows)
        return consistency.disagreements()

    return change


WRONG = {
    "average over languages": (
        60.9,
        "F1",
        {"source": "Table 8", "dataset": "MLQA", "model": "mBERT", "language": "de"},
    ),
    "one number, two tables": (57.9, "F1", {"source": "Table 1", "model": "XLM-R", "train_examples": "5000"}),
    "lowest language": (20.0, "accuracy", {"source": "Table 9", "model": "mBERT", "language": "ta"}),
    "exact match above F1": (70.0, "EM", {"source": "Table 2", "dataset": "MLQA", "model": "mBERT", "language": "ar"}),
}


@pytest.mark.parametrize("check", WRONG)
def test_a_wrong_digit_is_found(changed, check):
    value, metric, where = WRONG[check]
    before = int((consistency.disagreements()["check"] == check).sum())
    after = changed(value, method="standard", metric=metric, **where)
    assert int((after["check"] == check).sum()) > before


def test_every_table_is_there_and_whole():
    results = published.results()
    shapes = {1: 24, 2: 144, 7: 8, 8: 192, 9: 104, 10: 104, 11: 24, 12: 36, 13: 44, 14: 26, 15: 26}
    for number, rows in shapes.items():
        assert int((results["source"] == f"Table {number}").sum()) == rows
    assert len(published.table("table3")) == len(published.table("table4")) == 24
    assert results["value"].between(0, 100).all()
    assert not results.duplicated(
        ["source", "dataset", "model", "method", "train_examples", "language", "metric"]
    ).any()
    averages = results[(results["language"] == "average") & ~results["source"].isin(("Table 7", "Table 11"))]
    assert averages["plus_minus"].notna().all()
    assert set(results["language"]) - {"average"} == set(published.table("languages")["code"])


def test_averages_are_those_of_the_languages():
    """38 of 40 to within rounding; the two others are in disagreements.csv."""
    found = published.averages()
    assert len(found) == 40
    assert int(((found["printed"] - found["recomputed"]).abs() > published.ROUNDING).sum()) == 2
    assert set(found.groupby("dataset")["languages"].first().items()) == {
        ("MLQA", 6),
        ("XCOPA", 11),
        ("XNLI", 11),
        ("XQuAD", 10),
    }


def test_two_points_over_four_datasets():
    gain = published.gains("FUN").set_index(["model", "dataset"])["gain"]
    assert gain["mBERT"].mean() == pytest.approx(2.03, abs=0.005)
    assert gain["mBERT"]["XNLI"] == pytest.approx(3.58)
    assert gain["XLM-R"].mean() == pytest.approx(1.51)
    assert gain.mean() == pytest.approx(1.77, abs=0.005)


def test_gaps_of_figure_2():
    gaps = published.gaps()
    assert len(gaps) == 16
    gu = gaps[gaps["method"] == "GU"].set_index(["model", "dataset"])["gap"]
    assert gu["XLM-R"]["XCOPA"] == pytest.approx(58.24 - 54.99)
    assert gu["mBERT"]["XNLI"] == pytest.approx(61.67 - 63.60)
    assert int((gu > 0).sum()) == 7
    with pytest.raises(KeyError, match="LPFT with mBERT on MLQA: not in the paper's tables"):
        published.average("MLQA", "mBERT", "LPFT")


def test_notes_are_explained():
    known = set(published.table("notes")["note"])
    for path in published.PAPER.glob("*.csv"):
        if path.stem not in ("notes", "disagreements"):
            rows = list(csv.DictReader(path.read_text().splitlines()))
            assert {row["note"] for row in rows} - {""} <= known, path.name
            assert all(row["source"] for row in rows), path.name


def test_schedules_are_those_of_the_study():
    orders = {row["name"]: tuple(map(int, row["order"].split())) for _, row in published.table("schedules").iterrows()}
    assert [orders["top-down"], *(orders[f"figure-4/{i}"] for i in range(1, 10))] == list(FIGURE_4)
    assert orders["reverse"] == orders["top-down"][::-1]
    assert all(sorted(order) == list(range(11)) for order in orders.values())


def test_reading_needs_no_torch():
    code = "import sys; from paper_figures import consistency; consistency.disagreements(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_missing_table_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(published, "PAPER", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"table99\.csv is not in .*: it is part of the repository"):
        published.table("table99")
