"""What a study of methods says (all but `permutations`): rows as in the paper's Tables 1, 2, 11 and 12, with intervals."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import xarray as xr

from .. import analysis, policies
from .wording import against_standard, half


def table(ds: xr.Dataset) -> str:
    """One row a schedule (and number of training examples), as Markdown; percentages, with 95 % intervals over seeds.

    Of the seeds that all rows with as many training examples have.
    """
    results = analysis.results(ds)
    metric = "F1" if "exact_match" in results else "accuracy"
    header = ["schedule", "in the paper", "training examples", f"source {metric} %", "lowest target %"]
    header += ["mean over targets % (95 %)", *(["exact match %"] if "exact_match" in results else [])]
    rows, seeds, in_the_paper = [header], set(), _papers_names(ds)
    for size, some in _by_size(results):
        by = {str(name): 100 * analysis.by_schedule(values) for name, values in some.items()}
        seeds.add(by["transfer"].sizes["seed"])
        for name in by["transfer"]["schedule"].values.tolist():
            one = {key: values.sel(schedule=name) for key, values in by.items()}
            transfer, target = analysis.mean_interval(one["transfer"].values), one["target_result"].mean("seed")
            rows.append(
                [
                    name,
                    in_the_paper.get(name, ""),
                    str(size or ds.attrs.get("train_examples", "all")),
                    f"{float(one['source'].mean()):.2f}",
                    f"{target.idxmin('target').item()} {float(target.min()):.2f}",
                    f"{transfer.estimate:.2f} {half(transfer)}",
                    *([f"{float(one['exact_match'].mean()):.2f}"] if "exact_match" in one else []),
                ]
            )
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|---" * len(header) + "|", *lines[1:], "", _footnote(ds, seeds)])


def _papers_names(ds: xr.Dataset) -> dict[str, str]:
    """Schedule -> its row in the paper's tables, where its policy has one."""
    if "policy" not in ds.coords:
        return {}
    of = zip(ds["schedule"].values.tolist(), ds["policy"].values.tolist(), strict=True)
    return {name: policies.NAMED[policy].paper for name, policy in of if policy in policies.NAMED}


def _footnote(ds: xr.Dataset, used: set[int]) -> str:
    seeds = len(set(ds["seed"].values.tolist()))
    shared = "" if used == {seeds} else f" (those that all rows have: {' or '.join(map(str, sorted(used)))})"
    said = [
        f"{ds.sizes['run']} runs, {seeds} {'seed' if seeds == 1 else 'seeds'}{shared}. Results: "
        f"{analysis.result(ds).attrs['of']}; targets: {', '.join(map(str, ds['target'].values))}."
    ]
    if tuned := analysis.tuned(ds):
        said.append(f"{tuned}.")
    if skipped := ds.attrs.get("skipped"):
        said.append(f"Skipped: {skipped}.")
    return " ".join(said)


def findings(ds: xr.Dataset) -> str:
    """Each method against standard training, corrected for the number of all comparisons."""
    parts = {f"{size} training examples: " if size else "": some for size, some in _by_size(analysis.results(ds))}
    return "\n".join(f"- {line}" for line in against_standard(parts))


def _by_size(results: xr.Dataset) -> Iterator[tuple[int | None, xr.Dataset]]:
    if "train_examples" not in results.coords:
        yield None, results
        return
    for size in dict.fromkeys(results["train_examples"].values.tolist()):
        yield size, results.isel(run=np.flatnonzero(results["train_examples"].values == size))


def write(ds: xr.Dataset, folder: Path) -> list[Path]:
    """Table and findings as Markdown; the paths."""
    report = folder / "report.md"
    report.write_text(f"{table(ds)}\n\n{findings(ds)}\n")
    return [report]
