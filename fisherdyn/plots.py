"""Datasets as pictures: each function takes what it draws and an Axes, and returns the Axes. No torch, no training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from . import analysis

ACL_COLUMN, ACL_PAGE = 3.03, 6.3
"""Widths in inches of a column and of a page's text."""
STYLE: Any = {
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "pdf.fonttype": 42,
    "figure.dpi": 150,
    "savefig.dpi": 300,
}
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe & Ito's, told apart by colour-blind eyes; line styles differ too, for print in grey."""
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (1, 2)))


def save(figure: Figure, path: Path) -> None:
    """Writes a picture without a date in it: the same data is the same file, byte for byte."""
    undated = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}}
    with matplotlib.rc_context({"svg.hashsalt": "fisherdyn"}):
        figure.savefig(path, metadata=undated.get(path.suffix))


def curves(ax: Axes, values: xr.DataArray, groups: dict[str, list[str]], *, normalise: bool = False) -> Axes:
    """One line a group of schedules: the mean over its runs, with a band of plus or minus one standard error over seeds.

    Args:
        values: (run, step) with coordinate schedule.
        groups: legend label -> schedules.
        normalise: divide by the largest mean of all groups, so that the axis runs to 1.
    """
    table = analysis.by_schedule(values)
    found = {}
    for label, schedules in groups.items():
        per_seed = table.sel(schedule=schedules).mean("schedule")
        error = per_seed.std("seed", ddof=1) / np.sqrt(per_seed.sizes["seed"]) if per_seed.sizes["seed"] > 1 else None
        found[label] = (per_seed.mean("seed"), error)
    scale = max(float(mean.max()) for mean, _ in found.values()) if normalise else 1.0
    for i, (label, (mean, error)) in enumerate(found.items()):
        look: dict[str, Any] = {"color": COLOURS[i % len(COLOURS)], "linestyle": DASHES[i % len(DASHES)]}
        ax.plot(mean["step"], mean / scale, label=label, **look)
        if error is not None:
            low, high = (mean - error) / scale, (mean + error) / scale
            ax.fill_between(mean["step"], low, high, color=look["color"], alpha=0.15, linewidth=0)
    ax.set_xlabel("step")
    return ax


def transfer_groups(summary: xr.Dataset, most: int = len(COLOURS)) -> dict[str, list[str]]:
    """Footnote 9's groups, best first, labelled by transfer and size; beyond `most` the rest is one group."""
    mean = analysis.by_schedule(summary["transfer"]).mean("seed")
    by_name = dict(zip(mean["schedule"].values.tolist(), mean.values.tolist(), strict=True))
    found = analysis.groups(by_name)
    if len(found) > most:
        found = [*found[: most - 1], [name for names in found[most - 1 :] for name in names]]
    return {_group_label([by_name[name] for name in names], names): names for names in found}


def _group_label(values: Sequence[float], names: Sequence[str]) -> str:
    low, high = 100 * min(values), 100 * max(values)
    span = f"{low:.1f}" if f"{low:.1f}" == f"{high:.1f}" else f"{low:.1f}-{high:.1f}"
    return f"{span} ({_count(names)})"


def _count(names: Sequence[str]) -> str:
    marked = [name for name in ("standard", "top-down") if name in names]
    others = len(names) - len(marked)
    parts = [*marked, *([f"{others} other{'s' if others > 1 else ''}" if marked else f"{others}"] if others else [])]
    return ", ".join(parts)


def figure_4(ds: xr.Dataset) -> Figure:
    """The counterpart of the paper's Figure 4: tr(F) per open adapter and the validation curve, grouped by transfer.

    Args:
        ds: the record of a permutation sweep.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(ACL_PAGE, 2.9), layout="constrained")
        left, right = figure.subplots(1, 2)
        groups = transfer_groups(analysis.summarise(ds))
        curves(left, analysis.learning_curve(ds), groups, normalise=True)
        left.set_ylabel("tr(F) per open adapter")
        left.set_ylim(bottom=0)
        curves(right, 100 * ds["source_metric"], groups)
        right.set_ylabel("source dev. accuracy (%)")
        handles, labels = left.get_legend_handles_labels()
        figure.legend(
            handles, labels, title="mean transfer, % (schedules)", loc="outside lower center", ncols=min(3, len(labels))
        )
        return figure


def transfer_by_distance(ax: Axes, ds: xr.Dataset, schedules: Sequence[str]) -> Axes:
    """Accuracy in each target against its distance from the source, a line a schedule, bars of one standard error.

    Schedules that the record lacks are left out.
    """
    table = 100 * analysis.by_schedule(analysis.result(ds))
    table = table.assign_coords(distance=ds["distance"]).sortby("distance")
    for i, name in enumerate(name for name in schedules if name in table["schedule"]):
        one = table.sel(schedule=name)
        n = one.sizes["seed"]
        error = one.std("seed", ddof=1) / np.sqrt(n) if n > 1 else None
        look: dict[str, Any] = {"color": COLOURS[i % len(COLOURS)], "linestyle": DASHES[i % len(DASHES)]}
        ax.errorbar(one["distance"], one.mean("seed"), yerr=error, label=name, marker="o", markersize=3, **look)
    for x, name in zip(table["distance"].values, table["target"].values, strict=True):
        ax.annotate(str(name), (x, 1.01), xycoords=("data", "axes fraction"), ha="center", color="0.4")
    ax.set_xlabel("distance from the source (0 to 1)")
    ax.set_ylabel("accuracy (%)")
    ax.legend()
    return ax


def by_layer(ax: Axes, ds: xr.Dataset) -> Axes:
    """tr(F) of every layer with one standard error: a line a layer along step, or along layers where it was taken once.

    Args:
        ds: over (step, layer), (layer,) or (loader, layer). Lines go from dark (bottom layer) to light (top).
    """
    trace, error = ds["fisher_trace"], ds["fisher_trace_se"]
    over = "step" if "step" in trace.dims else "layer"
    (lines,) = [dim for dim in trace.dims if dim != over] or [None]
    names = [None] if lines is None else ds[lines].values.tolist()
    shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(names)))
    for name, colour in zip(names, shades, strict=True):
        one = {} if lines is None else {lines: name}
        mean, se = trace.sel(one), error.sel(one)
        ax.plot(mean[over], mean, color=colour, label=name, marker="o" if over == "layer" else None, markersize=3)
        ax.fill_between(mean[over], mean - se, mean + se, color=colour, alpha=0.2, linewidth=0)
    ax.set_ylim(bottom=0)
    ax.set_xlabel(f"{over} (bottom first)" if over == "layer" else over)
    ax.set_ylabel("tr(F) (nat)")
    if lines is not None:
        ax.legend(title=lines, ncols=2 if len(names) > 6 else 1)
    return ax
