"""The paper's tables as Markdown and LaTeX, with a sweep's results below them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import xarray as xr

from fisherdyn import analysis, plots

from . import published
from .stores import PAPERS, compared, count, only, refuse_several_sizes, schedules, sizes

MODELS = ("mBERT", "XLM-R", "mDeBERTa")
ROWS = {"standard": "", "random": " + Rand", "GU": " + GU", "FUN": " + FUN", "reverse": " + GU (rev)"}
COMPARED = {
    1: ("standard", "top_down"),
    2: PAPERS,
    11: ("top_down", "bottom_up"),
    12: ("standard", "top_down", "fun"),
}
"""Tables that a sweep may have rows for, and the policies in them; a sweep's own policies are rows of each."""


@dataclass(frozen=True)
class Block:
    """Rows under one header.

    Attributes:
        rank: whether the best and second-best values of the last column are marked.
    """

    header: list[str]
    rows: list[list[str]]
    rank: bool = False


@dataclass(frozen=True)
class Table:
    """One of the paper's tables: blocks below one another, and notes on its oddities."""

    title: str
    blocks: list[Block] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def build(number: int, ds: xr.Dataset | None = None) -> Table:
    """Table `number` of the paper, with the methods of a sweep, if one is given, below it.

    Raises:
        ValueError: the sweep lacks the methods that the table compares, or has several numbers of training examples where
            the table has one (or one where it has several).
    """
    printed = published.table("languages" if number == 6 else f"table{number}")
    blocks = _BLOCKS[number]
    if ds is None:
        return Table(TITLES[number], blocks(printed), _notes(printed))
    ours = (_ours_by_size if blocks is _by_size else _ours)(ds, COMPARED[number])
    return Table(TITLES[number], [*blocks(printed), ours], _notes(printed))


TITLES = {
    1: "Transfer with small sets of training data (mean over target languages)",
    2: "Zero-shot transfer on four data sets",
    3: "Hyperparameters of the main experiments",
    4: "Hyperparameters with small sets of training data",
    5: "Data sets",
    6: "Languages",
    7: "Full fine-tuning (mean over target languages)",
    8: "Zero-shot transfer, MLQA and XQuAD",
    9: "Zero-shot transfer, XCOPA",
    10: "Zero-shot transfer, XNLI",
    11: "Gradual unfreezing in reverse order",
    12: "Transfer with small sets of training data, with FUN",
    13: "mDeBERTa: zero-shot transfer, MLQA and XQuAD",
    14: "mDeBERTa: zero-shot transfer, XCOPA",
    15: "mDeBERTa: zero-shot transfer, XNLI",
}


def _cell(rows: pd.DataFrame) -> str:
    """A value with its ±, or F1 / EM with theirs."""
    if rows.empty:
        return "-"
    order = [metric for metric in ("F1", "EM", "accuracy") if metric in set(rows["metric"])]
    return " / ".join(_number(rows[rows["metric"] == metric].iloc[0]) for metric in order)


def _number(row: pd.Series) -> str:
    return f"{row['value']:.2f}" + ("" if np.isnan(row["plus_minus"]) else f" ± {row['plus_minus']:.2f}")


def _rows(printed: pd.DataFrame) -> Iterable[tuple[str, pd.DataFrame]]:
    """Yields model and method, as the paper names them, and their numbers, in the paper's order."""
    for model in MODELS:
        for method, suffix in ROWS.items():
            cells = printed[(printed["model"] == model) & (printed["method"] == method)]
            if not cells.empty:
                yield model + suffix, cells


def _units(rows: pd.DataFrame) -> str:
    metrics = [metric for metric in ("F1", "EM", "accuracy") if metric in set(rows["metric"])]
    return f"{' / '.join(metrics)}, %"


def _by_language(printed: pd.DataFrame) -> list[Block]:
    blocks = []
    for dataset, part in printed.groupby("dataset", sort=False):
        languages = list(dict.fromkeys(part["language"]))
        header = [f"{dataset} ({_units(part)})", *(code.capitalize() for code in languages)]
        rows = [[name, *(_cell(cells[cells["language"] == code]) for code in languages)] for name, cells in _rows(part)]
        blocks.append(Block(header, rows))
    return blocks


def _by_size(printed: pd.DataFrame) -> list[Block]:
    blocks = []
    for dataset, part in printed.groupby("dataset", sort=False):
        examples = list(dict.fromkeys(part["train_examples"]))
        header = [f"{dataset} ({_units(part)})", *(f"{int(size) // 1000}K" for size in examples)]
        rows = [
            [name, *(_cell(cells[cells["train_examples"] == size]) for size in examples)] for name, cells in _rows(part)
        ]
        blocks.append(Block(header, rows))
    return blocks


def _by_lowest(printed: pd.DataFrame) -> list[Block]:
    blocks = []
    for (dataset, model), part in printed.groupby(["dataset", "model"], sort=False):
        (low,) = set(part["language"]) - {"en", "average"}
        header = [f"{dataset}, {model} ({_units(part)})", "En", f"Lowest ({low.capitalize()})", "Average"]
        rows = [
            [name, *(_cell(cells[cells["language"] == code]) for code in ("en", low, "average"))]
            for name, cells in _rows(part)
        ]
        blocks.append(Block(header, rows, rank=True))
    return blocks


def _full(printed: pd.DataFrame) -> list[Block]:
    header = ["Model", *(f"{dataset} ({published.METRIC[dataset]}, %)" for dataset in published.DATASETS)]
    rows = [
        [model, *(_cell(part[part["dataset"] == dataset]) for dataset in published.DATASETS)]
        for model, part in printed.groupby("model", sort=False)
    ]
    return [Block(header, rows)]


def _plain(printed: pd.DataFrame) -> list[Block]:
    columns = [column for column in printed.columns if column not in ("source", "note")]
    header = [column.replace("_", " ") for column in columns]
    return [Block(header, [[str(value) or "-" for value in row] for row in printed[columns].values.tolist()])]


_BLOCKS = {
    1: _by_size, 2: _by_lowest, 3: _plain, 4: _plain, 5: _plain, 6: _plain, 7: _full, 8: _by_language, 9: _by_language,
    10: _by_language, 11: _by_language, 12: _by_size, 13: _by_language, 14: _by_language, 15: _by_language,
}  # fmt: skip


def _ours(ds: xr.Dataset, methods: tuple[str, ...]) -> Block:
    """A sweep's methods as in Table 2: source, the target that is lowest under the first method, and average with 95 %."""
    refuse_several_sizes(ds)
    names = _names(ds, methods)
    by = {str(name): analysis.by_schedule(values) for name, values in _percentages(ds, names).items()}
    targets, shown = [by[name] for name in TARGETS if name in by], plots.labels(ds)
    low = targets[0].sel(schedule=names[0]).mean("seed").idxmin("target").item()
    rows = [
        [
            shown[name],
            f"{float(by['source'].sel(schedule=name).mean()):.1f}",
            " / ".join(f"{float(metric.sel(schedule=name, target=low).mean()):.1f}" for metric in targets),
            _average(targets, name),
        ]
        for name in names
    ]
    heading = "Source (F1)" if len(targets) > 1 else "Source"
    return Block([_our_title(ds, [targets]), heading, f"Lowest ({low})", "Average"], rows, rank=True)


def _ours_by_size(ds: xr.Dataset, methods: tuple[str, ...]) -> Block:
    """A sweep's methods as in Tables 1 and 12: average with 95 %, for each number of training examples."""
    if len(examples := sizes(ds)) < 2:
        raise ValueError("runs with one number of training examples only: these tables are of a low-resource sweep")
    names = _names(ds, methods)
    percentages, parts = _percentages(ds, names), []
    for size in examples:
        runs = percentages.isel(run=np.flatnonzero(percentages["train_examples"].values == size))
        parts.append([analysis.by_schedule(runs[name]) for name in TARGETS if name in runs])
    shown = plots.labels(ds)
    rows = [[shown[name], *(_average(targets, name) for targets in parts)] for name in names]
    return Block([_our_title(ds, parts), *map(str, examples)], rows)


TARGETS = ("target_result", "exact_match")
"""Results in the targets: accuracy, or F1 and exact match."""


def _names(ds: xr.Dataset, methods: tuple[str, ...]) -> list[str]:
    """The schedules of these policies and of the sweep's own, in their order."""
    names = compared(ds, methods)
    if len(names) < 2:
        raise ValueError(f"no two of {', '.join(methods)}, only {', '.join(schedules(ds))}")
    return names


def _percentages(ds: xr.Dataset, names: list[str]) -> xr.Dataset:
    """Results of these schedules' runs, in percent; the kind of result (`analysis.result`) is that of the whole sweep."""
    return only(100 * analysis.results(ds), names)


def _average(targets: list[xr.DataArray], name: str) -> str:
    """Mean over targets, with half of its 95 % interval over seeds."""
    if name not in targets[0]["schedule"]:
        return "-"  # not run yet
    means = [
        analysis.mean_interval(metric.sel(schedule=name).mean("target", skipna=False).values) for metric in targets
    ]
    return " / ".join(f"{mean.estimate:.1f}" + (f" ± {mean.half:.1f}" if mean.n > 1 else "") for mean in means)


def _our_title(ds: xr.Dataset, parts: list[list[xr.DataArray]]) -> str:
    metric = "F1 / EM" if len(parts[0]) > 1 else "accuracy"
    few, many = (pick(targets[0].sizes["seed"] for targets in parts) for pick in (min, max))
    seeds = count(few) if few == many else f"{few} to {count(many)}"
    return f"Ours: {ds.attrs.get('task', 'a sweep')} ({metric}, %; ± 95 %, {seeds})"


def _notes(printed: pd.DataFrame) -> list[str]:
    known = published.table("notes").set_index("note")["what"]
    return [known[name] for name in dict.fromkeys(printed["note"]) if name]


def markdown(table: Table) -> str:
    """A table in Markdown, with the best average bold and the second-best in italics, where the paper marks them."""
    parts = [f"**{table.title}**"]
    for block in table.blocks:
        marked = _marked(block, "**{}**", "*{}*")
        rule = ["---", *["---:"] * (len(block.header) - 1)]
        parts.append("\n".join(f"| {' | '.join(row)} |" for row in (block.header, rule, *marked)))
    parts += [f"Note: {note}" for note in table.notes]
    return "\n\n".join(parts) + "\n"


def latex(table: Table) -> str:
    """A table in LaTeX (packages booktabs and ulem): a tabular for each block, with the best two averages marked."""
    parts = [f"% {table.title}"]
    for block in table.blocks:
        marked = _marked(block, "\\textbf{{{}}}", "\\uline{{{}}}", escape=_escape)
        head = " & ".join(_escape(cell) for cell in block.header)
        body = "\n".join(f"{' & '.join(row)} \\\\" for row in marked)
        columns = "l" + "r" * (len(block.header) - 1)
        parts.append(
            f"\\begin{{tabular}}{{{columns}}}\n\\toprule\n{head} \\\\\n\\midrule\n{body}\n\\bottomrule\n\\end{{tabular}}"
        )
    parts += [f"% Note: {note}" for note in table.notes]
    return "\n\n".join(parts) + "\n"


def _marked(block: Block, best: str, second: str, escape: Callable[[str], str] = str) -> list[list[str]]:
    rows = [[escape(cell) for cell in row] for row in block.rows]
    if block.rank and len(rows) > 1:
        values = [float(row[-1].split()[0]) for row in block.rows]
        ranked = sorted(range(len(rows)), key=lambda i: -values[i])
        for i, form in zip(ranked[:2], (best, second), strict=True):
            rows[i][-1] = form.format(rows[i][-1])
    return rows


def _escape(text: str) -> str:
    for plain, escaped in (("&", "\\&"), ("%", "\\%"), ("_", "\\_"), ("#", "\\#"), ("±", "$\\pm$"), ("≥", "$\\geq$")):
        text = text.replace(plain, escaped)
    return text
