"""What transfers: groups of schedules, languages by their distance, methods side by side."""

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


def groups(left: Axes, right: Axes, ds: xr.Dataset) -> tuple[Axes, Axes]:
    """Figure 4's two curves of footnote 9's groups: tr(F) per open adapter, and accuracy on the source's development set.

    Args:
        ds: the record of a permutation sweep.
    """
    found = transfer_groups(analysis.summarise(ds))
    curves(left, analysis.learning_curve(ds), found, normalise=True)
    left.set_ylabel("tr(F) per open adapter\n(highest = 1)")
    left.set_ylim(bottom=0)
    curves(right, 100 * ds["source_metric"], found)
    right.set_ylabel("source dev. accuracy (%)")
    return left, right


def figure_4(ds: xr.Dataset) -> Figure:
    """The counterpart of the paper's Figure 4: tr(F) per open adapter and the validation curve, grouped by transfer.

    Args:
        ds: the record of a permutation sweep.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(ACL_PAGE, 2.9), layout="constrained")
        first, second = figure.subplots(1, 2)
        left, _ = groups(first, second, ds)
        handles, labels = left.get_legend_handles_labels()
        figure.legend(
            handles, labels, title="mean transfer, % (schedules)", loc="outside lower center", ncols=min(3, len(labels))
        )
        return figure


def transfer_by_distance(ax: Axes, ds: xr.Dataset, schedules: Sequence[str]) -> Axes:
    """Accuracy in each target against its distance from the source, a line a schedule, bars of one standard error.

    Schedules that the record lacks are left out.

    Raises:
        ValueError: the record has no distances; those of the embedded world do.
    """
    if "distance" not in ds.coords:
        raise ValueError("no distance of its languages from the source: assign a coordinate distance over target")
    table = 100 * analysis.by_schedule(analysis.result(ds))
    table = table.assign_coords(distance=ds["distance"]).sortby("distance")
    shown = labels(ds)
    for i, name in enumerate(name for name in schedules if name in table["schedule"]):
        one = table.sel(schedule=name)
        n = one.sizes["seed"]
        error = one.std("seed", ddof=1) / np.sqrt(n) if n > 1 else None
        ax.errorbar(one["distance"], one.mean("seed"), yerr=error, label=shown[name], **marks(i))
    for x, name in zip(table["distance"].values, table["target"].values, strict=True):
        ax.annotate(str(name), (x, 1.01), xycoords=("data", "axes fraction"), ha="center", color="0.4", fontsize=7)
    ax.set_xlabel("distance from the source (0 to 1)")
    ax.set_ylabel("accuracy (%)")
    ax.legend()
    return ax


def forest(ax: Axes, compared: xr.Dataset, names: Mapping[str, str] | None = None) -> Axes:
    """Methods against one another: difference in points with its 95 % interval, best on top.

    Filled where p, corrected for the number of methods, is below .05; a cross where no interval could be had.

    Args:
        compared: of `analysis.compare`.
        names: schedule -> its name in the figure, such as `labels(ds)`; by default the schedule itself.
    """
    names = names or {}
    rows = compared.sortby("difference")
    places = np.arange(rows.sizes["schedule"])
    for at, name in zip(places, rows["schedule"].values, strict=True):
        one = 100 * rows.sel(schedule=name)[["difference", "low", "high"]]
        if np.isinf(one["low"]):
            ax.plot(one["difference"], at, marker="x", color=COLOURS[0])
            continue
        found = float(rows["p_adjusted"].sel(schedule=name)) < 0.05
        ax.plot([one["low"], one["high"]], [at, at], color=COLOURS[0], linewidth=1.2)
        ax.plot(
            one["difference"], at, "o", color=COLOURS[0], markersize=4.5, markerfacecolor=None if found else "white"
        )
    ax.axvline(0, color=GREY, linewidth=0.8, linestyle=":")
    ax.set_yticks(places, [names.get(str(name), str(name)) for name in rows["schedule"].values])
    ax.set_ylim(-0.6, len(places) - 0.4)
    baseline = compared.attrs["baseline"]
    ax.set_xlabel(f"transfer minus {names.get(baseline, baseline)}\n(points, 95 %)")
    return ax


_MEASURES = {"spearman": "Spearman, half of the seeds each", "mixed": "schedules' own (mixed model)"}


def correlations(ax: Axes, found: xr.Dataset, measures: Sequence[str] = ("spearman", "mixed")) -> Axes:
    """How the shape of tr(F) goes with transfer: correlations with 95 % intervals, none where it cannot be said.

    Args:
        found: of `analysis.transfer_correlations`.
    """
    quantities = found["quantity"].values.tolist()
    for i, measure in enumerate(measures):
        for at, quantity in enumerate(quantities):
            one = found.sel({"quantity": quantity, "measure": measure})
            place = -at + 0.3 * (0.5 * (len(measures) - 1) - i)
            if np.isnan(one["correlation"]):
                said = "schedules do not differ beyond noise"
                plain = {"facecolor": "white", "edgecolor": "none", "pad": 1}
                ax.text(0, place, said, ha="center", va="center", fontsize=6, color="0.3", bbox=plain)
                continue
            ax.plot([one["low"], one["high"]], [place] * 2, color=look(i)["color"], linewidth=1.2)
            ax.plot(
                one["correlation"], place, marker=MARKERS[i], markersize=4, color=look(i)["color"], linestyle="none"
            )
        ax.plot([], [], MARKERS[i], markersize=4, color=look(i)["color"], label=_MEASURES.get(measure, measure))
    ax.axvline(0, color=GREY, linewidth=0.8, linestyle=":", zorder=0)
    ax.set_yticks(-np.arange(len(quantities)), quantities)
    ax.set_ylim(-len(quantities) + 0.5, 0.5)
    ax.set_xlim(-1, 1)
    ax.set_xlabel("correlation with transfer (95 %)")
    return ax
