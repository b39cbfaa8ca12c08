"""Pictures of transfer: by group of schedules, by distance of the language, between methods, and with tr(F)'s shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .. import analysis
from .style import ACL_PAGE, COLOURS, GREY, MARKERS, STYLE, labels, look, marks
from .traces import curves


def transfer_groups(summary: xr.Dataset, at_most: int = len(COLOURS)) -> dict[str, list[str]]:
    """Footnote 9's groups of schedules, best first, labelled by their transfer and size.

    Args:
        summary: from `analysis.summarise`.
        at_most: number of groups; the last one takes all that remain.
    """
    mean = analysis.by_schedule(summary["transfer"]).mean("seed")
    by_name = dict(zip(mean["schedule"].values.tolist(), mean.values.tolist(), strict=True))
    grouped = analysis.groups(by_name)
    if len(grouped) > at_most:
        grouped = [*grouped[: at_most - 1], [name for names in grouped[at_most - 1 :] for name in names]]
    return {_group_label([by_name[name] for name in names], names): names for names in grouped}


def _group_label(values: Sequence[float], names: Sequence[str]) -> str:
    low, high = 100 * min(values), 100 * max(values)
    span = f"{low:.1f}" if f"{low:.1f}" == f"{high:.1f}" else f"{low:.1f}-{high:.1f}"
    return f"{span} ({_count(names)})"


def _count(names: Sequence[str]) -> str:
    """The size of a group, with the schedules that everybody looks for by name."""
    named = [name for name in ("standard", "top-down") if name in names]
    others = len(names) - len(named)
    if not named:
        return f"{others}"
    return ", ".join([*named, *([f"{others} other{'s' if others > 1 else ''}"] if others else [])])


def groups(left: Axes, right: Axes, ds: xr.Dataset) -> tuple[Axes, Axes]:
    """Figure 4's curves by footnote 9's groups: left tr(F) per open adapter, right accuracy on the source's development set.

    Args:
        ds: the record of a permutation sweep.
    """
    schedules = transfer_groups(analysis.summarise(ds))
    curves(left, analysis.learning_curve(ds), schedules, normalise=True)
    left.set_ylabel("tr(F) per open adapter\n(highest = 1)")
    left.set_ylim(bottom=0)
    curves(right, 100 * ds["source_metric"], schedules)
    right.set_ylabel("source dev. accuracy (%)")
    return left, right


def figure_4(ds: xr.Dataset) -> Figure:
    """The counterpart of the paper's Figure 4: tr(F) per open adapter and the validation curve, by group of transfer.

    Args:
        ds: the record of a permutation sweep.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(ACL_PAGE, 2.9), layout="constrained")
        first, second = figure.subplots(1, 2)
        left, _ = groups(first, second, ds)
        handles, labels = left.get_legend_handles_labels()
        title = "\n".join(filter(None, [analysis.tuned(ds), "mean transfer, % (schedules)"]))
        figure.legend(handles, labels, title=title, loc="outside lower center", ncols=min(3, len(labels)))
        return figure


def transfer_by_distance(ax: Axes, ds: xr.Dataset, schedules: Sequence[str]) -> Axes:
    """Accuracy in each target against its distance from the source, with bars of one standard error.

    Args:
        schedules: a line each; those that the record lacks are left out.

    Raises:
        ValueError: the record has no distances.
    """
    if "distance" not in ds.coords:
        raise ValueError("no distance of its languages from the source: assign a coordinate distance over target")
    table = 100 * analysis.by_schedule(analysis.result(ds))
    table = table.assign_coords(distance=ds["distance"]).sortby("distance")
    shown = labels(ds)
    for i, name in enumerate(name for name in schedules if name in table["schedule"]):
        accuracy = table.sel(schedule=name)
        n = accuracy.sizes["seed"]
        error = accuracy.std("seed", ddof=1) / np.sqrt(n) if n > 1 else None
        ax.errorbar(accuracy["distance"], accuracy.mean("seed"), yerr=error, label=shown[name], **marks(i))
    for x, name in zip(table["distance"].values, table["target"].values, strict=True):
        ax.annotate(str(name), (x, 1.01), xycoords=("data", "axes fraction"), ha="center", color="0.4", fontsize=7)
    ax.set_xlabel("distance from the source (0 to 1)")
    ax.set_ylabel("accuracy (%)")
    ax.legend()
    return ax


def forest(ax: Axes, compared: xr.Dataset, names: Mapping[str, str] | None = None) -> Axes:
    """Differences of methods from a baseline, in points with 95 % intervals, the best on top.

    A circle is filled where the corrected p is below .05; a cross has no interval.

    Args:
        compared: from `analysis.compare`.
        names: schedule -> its name in the figure, such as `labels(ds)`; by default the schedule itself.
    """
    names = names or {}
    rows = compared.sortby("difference")
    places = np.arange(rows.sizes["schedule"])
    for at, name in zip(places, rows["schedule"].values, strict=True):
        points = 100 * rows.sel(schedule=name)[["difference", "low", "high"]]
        if np.isinf(points["low"]):
            ax.plot(points["difference"], at, marker="x", color=COLOURS[0])
            continue
        fill = None if float(rows["p_adjusted"].sel(schedule=name)) < 0.05 else "white"
        ax.plot([points["low"], points["high"]], [at, at], color=COLOURS[0], linewidth=1.2)
        ax.plot(points["difference"], at, "o", color=COLOURS[0], markersize=4.5, markerfacecolor=fill)
    ax.axvline(0, color=GREY, linewidth=0.8, linestyle=":")
    ax.set_yticks(places, [names.get(str(name), str(name)) for name in rows["schedule"].values])
    ax.set_ylim(-0.6, len(places) - 0.4)
    baseline = compared.attrs["baseline"]
    ax.set_xlabel(f"transfer minus {names.get(baseline, baseline)}\n(points, 95 %)")
    return ax


_MEASURES = {"spearman": "Spearman, half of the seeds each", "mixed": "schedules' own (mixed model)"}


def correlations(ax: Axes, correlated: xr.Dataset, measures: Sequence[str] = ("spearman", "mixed")) -> Axes:
    """Correlations of tr(F)'s shape with transfer, with 95 % intervals; a note where they are not defined.

    Args:
        correlated: from `analysis.transfer_correlations`.
        measures: of its measures, the ones to draw.
    """
    quantities = correlated["quantity"].values.tolist()
    for i, measure in enumerate(measures):
        for at, quantity in enumerate(quantities):
            interval = correlated.sel({"quantity": quantity, "measure": measure})
            place = -at + 0.3 * (0.5 * (len(measures) - 1) - i)
            if np.isnan(interval["correlation"]):
                note = "schedules do not differ beyond noise"
                box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
                ax.text(0, place, note, ha="center", va="center", fontsize=6, color="0.3", bbox=box)
                continue
            colour = look(i)["color"]
            ax.plot([interval["low"], interval["high"]], [place] * 2, color=colour, linewidth=1.2)
            ax.plot(interval["correlation"], place, marker=MARKERS[i], markersize=4, color=colour, linestyle="none")
        ax.plot([], [], MARKERS[i], markersize=4, color=look(i)["color"], label=_MEASURES.get(measure, measure))
    ax.axvline(0, color=GREY, linewidth=0.8, linestyle=":", zorder=0)
    ax.set_yticks(-np.arange(len(quantities)), quantities)
    ax.set_ylim(-len(quantities) + 0.5, 0.5)
    ax.set_xlim(-1, 1)
    ax.set_xlabel("correlation with transfer (95 %)")
    return ax
