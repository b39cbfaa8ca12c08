"""Which layer opens when."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from .style import GREY, look, marks


def openings(ax: Axes, ds: xr.Dataset) -> Axes:
    """One run's schedule: a bar a layer, from the step at which it opens to the last; frozen layers have none.

    Args:
        ds: one run, with selected (layer) and step.
    """
    last = float(ds["step"].max())
    when = ds["selected"].values.astype(float)
    layers = np.arange(len(when))
    opened = when >= 0
    ax.barh(layers[opened], last - when[opened], left=when[opened], height=0.7, color=look(0)["color"], alpha=0.75)
    ax.set_yticks(layers, ds["layer"].values)
    ax.set_xlim(0, last)
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.set_xlabel("step (bar: layer is open)")
    ax.set_ylabel("layer")
    return ax


def averaged_schedules(ax: Axes, averaged: xr.Dataset) -> Axes:
    """Figure 5: the layer that opens first, second, ..., averaged over runs, beside top-down (the grey diagonal).

    Args:
        averaged: layer and se over (schedule, opening), of `analysis.averaged_schedule`; top-down is left out.
            Bars: one standard error.
    """
    top = averaged.sizes["opening"] - 1
    ax.plot(averaged["opening"], top - np.arange(top + 1), color=GREY, linewidth=4, alpha=0.35, label="GU (top-down)")
    for i, name in enumerate(averaged["schedule"].values.tolist()):
        one = averaged.sel(schedule=name)
        error = None if one["se"].isnull().all() else one["se"]
        ax.errorbar(one["opening"], one["layer"], yerr=error, label=name, **marks(i))
    ax.set_ylim(-0.7, top + 0.7)
    ax.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    ax.set_xlabel("opening (one every k steps)")
    ax.set_ylabel("layer that opens")
    return ax
