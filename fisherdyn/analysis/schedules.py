"""When layers open: their order, its distance from top-down, and the average schedule of Figure 5."""

from __future__ import annotations

import numpy as np
import xarray as xr

from .results import by_schedule


def opening_order(selected: xr.DataArray) -> xr.DataArray:
    """The layers in the order in which they opened after the start of training.

    Args:
        selected: (..., layer), the step at which each layer opened, -1 for never; layers bottom first.

    Returns:
        (..., opening): the index of the layer (bottom 0) that opened first, second, ...; opening counts from 1. NaN after
        the last opening, and throughout in a run that opened two layers at one step (linear probing).
    """
    layers = selected.sizes["layer"]
    order = xr.apply_ufunc(
        _orders, selected, input_core_dims=[["layer"]], output_core_dims=[["opening"]],
        exclude_dims={"layer"}, dask_gufunc_kwargs={"output_sizes": {"opening": layers}},
    )  # fmt: skip
    order = order.assign_coords(opening=np.arange(1, layers + 1)).dropna("opening", how="all")
    order.attrs = {"long_name": "layer that opens", "units": "1"}
    return order


def _orders(selected: np.ndarray) -> np.ndarray:
    step = np.where(selected > 0, selected.astype(float), np.inf)
    order = np.argsort(step, axis=-1, kind="stable").astype(float)
    step = np.sort(step, axis=-1)
    order[np.isinf(step)] = np.nan
    tied = ((step[..., 1:] == step[..., :-1]) & np.isfinite(step[..., 1:])).any(axis=-1)
    order[tied] = np.nan
    return order


def distance_from_top_down(selected: xr.DataArray) -> xr.DataArray:
    """Kendall's tau distance of a schedule from top-down: the share of pairs of layers that opened bottom first.

    It is 0 for top-down, 1 for bottom-up, and 1/2 on average for random orders. Only pairs that opened after the start
    and at different steps count; NaN where there is none (standard training, linear probing).

    Args:
        selected: (..., layer), the step at which each layer opened, -1 for never; layers bottom first.
    """
    low, high = np.triu_indices(selected.sizes["layer"], 1)
    lower, higher = (
        selected.isel(layer=xr.DataArray(index, dims="pair")).drop_vars("layer", errors="ignore")
        for index in (low, high)
    )
    ordered = (lower > 0) & (higher > 0) & (lower != higher)
    distance = (ordered & (lower < higher)).sum("pair") / ordered.sum("pair").where(ordered.any("pair"))
    distance.attrs = {"long_name": "Kendall's tau distance from top-down", "units": "1"}
    return distance


def averaged_schedule(selected: xr.DataArray) -> xr.Dataset:
    """Figure 5: the layer that each schedule opens first, second, ..., averaged over its runs.

    Args:
        selected: (run, layer) with coordinates schedule and seed, as a record has it.

    Returns:
        layer (mean index) and se (standard error over seeds; NaN with one) over (schedule, opening), without schedules
        that have no order (standard training, linear probing).

    Raises:
        ValueError: no schedule opened layers one at a time.
    """
    order = opening_order(selected)
    order = order.isel(run=np.flatnonzero(order.notnull().any("opening")))
    if not order.sizes["run"]:
        raise ValueError("expected runs that open layers one at a time, got none: nothing to average")
    table = by_schedule(order)
    error = (
        table.std("seed", ddof=1) / table.sizes["seed"] ** 0.5
        if table.sizes["seed"] > 1
        else table.mean("seed") * np.nan
    )
    average = xr.Dataset({"layer": table.mean("seed"), "se": error})
    average["layer"].attrs = {"long_name": "layer that opens, mean over seeds", "units": "1"}
    average["se"].attrs = {"long_name": "standard error over seeds", "units": "1"}
    return average
