"""The shape of a curve of tr(F): its peak, its width, its area, and when the learning period begins and ends."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from .curves import WINDOW, learning_curve_se, per_open_layer, smooth

_DESCRIPTIONS = {
    "peak": ("peak of tr(F) per open adapter", "nat"),
    "peak_step": ("step of the peak of tr(F)", "step"),
    "area": ("area under tr(F) per open adapter", "nat step"),
    "onset": ("onset of the learning period", "step"),
    "end": ("end of the learning period", "step"),
    "onset_censored": ("whether the curve is above the level where it begins", "1"),
    "end_censored": ("whether the curve is above the level where it ends", "1"),
    "censored": ("whether the curve leaves the record above that level", "1"),
}


def peak(curve: xr.DataArray) -> xr.Dataset:
    """A curve's maximum and its step (the first of equal ones); NaN where there is no curve."""
    height = curve.max("step")
    step = curve.fillna(-np.inf).idxmax("step").where(height.notnull())
    return _described({"peak": height, "peak_step": step})


def learning_period(curve: xr.DataArray, level: float = 0.5) -> xr.Dataset:
    """The steps at which a curve last rises above `level` times its peak before it, and first falls below it after it.

    Crossings are interpolated linearly.

    Returns:
        onset and end, in steps, and onset_censored and end_censored. A side is censored (1) where the curve is still above
        the level at the first or last known record: the true onset is then at most, the true end at least, this.

    Raises:
        ValueError: a level not between 0 and 1.
    """
    if not 0 < level < 1:
        raise ValueError(f"expected a level between 0 and 1, as a share of the peak, got {level}")
    core = [["step"]] * 2
    onset, end, onset_censored, end_censored = xr.apply_ufunc(
        _crossings, curve, curve["step"], input_core_dims=core, output_core_dims=[[]] * 4, kwargs={"level": level}
    )
    return _described({"onset": onset, "end": end, "onset_censored": onset_censored, "end_censored": end_censored})


def width(curve: xr.DataArray, level: float = 0.5) -> xr.Dataset:
    """Width of a curve's peak at `level` times its height, in steps: end minus onset of the `learning_period`.

    Returns:
        width and censored: 1 where either side is censored, so that the true width is at least this.
    """
    return _width(learning_period(curve, level), level)


def _width(period: xr.Dataset, level: float) -> xr.Dataset:
    censored = period["onset_censored"] | period["end_censored"]
    width = _described({"width": period["end"] - period["onset"], "censored": censored})
    width["width"].attrs = {"long_name": f"width of tr(F) at {level:g} of its peak", "units": "step"}
    return width


def area(curve: xr.DataArray) -> xr.DataArray:
    """Area under a curve in nats times steps, by the trapezoid rule over neighbouring records that are both known."""
    integral = xr.apply_ufunc(_trapezoids, curve, curve["step"], input_core_dims=[["step"], ["step"]])
    return _described({"area": integral})["area"]


def shape(curve: xr.DataArray, level: float = 0.5) -> xr.Dataset:
    """A curve's whole shape: peak, peak_step, onset, end, width and area, and which of them are censored."""
    period = learning_period(curve, level)
    return xr.merge([peak(curve), period, _width(period, level), area(curve)])


def shape_from_errors(
    ds: xr.Dataset, window: int = WINDOW, level: float = 0.5, draws: int = 399, seed: int = 0
) -> xr.Dataset:
    """95 % intervals of each run's shape from the standard errors of tr(F): measurement noise alone, not seeds.

    This is a parametric bootstrap: the curve is sampled again with normal errors, independent between records. The
    interval is the basic one, 2 estimate - quantile: the maximum of a noisy curve is biased upwards, that of a resampled
    curve twice, and the reflection takes the bias back (it covered 91 to 95 % of simulated bumps). Where the curve, or one
    sample in forty, is censored, its onset, end or width has no interval (NaN).

    Args:
        ds: a record with fisher_trace, fisher_trace_se and trainable over (..., step, layer).
        window, level: as in `learning_curve` and `learning_period`.
        draws: curves sampled; time and memory grow with draws times curves.
        seed: of the samples.

    Returns:
        peak, peak_step, onset, end, width and area over (bound: estimate, low, high, ...).
    """
    raw, error = per_open_layer(ds["fisher_trace"], ds["trainable"]), learning_curve_se(ds)
    noise = np.random.default_rng(seed).normal(size=(draws, *raw.shape))
    sampled_curves = smooth(raw + error * xr.DataArray(noise, dims=("draw", *raw.dims)), window)
    names = ["peak", "peak_step", "onset", "end", "width", "area"]
    estimate, sampled = shape(smooth(raw, window), level), shape(sampled_curves, level)
    for name, censor in (("onset", "onset_censored"), ("end", "end_censored"), ("width", "censored")):
        censored = (estimate[censor] > 0) | ((sampled[censor] > 0).mean("draw") >= 0.025)
        sampled[name] = sampled[name].where(~censored)
    quantiles = sampled[names].quantile([0.975, 0.025], "draw", skipna=False).drop_vars("quantile")
    bounds = (2 * estimate[names] - quantiles).rename(quantile="bound").clip(min=0, keep_attrs=True)
    for name in ("peak_step", "onset", "end"):
        bounds[name] = bounds[name].clip(float(ds["step"].min()), float(ds["step"].max()), keep_attrs=True)
    return xr.concat([estimate[names], bounds], "bound").assign_coords(bound=["estimate", "low", "high"])


def _crossings(curve: np.ndarray, steps: np.ndarray, *, level: float) -> tuple[Any, ...]:
    """Onset, end, onset_censored and end_censored of curves (..., step), each (...)."""
    n = curve.shape[-1]
    known = ~np.isnan(curve)
    peak = np.argmax(np.where(known, curve, -np.inf), axis=-1)[..., None]
    height = level * np.take_along_axis(curve, peak, -1)
    index = np.arange(n)
    # The nearest records on either side of the peak that are below the height or unknown; -1 and n where there is none.
    below = ~known | (curve < height)
    before = np.where(below & (index < peak), index, -1).max(axis=-1, keepdims=True)
    after = np.where(below & (index > peak), index, n).min(axis=-1, keepdims=True)
    onset, onset_censored = _crossing(curve, steps, height, inside=before + 1, outside=before)
    end, end_censored = _crossing(curve, steps, height, inside=after - 1, outside=after)
    any_known = known.any(axis=-1)
    return (
        np.where(any_known, onset, np.nan),
        np.where(any_known, end, np.nan),
        (onset_censored & any_known).astype(np.int8),
        (end_censored & any_known).astype(np.int8),
    )


def _crossing(
    curve: np.ndarray, steps: np.ndarray, height: np.ndarray, *, inside: np.ndarray, outside: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The step at which the line between two neighbouring records meets the height, and whether that is censored.

    A crossing is censored where the record outside does not exist or is unknown; its step is then that of `inside`.
    """
    exists = (outside >= 0) & (outside < curve.shape[-1])
    outside = np.where(exists, outside, inside)
    a, b = np.take_along_axis(curve, inside, -1), np.take_along_axis(curve, outside, -1)
    crosses = exists & ~np.isnan(b)
    fraction = np.divide(a - height, a - b, out=np.zeros_like(a), where=crosses & (a != b))
    return (steps[inside] + fraction * (steps[outside] - steps[inside]))[..., 0], ~crosses[..., 0]


def _trapezoids(curve: np.ndarray, steps: np.ndarray) -> np.ndarray:
    areas = (curve[..., 1:] + curve[..., :-1]) / 2 * np.diff(steps)
    return np.where(np.isnan(curve).all(axis=-1), np.nan, np.nansum(areas, axis=-1))


def _described(values: dict[str, xr.DataArray]) -> xr.Dataset:
    """The values as a dataset, with long names and units."""
    ds = xr.Dataset(values)
    for name in values:
        if name in _DESCRIPTIONS:
            long_name, units = _DESCRIPTIONS[name]
            ds[name].attrs = {"long_name": long_name, "units": units}
    return ds
