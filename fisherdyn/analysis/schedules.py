"""Which layer opened when: orders, how far they are from top-down, and the average schedule of Figure 5."""

from __future__ import annotations

import numpy as np
import xarray as xr

from .results import by_schedule


def opening_order(selected: xr.DataArray) -> xr.DataArray:
    """The layer that opened first, second, ... after the start of training.

    Args:
        selected: (..., layer), the step at which each layer opened, -1 for never; layers bottom first.

    Returns:
        (..., opening): the layer's index, bottom 0; opening counts from 1. NaN where there is none, and in a run that
        opened two layers at one step (linear probing), which has no order.
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
    later = np.where(selected > 0, selected.astype(float), np.inf)
    order = np.argsort(later, axis=-1, kind="stable").astype(float)
    when = np.sort(later, axis=-1)
    order[np.isinf(when)] = np.nan
    together = ((when[..., 1:] == when[..., :-1]) & np.isfinite(when[..., 1:])).any(axis=-1)
    order[together] = np.nan
    return order


def distance_from_top_down(selected: xr.DataArray) -> xr.DataArray:
    """Kendall's tau distance of a schedule from top-down: the share of layer pairs that opened in the other order.

    0 is top-down, 1 bottom-up, about 1/2 a random order. Pairs are of layers that opened after the start, at two
    different steps; NaN where there is no such pair (standard training, linear probing).

    Args:
        selected: (..., layer), the step at which each layer opened, -1 for never; layers bottom first.
    """
    low, high = np.triu_indices(selected.sizes["layer"], 1)
    a, b = (
        selected.isel(layer=xr.DataArray(index, dims="pair")).drop_vars("layer", errors="ignore")
        for index in (low, high)
    )
    counts = (a > 0) & (b > 0) & (a != b)
    found = (counts & (a < b)).sum("pair") / counts.sum("pair").where(counts.any("pair"))
    found.attrs = {"long_name": "Kendall's tau distance from top-down", "units": "1"}
    return found


def averaged_schedule(selected: xr.DataArray) -> xr.Dataset:
    """Figure 5: the layer that each schedule opens first, second, ..., averaged over its runs.

    Args:
        selected: (run, layer) with coordinates schedule and seed, as a record has it.

    Returns:
        layer (mean index) and se (over seeds; NaN with one) over (schedule, opening); schedules without an order of
        their own (standard training, linear probing) are left out.

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
    found = xr.Dataset({"layer": table.mean("seed"), "se": error})
    found["layer"].attrs = {"long_name": "layer that opens, mean over seeds", "units": "1"}
    found["se"].attrs = {"long_name": "standard error over seeds", "units": "1"}
    return found
