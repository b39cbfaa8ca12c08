"""The paper's numbers, as data/paper has them, and what can be computed from them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pandas as pd

PAPER = Path(__file__).resolve().parent.parent / "data" / "paper"
PER_LANGUAGE = ("Table 8", "Table 9", "Table 10", "Table 13", "Table 14", "Table 15")
DATASETS = ("MLQA", "XQuAD", "XCOPA", "XNLI")
METRIC = {"MLQA": "F1", "XQuAD": "F1", "XCOPA": "accuracy", "XNLI": "accuracy"}
"""Data set -> the metric by which it is compared."""
_TABLE = {"MLQA": "table8", "XQuAD": "table8", "XCOPA": "table9", "XNLI": "table10"}
ROUNDING = 0.01
"""By how much a mean of numbers with two decimals, printed with two, may differ from the mean of the printed numbers."""


@cache
def table(name: str) -> pd.DataFrame:
    """Reads data/paper/NAME.csv.

    Raises:
        FileNotFoundError: the file, which is committed, is missing; `git checkout` restores it.
    """
    path = PAPER / f"{name}.csv"
    if not path.exists():
        raise FileNotFoundError(f"{path.name} is not in {PAPER}: it is part of the repository, restore it")
    text = {"train_examples": str, "k": str, "epochs": str, "learning_rate": str, "batch_size": str, "order": str}
    return pd.read_csv(path, dtype=text, keep_default_na=False, na_values={"value": [""], "plus_minus": [""]})


@cache
def results() -> pd.DataFrame:
    """All printed results.

    Columns: source, dataset, model, method, train_examples, language, metric, value, plus_minus, note.
    """
    return pd.concat([table(f"table{n}") for n in (1, 2, 7, 8, 9, 10, 11, 12, 13, 14, 15)], ignore_index=True)


def average(dataset: str, model: str, method: str) -> tuple[float, float]:
    """Printed mean transfer and its ±, which is NaN where none is printed (full fine-tuning).

    Raises:
        KeyError: the paper has no such number.
    """
    source = "table7" if method == "full" else _TABLE[dataset]
    rows = pick(table(source), dataset=dataset, model=model, method=method, language="average", metric=METRIC[dataset])
    if len(rows) != 1:
        raise KeyError(f"{method} with {model} on {dataset}: not in the paper's tables")
    return float(rows["value"].iloc[0]), float(rows["plus_minus"].iloc[0])


def gaps() -> pd.DataFrame:
    """Figure 2: mean transfer minus that of full fine-tuning, in points; LPFT is printed as a picture only."""
    rows = []
    for model in ("mBERT", "XLM-R"):
        for dataset in DATASETS:
            full, _ = average(dataset, model, "full")
            for method in ("standard", "GU"):
                mean, spread = average(dataset, model, method)
                rows.append((dataset, model, method, round(mean - full, 2), spread))
    return pd.DataFrame(rows, columns=["dataset", "model", "method", "gap", "plus_minus"])


def gains(method: str, over: str = "standard") -> pd.DataFrame:
    """Mean transfer of a method minus that of another, by model and dataset, in points."""
    rows = [
        (model, dataset, round(average(dataset, model, method)[0] - average(dataset, model, over)[0], 2))
        for model in ("mBERT", "XLM-R")
        for dataset in DATASETS
    ]
    return pd.DataFrame(rows, columns=["model", "dataset", "gain"])


def averages() -> pd.DataFrame:
    """All printed averages over languages, beside the mean of the languages' printed numbers."""
    rows = []
    columns = ["source", "dataset", "model", "method", "metric"]
    for key, group in results()[results()["source"].isin(PER_LANGUAGE)].groupby(columns, sort=False):
        printed = group[group["language"] == "average"]["value"]
        targets = group[~group["language"].isin(("en", "average"))]["value"]
        if len(printed) and len(targets):
            rows.append((*key, len(targets), float(printed.iloc[0]), round(float(targets.mean()), 4)))
    return pd.DataFrame(rows, columns=[*columns, "languages", "printed", "recomputed"])


def pick(rows: pd.DataFrame, **values: str) -> pd.DataFrame:
    """The rows that have these values, column by column."""
    for column, value in values.items():
        rows = rows[rows[column] == value]
    return rows
