"""The paper's numbers (data/paper), and what becomes of them when they are computed again."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pandas as pd

PAPER = Path(__file__).resolve().parent.parent / "data" / "paper"
PER_LANGUAGE = ("Table 8", "Table 9", "Table 10", "Table 13", "Table 14", "Table 15")
MAIN = ("Table 8", "Table 9", "Table 10")
DATASETS = ("MLQA", "XQuAD", "XCOPA", "XNLI")
METRIC = {"MLQA": "F1", "XQuAD": "F1", "XCOPA": "accuracy", "XNLI": "accuracy"}
"""What each data set is compared by."""
_HOME = {"MLQA": "table8", "XQuAD": "table8", "XCOPA": "table9", "XNLI": "table10"}
ROUNDING = 0.01
"""A mean of numbers of two decimals, itself printed with two, may differ by this much from the mean of what is printed."""


@cache
def table(name: str) -> pd.DataFrame:
    """data/paper/NAME.csv.

    Raises:
        FileNotFoundError: with the path, which is committed: `git checkout` brings it back.
    """
    path = PAPER / f"{name}.csv"
    if not path.exists():
        raise FileNotFoundError(f"{path.name} is not in {PAPER}: it is part of the repository, restore it")
    text = {"train_examples": str, "k": str, "epochs": str, "learning_rate": str, "batch_size": str, "order": str}
    return pd.read_csv(path, dtype=text, keep_default_na=False, na_values={"value": [""], "plus_minus": [""]})


@cache
def results() -> pd.DataFrame:
    """Every printed result: source, dataset, model, method, train_examples, language, metric, value, plus_minus, note."""
    return pd.concat([table(f"table{n}") for n in (1, 2, 7, 8, 9, 10, 11, 12, 13, 14, 15)], ignore_index=True)


def average(dataset: str, model: str, method: str) -> tuple[float, float]:
    """Mean transfer as printed, and its ±; NaN where there is none (full fine-tuning has no ±).

    Raises:
        KeyError: a combination that the paper has no number for.
    """
    source = "table7" if method == "full" else _HOME[dataset]
    found = _pick(
        table(source), dataset=dataset, model=model, method=method, language="average", metric=METRIC[dataset]
    )
    if len(found) != 1:
        raise KeyError(f"{method} with {model} on {dataset}: not in the paper's tables")
    return float(found["value"].iloc[0]), float(found["plus_minus"].iloc[0])


def gaps() -> pd.DataFrame:
    """Figure 2: mean transfer minus full fine-tuning's, in points; LPFT is in the picture only and so not here."""
    rows = []
    for model in ("mBERT", "XLM-R"):
        for dataset in DATASETS:
            full, _ = average(dataset, model, "full")
            for method in ("standard", "GU"):
                mean, spread = average(dataset, model, method)
                rows.append((dataset, model, method, round(mean - full, 2), spread))
    return pd.DataFrame(rows, columns=["dataset", "model", "method", "gap", "plus_minus"])


def gains(method: str, over: str = "standard") -> pd.DataFrame:
    """Mean transfer of a method minus another's, by model and dataset, in points."""
    rows = [
        (model, dataset, round(average(dataset, model, method)[0] - average(dataset, model, over)[0], 2))
        for model in ("mBERT", "XLM-R")
        for dataset in DATASETS
    ]
    return pd.DataFrame(rows, columns=["model", "dataset", "gain"])


def averages() -> pd.DataFrame:
    """Every printed average over languages beside the mean of what is printed for each of them."""
    rows = []
    columns = ["source", "dataset", "model", "method", "metric"]
    for key, group in results()[results()["source"].isin(PER_LANGUAGE)].groupby(columns, sort=False):
        printed = group[group["language"] == "average"]["value"]
        targets = group[~group["language"].isin(("en", "average"))]["value"]
        if len(printed) and len(targets):
            rows.append((*key, len(targets), float(printed.iloc[0]), round(float(targets.mean()), 4)))
    return pd.DataFrame(rows, columns=[*columns, "languages", "printed", "recomputed"])


def disagreements() -> pd.DataFrame:
    """Where the paper's numbers do not agree with one another: check, where, printed, recomputed (as text).

    data/paper/disagreements.csv holds the ones that are known; a test holds the two together.
    """
    checks = (_averages_off, _tables_off, _lowest_off, _exact_above_f1, _runs_off, _counts_off, _words_off)
    rows = [row for check in checks for row in check()]
    return pd.DataFrame(rows, columns=["check", "where", "printed", "recomputed"])


Row = tuple[str, str, str, str]


def _pick(found: pd.DataFrame, **wanted: str) -> pd.DataFrame:
    for column, value in wanted.items():
        found = found[found[column] == value]
    return found


def _where(row: pd.Series) -> str:
    return f"{row['source']}: {row['dataset']} {row['model']} {row['method']}"


def _averages_off() -> Iterator[Row]:
    for _, row in averages().iterrows():
        if abs(row["printed"] - row["recomputed"]) > ROUNDING:
            where = f"{_where(row)} {row['metric']}, {row['languages']} languages"
            yield "average over languages", where, f"{row['printed']:.2f}", f"{row['recomputed']:.2f}"


def _tables_off() -> Iterator[Row]:
    """The same number in two tables."""
    key = ["dataset", "model", "method", "train_examples", "language", "metric"]
    differing = results()[results().groupby(key)["value"].transform("nunique") > 1]
    for _, group in differing.groupby(key, sort=False):
        first, other = group.drop_duplicates("value").iloc[0], group.drop_duplicates("value").iloc[1]
        where = f"{_where(first)} {first['language']} {first['metric']}, again in {other['source']}"
        yield "one number, two tables", where, f"{first['value']:.2f}", f"{other['value']:.2f}"


def _lowest_off() -> Iterator[Row]:
    """Table 2's lowest language is that of standard training."""
    for dataset in DATASETS:
        for model in ("mBERT", "XLM-R"):
            said = set(_pick(results(), source="Table 2", dataset=dataset, model=model)["language"]) - {"en", "average"}
            all_of = _pick(
                results(), dataset=dataset, model=model, method="standard", metric=METRIC[dataset], train_examples="all"
            )
            targets = all_of[all_of["source"].isin(MAIN) & ~all_of["language"].isin(("en", "average"))]
            lowest = targets.loc[targets["value"].idxmin(), "language"]
            if said != {lowest}:
                yield "lowest language", f"Table 2: {dataset} {model}", ", ".join(sorted(said)), lowest


def _exact_above_f1() -> Iterator[Row]:
    wide = results().pivot_table(
        index=["source", "dataset", "model", "method", "language"], columns="metric", values="value", sort=False
    )
    for key, row in wide[wide["EM"] > wide["F1"]].iterrows():
        where = f"{key[0]}: {' '.join(key[1:])}"
        yield "exact match above F1", where, f"EM {row['EM']:.2f}", f"F1 {row['F1']:.2f}"


def _runs_off() -> Iterator[Row]:
    """A mean over r runs of n items is a multiple of 100 / (r n)."""
    targets = results()[(results()["dataset"] == "XCOPA") & ~results()["language"].isin(("en", "average"))]
    for source, group in targets[targets["source"].isin(PER_LANGUAGE)].groupby("source"):
        four = sum(_is_multiple(value, 100 / (4 * 500)) for value in group["value"])
        five = sum(_is_multiple(value, 100 / (5 * 500)) for value in group["value"])
        n = len(group)
        if four < n:
            where = f"{source}: XCOPA, {n} means of languages"
            yield "number of runs", where, f"4 runs of 500 items: {four} of {n}", f"5 runs of 500 items: {five} of {n}"


def _is_multiple(value: float, unit: float) -> bool:
    return abs(value / unit - round(value / unit)) < 1e-6


def _counts_off() -> Iterator[Row]:
    """Table 5's number of languages, with or without English."""
    for _, row in table("table5").iterrows():
        tested = int(table("languages")[row["test_data"]].sum())
        if row["languages"] not in (tested, tested - 1):
            yield (
                "number of languages",
                f"Table 5: {row['test_data']}",
                str(row["languages"]),
                f"{tested - 1} and English",
            )


def _words_off() -> Iterator[Row]:
    """Sentences with a number in them."""
    gain = gains("FUN").set_index(["model", "dataset"])["gain"]
    both = gain.mean()
    if abs(both - 2) > 0.05:
        each = ", ".join(f"{gain[model].mean():.2f} {model}" for model in ("mBERT", "XLM-R"))
        yield (
            "words",
            "Abstract: FUN over standard training, mean of four data sets",
            "2 points",
            f"{both:.2f} ({each})",
        )
    better = {model: _better_english(model) for model in ("mBERT", "XLM-R")}
    if better["XLM-R"] != (6, 8):
        n, of = better["XLM-R"]
        main = sum(_better_english(model, main_only=True)[0] for model in better)
        yield (
            "words", "Section 5.3: XLM-R with FUN above GU in English", "6 of 8",
            f"{n} of {of} for XLM-R; {main} of 8 for both models by F1 and accuracy",
        )  # fmt: skip
    worse = [
        f"{dataset} {model} {method}"
        for dataset in DATASETS
        for model in ("mBERT", "XLM-R")
        for method in ("GU", "FUN")
        if _lowest(dataset, model, method) < _lowest(dataset, model, "standard")
    ]
    if worse:
        yield "words", "Section 5.3: the lowest language improved across the board", "all 16", f"not {', '.join(worse)}"


def _better_english(model: str, main_only: bool = False) -> tuple[int, int]:
    english = _pick(results(), source="Table 2", model=model, language="en")
    if main_only:
        english = english[english["metric"] != "EM"]
    wide = english.pivot_table(index=["dataset", "metric"], columns="method", values="value")
    return int((wide["FUN"] > wide["GU"]).sum()), len(wide)


def _lowest(dataset: str, model: str, method: str) -> float:
    rows = _pick(results(), source="Table 2", dataset=dataset, model=model, method=method, metric=METRIC[dataset])
    return float(rows[~rows["language"].isin(("en", "average"))]["value"].iloc[0])
