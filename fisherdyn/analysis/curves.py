"""The paper's curve: tr(F) per open adapter over training, smoothed and scaled (Figures 3 and 4)."""

from __future__ import annotations

import numpy as np
import xarray as xr

WINDOW = 3
"""Records in the paper's moving average."""


def smooth(curve: xr.DataArray, window: int = WINDOW) -> xr.DataArray:
    """The centred moving average over `step`, with fewer records at both ends; NaN stays NaN.

    Raises:
        ValueError: a window below 1.
    """
    if window < 1:
        raise ValueError(f"expected a window of at least 1 record, got {window}")
    mean = curve.rolling(step=window, center=True, min_periods=1).mean().where(curve.notnull())
    mean.attrs = dict(curve.attrs)
    return mean


def learning_curve(ds: xr.Dataset, window: int = WINDOW) -> xr.DataArray:
    """tr(F) of the open adapters over their number, smoothed: the paper's curve (Figures 3 and 4).

    Args:
        ds: a record with fisher_trace and trainable over (..., step, layer).
        window: records in the moving average (`smooth`); 1 for none.

    Returns:
        (..., step), in nats; NaN where no layer is open.

    Raises:
        ValueError: a probe, which has no steps.
    """
    if "step" not in ds["fisher_trace"].dims:
        raise ValueError(
            "expected a record over step, from Recorder, fit or a sweep, got a probe, which has no steps: "
            "plot its layers with ds.fisher.plot()"
        )
    curve = smooth(per_open_layer(ds["fisher_trace"], ds["trainable"]), window)
    curve.attrs = {"long_name": "tr(F) per open adapter", "units": "nat"}
    return curve


def learning_curve_se(ds: xr.Dataset) -> xr.DataArray:
    """Standard error of `learning_curve(ds, window=1)`: (..., step), in nats.

    Layers are measured on the same examples, so their errors are taken to be fully correlated: this is an upper bound.
    """
    error = per_open_layer(ds["fisher_trace_se"], ds["trainable"])
    error.attrs = {"long_name": "standard error of tr(F) per open adapter", "units": "nat"}
    return error


def per_open_layer(values: xr.DataArray, trainable: xr.DataArray) -> xr.DataArray:
    """Mean over the open layers: (..., layer) -> (...); NaN where no layer is open."""
    is_open = trainable > 0
    count = is_open.sum("layer")
    return values.where(is_open, 0.0).sum("layer") / count.where(count > 0)


def to_unit(curve: xr.DataArray, over: str | tuple[str, ...] = "step") -> xr.DataArray:
    """A curve divided by its maximum along `over`; NaN where the maximum is not positive.

    Over "step" every curve has a maximum of 1, to compare shapes. Over all dimensions only the highest curve has, which
    keeps their heights comparable.
    """
    top = curve.max(over)
    scaled = curve / top.where(top > 0)
    scaled.attrs = {"long_name": f"{curve.attrs.get('long_name', 'curve')}, over its largest", "units": "1"}
    return scaled.astype(np.float64)
