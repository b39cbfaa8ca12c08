"""Runs of different lengths in one dataset: each record is put on the steps of all runs."""

from __future__ import annotations

from collections.abc import Iterable

import xarray as xr

from .runs import Settings
from .zarr_store import missing_value

AXES = ("step", "eval_step", "selection_step")
"""Dimensions along which runs may differ."""


def planned_steps(axis: str, settings: Settings, layers: int) -> list[int]:
    """The steps at which a run with these settings has a value."""
    if axis == "step":
        return settings.record_steps()
    if axis == "eval_step":
        return settings.evaluation_steps()
    return settings.selection_steps(layers)


def align(ds: xr.Dataset, axis: str, steps: Iterable[int]) -> xr.Dataset:
    """A run's record on the steps of all runs, with NaN, "" or -1 where it has no value.

    Raises:
        ValueError: the record has a step that is not among them.
    """
    common, recorded = list(steps), ds[axis].values.tolist()
    if recorded == common:
        return ds
    if unplanned := sorted(set(recorded) - set(common)):
        raise ValueError(f"its record has {axis} {', '.join(map(str, unplanned))}, which no other run has")
    return ds.reindex(
        {axis: common}, fill_value={str(name): missing_value(v.dtype) for name, v in ds.data_vars.items()}
    )
