"""Pictures of tr(F) over training: by layer, as lines or as a map, and as the paper's curve."""

from __future__ import annotations

from typing import Any

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.ticker import MaxNLocator

from .. import analysis
from .style import COLOURS, look


def by_layer(ax: Axes, ds: xr.Dataset) -> Axes:
    """tr(F) of every layer, with a band of one standard error.

    A record has a line for each layer over steps, from dark (bottom) to light (top). A probe has a line over layers, one
    for each loader.

    Args:
        ds: over (step, layer), (layer,) or (loader, layer).

    Raises:
        ValueError: more dimensions, such as several runs.
    """
    trace, error = ds["fisher_trace"], ds["fisher_trace_se"]
    along = "step" if "step" in trace.dims else "layer"
    others = [dim for dim in trace.dims if dim != along]
    if len(others) > 1:
        raise ValueError(
            f"expected one run over (step, layer), (layer,) or (loader, layer), got {trace.dims}: select one"
        )
    names = ds[others[0]].values.tolist() if others else [None]
    shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(names)))
    for name, colour in zip(names, shades, strict=True):
        line = {others[0]: name} if others else {}
        mean, se = trace.sel(line), error.sel(line)
        ax.plot(mean[along], mean, color=colour, label=name, marker="o" if along == "layer" else None, markersize=3)
        ax.fill_between(mean[along], mean - se, mean + se, color=colour, alpha=0.2, linewidth=0)
    ax.set_ylim(bottom=0)
    ax.set_xlabel("layer (bottom first)" if along == "layer" else "step")
    ax.set_ylabel("tr(F) (nat)")
    if others:
        ax.legend(title=others[0], ncols=2 if len(names) > 6 else 1, fontsize="small", title_fontsize="small")
    return ax


def heat_map(ax: Axes, ds: xr.Dataset, top: float | None = None) -> Axes:
    """tr(F) of every layer over training as a map, with a white mark where a layer opens.

    Lightness follows the square root of tr(F).

    Args:
        ds: one run, over (step, layer).
        top: tr(F) of the lightest colour, in nats (default: the maximum), so that maps can share a scale.
    """
    trace = ds["fisher_trace"].transpose("layer", "step")
    steps, layers = ds["step"].values.astype(float), np.arange(ds.sizes["layer"])
    scale = PowerNorm(0.5, vmin=0, vmax=top or float(trace.max()))
    mesh = ax.pcolormesh(steps, layers, trace, shading="nearest", cmap="viridis", norm=scale, rasterized=True)
    is_open = ds["trainable"].transpose("layer", "step").values > 0
    edges = np.concatenate([[steps[0]], (steps[1:] + steps[:-1]) / 2, [steps[-1]]])
    for layer, opened in zip(layers, is_open, strict=True):
        if opened.any() and not opened[0]:
            at = edges[int(np.argmax(opened))]
            ax.plot([at, at], [layer - 0.5, layer + 0.5], color="white", linewidth=1.6, solid_capstyle="butt")
    ax.set_xlim(steps[0], steps[-1])
    ax.set_ylim(-0.5, len(layers) - 0.5)
    ax.set_yticks(layers[:: max(1, len(layers) // 6)], ds["layer"].values[:: max(1, len(layers) // 6)])
    ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    ax.set_xlabel("step")
    ax.set_ylabel("layer")
    ax.figure.colorbar(mesh, ax=ax, label="tr(F) (nat)", pad=0.02)
    return ax


def curves(ax: Axes, values: xr.DataArray, groups: dict[str, list[str]], *, normalise: bool = False) -> Axes:
    """A line for each group of schedules: the mean over its runs, with a band of one standard error over seeds.

    Args:
        values: (run, step) with coordinate schedule.
        groups: legend label -> schedules.
        normalise: divide all lines by their maximum, so that the axis runs to 1.
    """
    table = analysis.by_schedule(values)
    lines = {}
    for name, schedules in groups.items():
        per_seed = table.sel(schedule=schedules).mean("schedule")
        error = per_seed.std("seed", ddof=1) / np.sqrt(per_seed.sizes["seed"]) if per_seed.sizes["seed"] > 1 else None
        lines[name] = (per_seed.mean("seed"), error)
    scale = max(float(mean.max()) for mean, _ in lines.values()) if normalise else 1.0
    for i, (name, (mean, error)) in enumerate(lines.items()):
        ax.plot(mean["step"], mean / scale, label=name, **look(i))
        if error is not None:
            low, high = (mean - error) / scale, (mean + error) / scale
            ax.fill_between(mean["step"], low, high, color=look(i)["color"], alpha=0.15, linewidth=0)
    ax.set_xlabel("step")
    return ax


def learning_period(ax: Axes, curve: xr.DataArray, level: float = 0.5, colour: str = COLOURS[0]) -> Axes:
    """Marks a curve's peak and its learning period, with an arrow at a side that is censored.

    Args:
        curve: (step,), as drawn.
        level: as in `analysis.learning_period`.
        colour: of the marks.
    """
    shape = analysis.shape(curve, level)
    peak, onset, end = (float(shape[name]) for name in ("peak", "onset", "end"))
    if np.isnan(peak):
        return ax
    mark: dict[str, Any] = {"color": colour, "markersize": 4, "linestyle": "none", "clip_on": False, "zorder": 4}
    ax.plot(float(shape["peak_step"]), peak, marker="o", markerfacecolor="white", **mark)
    ax.plot([onset, end], [level * peak] * 2, color=colour, linewidth=1, alpha=0.8)
    for at, censored, ends in ((onset, "onset_censored", "|<"), (end, "end_censored", "|>")):
        ax.plot(at, level * peak, marker=ends[1] if float(shape[censored]) else ends[0], **mark)
    return ax
