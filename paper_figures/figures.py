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
from .stores import ORDER, compared, count, only, policies, schedules, schedules_of

STANDARD = "standard"


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
            plots.forest(axes[2], ours, plots.labels(ds))
            axes[2].set_title(f"ours: {_task(ds)}, {count(ours.attrs['seeds'])}")
        return figure


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
    """A sweep's policies but for fixed orders, minus full fine-tuning or else standard training."""
    names = compared(ds)
    baseline = next(iter([*schedules_of(ds, "full"), *schedules_of(ds, STANDARD)]), None)
    if baseline is None or len(names) < 2:
        raise ValueError(f"no standard training beside another of the paper's methods, only {', '.join(schedules(ds))}")
    return analysis.compare(analysis.by_schedule(only(analysis.results(ds), names)["transfer"]), baseline)


def fig3(ds: xr.Dataset) -> Figure:
    """tr(F) of standard training beside GU's: per open adapter with the learning period, and layer by layer."""
    standard, top_down = _schedule(ds, STANDARD, "standard training"), _schedule(ds, "top_down", "GU (top-down)")
    both, shown = only(ds, [standard, top_down]), plots.labels(ds)
    with matplotlib.rc_context(plots.STYLE):
        figure = Figure(figsize=(plots.ACL_PAGE, 2.3), layout="constrained")
        left, middle, right = figure.subplots(1, 3, width_ratios=(1.15, 1, 1))
        curves = analysis.learning_curve(both)
        plots.curves(left, curves, {shown[name]: [name] for name in (standard, top_down)})
        means = {name: analysis.by_schedule(curves).sel(schedule=name).mean("seed") for name in (standard, top_down)}
        for i, mean in enumerate(means.values()):
            plots.learning_period(left, mean, colour=plots.COLOURS[i])
        left.set_ylabel("tr(F) per open adapter (nat)")
        left.set_ylim(bottom=0)
        legend = left.legend(
            loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=2, fontsize=7, borderpad=0, columnspacing=1
        )
        legend.set_in_layout(False)  # it may be a little wider than its panel
        by_layer = {name: _mean_run(both, name) for name in (standard, top_down)}
        top = max(float(mean_run["fisher_trace"].max()) for mean_run in by_layer.values())
        for ax, (name, mean_run) in zip((middle, right), by_layer.items(), strict=True):
            plots.heat_map(ax, mean_run, top)
            ax.set_title(shown[name])
        middle.collections[0].colorbar.remove()
        right.set_ylabel("")
        return figure


def _mean_run(ds: xr.Dataset, schedule: str) -> xr.Dataset:
    """tr(F) under one schedule, averaged over seeds, which all open the same layers at the same steps."""
    runs = only(ds, [schedule])
    return runs[["fisher_trace"]].mean("run").assign(trainable=runs["trainable"].isel(run=0))


def fig4(ds: xr.Dataset) -> Figure:
    """The schedules of a permutation sweep: tr(F) and the validation curve by groups of transfer; what goes with it."""
    orders = [name for name, policy in policies(ds).items() if policy != STANDARD]
    if len(orders) < 4:
        raise ValueError(f"fewer than 4 orders to compare, only {', '.join(schedules(ds))}")
    with matplotlib.rc_context(plots.STYLE):
        figure = Figure(figsize=(plots.ACL_PAGE, 3.0), layout="constrained")
        curves, beside = figure.subfigures(1, 2, squeeze=False, width_ratios=(1.9, 1))[0]
        left, _ = plots.groups(*_pair(curves), ds)
        _legend(curves, left, ncols=2, title="mean transfer, % (schedules)")
        right = beside.subplots()
        plots.correlations(right, analysis.transfer_correlations(only(analysis.summarise(ds), orders)))
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
    return str(selected["schedule"].values[0])


def _ordered(ds: xr.Dataset) -> list[xr.DataArray]:
    """When layers opened: of FUN, random and the sweep's own policies, run by run; of all fixed orders as one."""
    shown = plots.labels(ds)
    by_policy = []
    for name in compared(ds, ("fun", "random")):
        selected = only(ds, [name])["selected"]
        if not _one_by_one(selected):
            continue
        by_policy.append(selected.assign_coords(schedule=("run", [shown[name]] * selected.sizes["run"])))
    if orders := schedules_of(ds, ORDER):
        first = [int(np.flatnonzero(ds["schedule"].values == name)[0]) for name in orders]
        pooled = {"schedule": ("run", [f"{len(orders)} fixed orders"] * len(orders)), "seed": ("run", orders)}
        by_policy.append(ds["selected"].isel(run=first).assign_coords(pooled))
    return by_policy


def _one_by_one(selected: xr.DataArray) -> bool:
    """Whether no two layers open at a step, but for those that are open from the start."""
    opened = [run[run > 0] for run in selected.values]
    return any(len(run) for run in opened) and all(len(np.unique(run)) == len(run) for run in opened)


def _example() -> xr.DataArray:
    """Footnote 11's schedule, opening one layer a step: the only numbers that the paper prints of Figure 5."""
    orders = published.table("schedules").set_index("name")["order"]
    order = [int(layer) for layer in orders["fun-example"].split()]
    selected = np.zeros((1, len(order) + 1), dtype=int)
    selected[0, order] = np.arange(1, len(order) + 1)
    return xr.DataArray(selected, {"schedule": ("run", ["FUN"]), "seed": ("run", [0])}, ["run", "layer"])


def transfer(ds: xr.Dataset) -> Figure:
    """Accuracy by language against its distance from the source: standard training and GU."""
    names = [name for name in schedules(ds) if policies(ds)[name] in (STANDARD, "top_down")]
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
        differences = analysis.compare(analysis.by_schedule(analysis.transfer(ds)))
        figure = Figure(figsize=(plots.ACL_COLUMN, 0.75 + 0.17 * differences.sizes["schedule"]), layout="constrained")
        plots.forest(figure.subplots(), differences, plots.labels(ds))
        return figure


def _schedule(ds: xr.Dataset, policy: str, name: str) -> str:
    """The first schedule of a policy.

    Raises:
        ValueError: there is none.
    """
    for schedule in schedules_of(ds, policy):
        return schedule
    raise ValueError(f"no runs of {name}, only of {', '.join(schedules(ds))}")


def _task(ds: xr.Dataset) -> str:
    return str(ds.attrs.get("task", "a sweep"))
