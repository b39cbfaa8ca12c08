"""Figures 2 to 5 and two more, forest and transfer: the paper's numbers, and a sweep's beside them.

Each function takes a sweep's record (optional for `fig2`) and returns a Figure. It raises a ValueError where the record
lacks what the figure shows.
"""

from __future__ import annotations

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase

from fisherdyn import analysis, plots

from . import published
from .stores import schedules

STANDARD = "standard"
COMPARED = ("standard", "GU (top-down)", "LPFT", "FUN", "random", "reverse", "full fine-tuning")
"""The paper's methods, as `plots.label` names them: other schedules are orders."""


def fig2(ds: xr.Dataset | None = None) -> Figure:
    """Transfer of standard training and GU minus that of full fine-tuning: the paper's, and a sweep's methods beside it.

    For a sweep without full fine-tuning, differences from standard training are drawn.
    """
    with matplotlib.rc_context(plots.STYLE):
        ours = None if ds is None else _methods(ds)
        panels = 2 if ours is None else 3
        figure = Figure(figsize=(plots.ACL_PAGE, 2.5), layout="constrained")
        axes = np.atleast_1d(figure.subplots(1, panels, width_ratios=(1, 1, 1.25)[:panels]))
        axes[1].sharey(axes[0])
        for ax, model in zip(axes, ("mBERT", "XLM-R"), strict=False):
            _published_gaps(ax, model)
        axes[0].set_ylabel("minus full fine-tuning (points)")
        axes[1].tick_params(left=False, labelleft=False)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2)
        if ds is not None and ours is not None:
            plots.forest(axes[2], ours)
            axes[2].set_title(f"ours: {_task(ds)}, {_seeds(ours.attrs['seeds'])}")
        return figure


def _seeds(n: int) -> str:
    return f"{n} seed{'s' if n > 1 else ''}"


def _published_gaps(ax: Axes, model: str) -> None:
    gaps = published.gaps()
    gaps = gaps[gaps["model"] == model]
    places = np.arange(len(published.DATASETS))
    for i, (method, name) in enumerate((("standard", "adapters, standard"), ("GU", "adapters, GU"))):
        rows = gaps[gaps["method"] == method].set_index("dataset").loc[list(published.DATASETS)]
        marks = {**plots.marks(i), "linestyle": "none", "markersize": 4.5}
        ax.errorbar(places + 0.2 * (i - 0.5), rows["gap"], yerr=rows["plus_minus"], label=name, **marks)
    ax.axhline(0, color="0.45", linewidth=0.8, linestyle=":")
    ax.set_xticks(places, published.DATASETS, fontsize=7)
    ax.set_xlim(-0.5, len(places) - 0.5)
    ax.set_title(f"paper: {model}")


def _methods(ds: xr.Dataset) -> xr.Dataset:
    """The paper's methods that a sweep has, minus full fine-tuning or else standard training."""
    names = [name for name in schedules(ds) if plots.label(name) in COMPARED]
    full = [name for name in names if plots.label(name) == "full fine-tuning"]
    baseline = full[0] if full else STANDARD
    if baseline not in names or len(names) < 2:
        raise ValueError(f"no standard training beside another of the paper's methods, only {', '.join(schedules(ds))}")
    return analysis.compare(analysis.by_schedule(_only(analysis.results(ds), names)["transfer"]), baseline)


def fig3(ds: xr.Dataset) -> Figure:
    """tr(F) under standard training and under GU: per open adapter with its learning period, and layer by layer."""
    top_down = _named(ds, "GU (top-down)")
    both = _only(ds, [_named(ds, STANDARD), top_down])
    with matplotlib.rc_context(plots.STYLE):
        figure = Figure(figsize=(plots.ACL_PAGE, 2.3), layout="constrained")
        left, middle, right = figure.subplots(1, 3, width_ratios=(1.15, 1, 1))
        curves = analysis.learning_curve(both)
        plots.curves(left, curves, {plots.label(name): [name] for name in (STANDARD, top_down)})
        means = {name: analysis.by_schedule(curves).sel(schedule=name).mean("seed") for name in (STANDARD, top_down)}
        for i, mean in enumerate(means.values()):
            plots.learning_period(left, mean, colour=plots.COLOURS[i])
        left.set_ylabel("tr(F) per open adapter (nat)")
        left.set_ylim(bottom=0)
        legend = left.legend(
            loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=2, fontsize=7, borderpad=0, columnspacing=1
        )
        legend.set_in_layout(False)  # it may be a little wider than its panel
        by_layer = {name: _mean_run(both, name) for name in (STANDARD, top_down)}
        top = max(float(mean_run["fisher_trace"].max()) for mean_run in by_layer.values())
        for ax, (name, mean_run) in zip((middle, right), by_layer.items(), strict=True):
            plots.heat_map(ax, mean_run, top)
            ax.set_title(plots.label(name))
        middle.collections[0].colorbar.remove()
        right.set_ylabel("")
        return figure


def _mean_run(ds: xr.Dataset, schedule: str) -> xr.Dataset:
    """tr(F) under one schedule, averaged over seeds, which all open the same layers at the same steps."""
    runs = _only(ds, [schedule])
    return runs[["fisher_trace"]].mean("run").assign(trainable=runs["trainable"].isel(run=0))


def fig4(ds: xr.Dataset) -> Figure:
    """A permutation sweep: tr(F) and the validation curve by group of transfer, and what of tr(F) goes with transfer."""
    orders = [name for name in schedules(ds) if name != STANDARD]
    if len(orders) < 4:
        raise ValueError(f"fewer than 4 orders to compare, only {', '.join(schedules(ds))}")
    with matplotlib.rc_context(plots.STYLE):
        figure = Figure(figsize=(plots.ACL_PAGE, 3.0), layout="constrained")
        curves, beside = figure.subfigures(1, 2, squeeze=False, width_ratios=(1.9, 1))[0]
        left, _ = plots.groups(*_pair(curves), ds)
        _legend(curves, left, ncols=2, title="mean transfer, % (schedules)")
        right = beside.subplots()
        plots.correlations(right, analysis.transfer_correlations(_only(analysis.summarise(ds), orders)))
        for place in (0, -1):
            right.annotate(
                "", (0.9, place + 0.36), (0, place + 0.36), arrowprops={"arrowstyle": "-|>", "color": "0.45"}
            )
        right.plot([], [], marker=">", markersize=4, color="0.45", label="paper (no number)")
        _legend(beside, right, ncols=1, title="tr(F)'s shape with transfer")
        return figure


def _pair(part: FigureBase) -> tuple[Axes, Axes]:
    first, second = part.subplots(1, 2)
    return first, second


def _legend(part: FigureBase, ax: Axes, *, ncols: int, title: str) -> None:
    """Puts the legend of one Axes below its part of the figure."""
    handles, labels = ax.get_legend_handles_labels()
    part.legend(handles, labels, title=title, loc="outside lower center", ncols=ncols, fontsize=7, title_fontsize=7)


def fig5(ds: xr.Dataset) -> Figure:
    """The average order in which layers open: the paper's example, and FUN (or the fixed orders) in a sweep."""
    ours = _ordered(ds)
    if not ours:
        raise ValueError(f"no schedule that opens layers one by one, only {', '.join(schedules(ds))}")
    with matplotlib.rc_context(plots.STYLE):
        figure = Figure(figsize=(plots.ACL_PAGE, 2.6), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        _schedules(left, [_example()], "paper: one run of FUN (footnote 11)")
        fun = any(_title(openings) == "FUN" for openings in ours)
        _schedules(right, ours, f"ours: {_task(ds)}" + ("" if fun else " (a sweep without FUN)"))
        right.set_ylabel("")
        return figure


def _schedules(ax: Axes, selected: list[xr.DataArray], title: str) -> None:
    """Draws the average schedules of some methods, and their distances from top-down.

    Args:
        selected: (run, layer) for each method.
    """
    averages = [analysis.averaged_schedule(openings) for openings in selected]
    plots.averaged_schedules(ax, xr.concat(averages, "schedule"))
    distances = []
    for openings in selected:
        distance = analysis.mean_interval(analysis.distance_from_top_down(openings).values)
        distances.append(
            f"{_title(openings)} {distance.estimate:.2f}" + (f" ± {distance.half:.2f}" if distance.n > 1 else "")
        )
    text = "distance from top-down: " + ",\n".join(distances)
    ax.text(0.02, 0.03, text, transform=ax.transAxes, fontsize=6.5, linespacing=1.4, color="0.3")
    ax.set_title(title)
    ax.set_ylim(-2.6, 13.5)  # room for the text below and the legend above
    ax.set_yticks(range(0, 11, 2))
    ax.legend(loc="upper right", fontsize=7, ncols=2, columnspacing=1)


def _title(selected: xr.DataArray) -> str:
    return plots.label(str(selected["schedule"].values[0]))


def _ordered(ds: xr.Dataset) -> list[xr.DataArray]:
    """The openings of FUN and of random, one a run, and of all fixed orders but GU together, one an order."""
    named = {plots.label(name): name for name in schedules(ds)}
    selected = [_only(ds, [named[method]])["selected"] for method in ("FUN", "random") if method in named]
    orders = [name for name in schedules(ds) if plots.label(name) not in COMPARED]
    if orders:
        first_runs = [int(np.flatnonzero(ds["schedule"].values == name)[0]) for name in orders]
        pooled = {"schedule": ("run", [f"{len(orders)} fixed orders"] * len(orders)), "seed": ("run", orders)}
        selected.append(ds["selected"].isel(run=first_runs).assign_coords(pooled))
    return selected


def _example() -> xr.DataArray:
    """Footnote 11's schedule, opening one layer a step: the only numbers that the paper prints of Figure 5."""
    orders = published.table("schedules").set_index("name")["order"]
    order = [int(layer) for layer in orders["fun-example"].split()]
    selected = np.zeros((1, len(order) + 1), dtype=int)
    selected[0, order] = np.arange(1, len(order) + 1)
    return xr.DataArray(selected, {"schedule": ("run", ["FUN"]), "seed": ("run", [0])}, ["run", "layer"])


def transfer(ds: xr.Dataset) -> Figure:
    """Accuracy in each language against its distance from the source, under standard training and GU."""
    names = [name for name in schedules(ds) if plots.label(name) in ("standard", "GU (top-down)")]
    if not names:
        raise ValueError(f"neither standard training nor GU, only {', '.join(schedules(ds))}")
    with matplotlib.rc_context(plots.STYLE):
        figure = Figure(figsize=(plots.ACL_COLUMN, 2.4), layout="constrained")
        plots.transfer_by_distance(figure.subplots(), ds, names)
        return figure


def forest(ds: xr.Dataset) -> Figure:
    """Transfer of every schedule minus that of standard training, paired over seeds."""
    if STANDARD not in schedules(ds) or len(schedules(ds)) < 2:
        raise ValueError(f"no standard training beside other schedules, only {', '.join(schedules(ds))}")
    with matplotlib.rc_context(plots.STYLE):
        compared = analysis.compare(analysis.by_schedule(analysis.transfer(ds)))
        figure = Figure(figsize=(plots.ACL_COLUMN, 0.75 + 0.17 * compared.sizes["schedule"]), layout="constrained")
        plots.forest(figure.subplots(), compared)
        return figure


def _only(ds: xr.Dataset, names: list[str]) -> xr.Dataset:
    return ds.isel(run=np.flatnonzero(np.isin(ds["schedule"].values, names)))


def _named(ds: xr.Dataset, label: str) -> str:
    """The schedule that the paper calls by this label.

    Raises:
        ValueError: there is none.
    """
    for name in schedules(ds):
        if plots.label(name) == label:
            return name
    raise ValueError(f"no runs of {label}, only of {', '.join(schedules(ds))}")


def _task(ds: xr.Dataset) -> str:
    return str(ds.attrs.get("task", "a sweep"))
