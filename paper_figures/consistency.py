"""Do the paper's numbers agree with one another? Each check computes again what follows from other numbers."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from . import published
from .published import DATASETS, METRIC, PER_LANGUAGE, ROUNDING, pick

MODELS = ("mBERT", "XLM-R")
MAIN = ("Table 8", "Table 9", "Table 10")
NO_TARGETS = ("en", "average")
Row = tuple[str, str, str, str]


def disagreements() -> pd.DataFrame:
    """All disagreements, with columns check, where, printed and recomputed, as text.

    data/paper/disagreements.csv holds the known ones; a test compares the two.
    """
    checks = (
        _averages,
        _repeated_numbers,
        _lowest_languages,
        _exact_above_f1,
        _numbers_of_runs,
        _numbers_of_languages,
        _sentences,
    )
    rows = [row for check in checks for row in check()]
    return pd.DataFrame(rows, columns=["check", "where", "printed", "recomputed"])


def _where(row: pd.Series) -> str:
    return f"{row['source']}: {row['dataset']} {row['model']} {row['method']}"


def _averages() -> Iterator[Row]:
    """An average over languages is the mean of the printed numbers."""
    for _, row in published.averages().iterrows():
        if abs(row["printed"] - row["recomputed"]) > ROUNDING:
            where = f"{_where(row)} {row['metric']}, {row['languages']} languages"
            yield "average over languages", where, f"{row['printed']:.2f}", f"{row['recomputed']:.2f}"


def _repeated_numbers() -> Iterator[Row]:
    """A number that stands in two tables is the same in both."""
    key = ["dataset", "model", "method", "train_examples", "language", "metric"]
    results = published.results()
    differing = results[results.groupby(key)["value"].transform("nunique") > 1]
    for _, group in differing.groupby(key, sort=False):
        first, other = group.drop_duplicates("value").iloc[0], group.drop_duplicates("value").iloc[1]
        where = f"{_where(first)} {first['language']} {first['metric']}, again in {other['source']}"
        yield "one number, two tables", where, f"{first['value']:.2f}", f"{other['value']:.2f}"


def _lowest_languages() -> Iterator[Row]:
    """The lowest language in Table 2 is that of standard training."""
    for dataset in DATASETS:
        for model in MODELS:
            results = pick(published.results(), dataset=dataset, model=model)
            printed = set(pick(results, source="Table 2")["language"]) - set(NO_TARGETS)
            standard = pick(results, method="standard", metric=METRIC[dataset], train_examples="all")
            targets = standard[standard["source"].isin(MAIN) & ~standard["language"].isin(NO_TARGETS)]
            lowest = targets.loc[targets["value"].idxmin(), "language"]
            if printed != {lowest}:
                yield "lowest language", f"Table 2: {dataset} {model}", ", ".join(sorted(printed)), lowest


def _exact_above_f1() -> Iterator[Row]:
    """Exact match is never above F1."""
    wide = published.results().pivot_table(
        index=["source", "dataset", "model", "method", "language"], columns="metric", values="value", sort=False
    )
    for key, row in wide[wide["EM"] > wide["F1"]].iterrows():
        where = f"{key[0]}: {' '.join(key[1:])}"
        yield "exact match above F1", where, f"EM {row['EM']:.2f}", f"F1 {row['F1']:.2f}"


def _numbers_of_runs() -> Iterator[Row]:
    """A mean over 4 runs of 500 items is a multiple of 100 / 2000; XCOPA has 500 items."""
    xcopa = pick(published.results(), dataset="XCOPA")
    targets = xcopa[~xcopa["language"].isin(NO_TARGETS) & xcopa["source"].isin(PER_LANGUAGE)]
    for source, group in targets.groupby("source"):
        four = sum(_is_multiple(value, 100 / (4 * 500)) for value in group["value"])
        five = sum(_is_multiple(value, 100 / (5 * 500)) for value in group["value"])
        n = len(group)
        if four < n:
            where = f"{source}: XCOPA, {n} means of languages"
            yield "number of runs", where, f"4 runs of 500 items: {four} of {n}", f"5 runs of 500 items: {five} of {n}"


def _is_multiple(value: float, unit: float) -> bool:
    return abs(value / unit - round(value / unit)) < 1e-6


def _numbers_of_languages() -> Iterator[Row]:
    """Table 5 counts the languages of the test data, with or without English."""
    for _, row in published.table("table5").iterrows():
        tested = int(published.table("languages")[row["test_data"]].sum())
        if row["languages"] not in (tested, tested - 1):
            where = f"Table 5: {row['test_data']}"
            yield "number of languages", where, str(row["languages"]), f"{tested - 1} and English"


def _sentences() -> Iterator[Row]:
    """Numbers in the text follow from the tables."""
    gain = published.gains("FUN").set_index(["model", "dataset"])["gain"]
    mean = gain.mean()
    if abs(mean - 2) > 0.05:
        each = ", ".join(f"{gain[model].mean():.2f} {model}" for model in MODELS)
        where = "Abstract: FUN over standard training, mean of four data sets"
        yield "words", where, "2 points", f"{mean:.2f} ({each})"
    better, columns = _better_in_english("XLM-R", ("F1", "EM", "accuracy"))
    if (better, columns) != (6, 8):
        main = sum(_better_in_english(model, ("F1", "accuracy"))[0] for model in MODELS)
        recomputed = f"{better} of {columns} for XLM-R; {main} of 8 for both models by F1 and accuracy"
        yield "words", "Section 5.3: XLM-R with FUN above GU in English", "6 of 8", recomputed
    worse = [
        f"{dataset} {model} {method}"
        for dataset in DATASETS
        for model in MODELS
        for method in ("GU", "FUN")
        if _lowest(dataset, model, method) < _lowest(dataset, model, "standard")
    ]
    if worse:
        yield "words", "Section 5.3: the lowest language improved across the board", "all 16", f"not {', '.join(worse)}"


def _better_in_english(model: str, metrics: tuple[str, ...]) -> tuple[int, int]:
    """In how many of Table 2's English columns with these metrics FUN is above GU, and the number of columns."""
    english = pick(published.results(), source="Table 2", model=model, language="en")
    wide = english[english["metric"].isin(metrics)].pivot_table(
        index=["dataset", "metric"], columns="method", values="value"
    )
    return int((wide["FUN"] > wide["GU"]).sum()), len(wide)


def _lowest(dataset: str, model: str, method: str) -> float:
    """Table 2's number for the lowest language."""
    rows = pick(published.results(), source="Table 2", dataset=dataset, model=model, method=method)
    rows = pick(rows, metric=METRIC[dataset])
    return float(rows[~rows["language"].isin(NO_TARGETS)]["value"].iloc[0])
