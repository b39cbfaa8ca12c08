"""The paper's curve: tr(F) per open adapter over training, smoothed and scaled (Figures 3 and 4)."""

from __future__ import annotations

import numpy as np
import xarray as xr

WINDOW = 3
"""Records in the paper's moving average."""


def smooth(curve: xr.DataArray, window: int = WINDOW) -> xr.DataArray:
    """The centred moving average over `step`, of fewer records at both ends; NaN stays NaN.

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
            "expected a record over step (of Recorder, fit or a sweep), and a probe is one moment of it: plot it"
        )
    curve = smooth(per_open_layer(ds, "fisher_trace"), window)
    curve.attrs = {"long_name": "tr(F) per open adapter", "units": "nat"}
    return curve


def learning_curve_se(ds: xr.Dataset) -> xr.DataArray:
    """Standard error of `learning_curve(ds, window=1)`: (..., step), in nats.

    Layers are measured on the same examples, so their errors are taken to move together: an upper bound.
    """
    error = per_open_layer(ds, "fisher_trace_se")
    error.attrs = {"long_name": "standard error of tr(F) per open adapter", "units": "nat"}
    return error


def per_open_layer(ds: xr.Dataset, variable: str = "fisher_trace") -> xr.DataArray:
    """The sum over open layers over their number: (..., step); NaN where no layer is open."""
    is_open = ds["trainable"] > 0
    count = is_open.sum("layer")
    return ds[variable].where(is_open, 0.0).sum("layer") / count.where(count > 0)


def to_unit(curve: xr.DataArray, over: str | tuple[str, ...] = "step") -> xr.DataArray:
    """A curve over its largest value along `over`, so that it runs from 0 to 1; NaN where that is not positive.

    Over "step" each curve fills the range (shapes are compared), over all dimensions only the highest does (heights too).
    """
    top = curve.max(over)
    scaled = curve / top.where(top > 0)
    scaled.attrs = {"long_name": f"{curve.attrs.get('long_name', 'curve')}, over its largest", "units": "1"}
    return scaled.astype(np.float64)
