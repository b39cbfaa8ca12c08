"""What `compare`, `low-resource` and `reverse` say: the rows of the paper's Tables 2, 1 and 12, and 11, with intervals."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import xarray as xr

from .. import analysis
from .report import against, half
from .studies import STANDARD

PAPERS_NAMES = {
    "standard": "Ada",
    "random": "Ada+Rand",
    "top-down": "Ada+GU",
    "LPFT": "Ada+LPFT",
    "FUN": "Ada+FUN",
    "reverse": "Ada+GU (rev)",
    "full": "full fine-tuning",
}


def table(ds: xr.Dataset) -> str:
    """One row a method (and number of training examples), as Markdown; percentages, with 95 % intervals over seeds."""
    found = _results(ds)
    metric = "F1" if "exact_match" in ds else "accuracy"
    rows = [
        f"| schedule | in the paper | training examples | source {metric} % | lowest target % | mean over targets % (95 %) |"
        + (" exact match % |" if "exact_match" in found else ""),
        "|---|---|---|---|---|---|" + ("---|" if "exact_match" in found else ""),
    ]
    for size, some in _by_size(found):
        for name in dict.fromkeys(some["schedule"].values.tolist()):
            one = some.isel(run=np.flatnonzero(some["schedule"].values == name))
            transfer = analysis.mean_interval(100 * one["transfer"].values)
            targets = 100 * one["target_result"].mean("run")
            exact = f" {100 * float(one['exact_match'].mean()):.2f} |" if "exact_match" in one else ""
            rows.append(
                f"| {name} | {PAPERS_NAMES.get(name, '')} | {size or 'all'} | {100 * float(one['source'].mean()):.2f} "
                f"| {targets.idxmin('target').item()} {float(targets.min()):.2f} "
                f"| {transfer.estimate:.2f} {half(transfer)} |{exact}"
            )
    return "\n".join([*rows, "", _footnote(ds)])


def _footnote(ds: xr.Dataset) -> str:
    seeds = len(set(ds["seed"].values.tolist()))
    said = [
        f"{ds.sizes['run']} runs, {seeds} {'seed' if seeds == 1 else 'seeds'}. Results: {analysis.result(ds).attrs['of']}; "
        f"targets: {', '.join(map(str, ds['target'].values))}."
    ]
    if skipped := ds.attrs.get("skipped"):
        said.append(f"Skipped: {skipped}.")
    return " ".join(said)


def findings(ds: xr.Dataset) -> str:
    """Each method against standard training (where there is none, the first one), in words made from the numbers alone."""
    said = []
    for size, some in _by_size(_results(ds)):
        names = list(dict.fromkeys(some["schedule"].values.tolist()))
        baseline = STANDARD if STANDARD in names else names[0]
        at = f"{size} training examples: " if size else ""
        said += [at + line for line in against(some, baseline, [name for name in names if name != baseline])]
    return "\n".join(f"- {line}" for line in said)


def _results(ds: xr.Dataset) -> xr.Dataset:
    """What each run led to, 0 to 1: source, transfer (run), target_result, exact_match (run, target)."""
    target = analysis.result(ds)
    found = {"source": analysis.result(ds, "source_metric"), "target_result": target, "transfer": analysis.transfer(ds)}
    if "exact_match" in ds:
        found["exact_match"] = analysis.result(ds, "exact_match")
    return xr.Dataset(found)


def _by_size(found: xr.Dataset) -> Iterator[tuple[int | None, xr.Dataset]]:
    if "train_examples" not in found.coords:
        yield None, found
        return
    for size in dict.fromkeys(found["train_examples"].values.tolist()):
        yield size, found.isel(run=np.flatnonzero(found["train_examples"].values == size))


def write(ds: xr.Dataset, folder: Path) -> list[Path]:
    """Table and findings as Markdown; the paths."""
    report = folder / "report.md"
    report.write_text(f"{table(ds)}\n\n{findings(ds)}\n")
    return [report]
