"""Pictures of schedules: which layer opens when."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from .style import GREY, look, marks


def openings(ax: Axes, ds: xr.Dataset) -> Axes:
    """One run's schedule: a bar for each layer, from the step at which it opens to the last step.

    Layers that stay frozen have no bar.

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
    """Figure 5: the layer that opens first, second, ..., averaged over runs, with bars of one standard error.

    The grey diagonal is top-down.

    Args:
        averaged: layer and se over (schedule, opening), from `analysis.averaged_schedule`; top-down is left out.
    """
    top = averaged.sizes["opening"] - 1
    ax.plot(averaged["opening"], top - np.arange(top + 1), color=GREY, linewidth=4, alpha=0.35, label="GU (top-down)")
    for i, name in enumerate(averaged["schedule"].values.tolist()):
        schedule = averaged.sel(schedule=name)
        error = None if schedule["se"].isnull().all() else schedule["se"]
        ax.errorbar(schedule["opening"], schedule["layer"], yerr=error, label=name, **marks(i))
    ax.set_ylim(-0.7, top + 0.7)
    ax.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    ax.set_xlabel("opening (one every k steps)")
    ax.set_ylabel("layer that opens")
    return ax
