"""From records to numbers: curves of tr(F), their peak and width, transfer, footnote 9's groups, and what goes with what.

Everything takes xarray and gives xarray or plain numbers; nothing here needs torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import xarray as xr
from scipy import stats

FINAL = 0.75
"""Evaluations from this share of the run on count as its result: single checkpoints swing too much."""
GROUP_WIDTH = 0.01
"""Footnote 9: runs within one point of the best ungrouped one are a group."""


def learning_curve(ds: xr.Dataset, window: int = 3) -> xr.DataArray:
    """tr(F) of the open adapters over their number, smoothed: the paper's curve (Figures 3 and 4).

    Args:
        ds: a record with fisher_trace and trainable over (..., step, layer).
        window: records in the centred moving average, shorter at both ends.

    Returns:
        (..., step), in nats; NaN where no layer is open.
    """
    is_open = ds["trainable"] > 0
    count = is_open.sum("layer")
    curve = ds["fisher_trace"].where(is_open, 0.0).sum("layer") / count.where(count > 0)
    smooth = curve.rolling(step=window, center=True, min_periods=1).mean().where(count > 0)
    smooth.attrs = {"long_name": "tr(F) per open adapter", "units": "nat"}
    return smooth


def peak(curve: xr.DataArray) -> xr.Dataset:
    """Height of a curve's maximum and the step at which it stands (the first, of equals); NaN where there is no curve."""
    top = curve.max("step")
    found = xr.Dataset({"peak": top, "peak_step": curve.fillna(-np.inf).idxmax("step").where(top.notnull())})
    found["peak"].attrs = {"long_name": "peak of tr(F) per open adapter", "units": "nat"}
    found["peak_step"].attrs = {"long_name": "step of the peak of tr(F)", "units": "step"}
    return found


def width(curve: xr.DataArray, level: float = 0.5) -> xr.Dataset:
    """Steps for which a curve stays above `level` times its peak, around it; crossings are interpolated linearly.

    Returns:
        width, and `censored`: 1 where the curve is still above the level at the first or last record, so that the true
        width is at least this.
    """
    results = xr.apply_ufunc(
        _width, curve, curve["step"], input_core_dims=[["step"], ["step"]], output_core_dims=[[], []],
        kwargs={"level": level}, vectorize=True,
    )  # fmt: skip
    found = xr.Dataset({"width": results[0], "censored": results[1]})
    found["width"].attrs = {"long_name": f"width of tr(F) at {level:g} of its peak", "units": "step"}
    found["censored"].attrs = {"long_name": "whether the curve leaves the record above that level", "units": "1"}
    return found


def _width(curve: np.ndarray, steps: np.ndarray, level: float) -> tuple[float, int]:
    if np.isnan(curve).all():
        return math.nan, 0
    top = int(np.nanargmax(curve))
    height = level * curve[top]
    ends, censored = [], 0
    for side in (range(top, -1, -1), range(top, len(curve))):
        end, before = float(steps[side[-1]]), side[0]
        for i in side:
            if np.isnan(curve[i]):
                end = float(steps[before])
                censored = 1
                break
            if curve[i] < height:
                share = (curve[before] - height) / (curve[before] - curve[i])
                end = float(steps[before] + share * (steps[i] - steps[before]))
                break
            before = i
        else:
            censored = 1
        ends.append(end)
    return ends[1] - ends[0], censored


def result(ds: xr.Dataset, variable: str = "metric") -> xr.DataArray:
    """A metric averaged over the evaluations of the last quarter of the run (`FINAL`)."""
    axis = "eval_step" if "eval_step" in ds[variable].dims else "step"
    late = ds[axis] >= FINAL * ds[axis].max()
    return ds[variable].where(late, drop=True).mean(axis, keep_attrs=True)


def transfer(ds: xr.Dataset) -> xr.DataArray:
    """Mean accuracy over the targets (the source is not among them), of the last quarter: (run,)."""
    found = result(ds).mean("target")
    found.attrs = {"long_name": "mean transfer over target languages", "units": "1"}
    return found


def summarise(ds: xr.Dataset) -> xr.Dataset:
    """What a run comes to, over run: source, transfer, each target, peak, peak_step, width, censored."""
    curve = learning_curve(ds)
    results = {"source": result(ds, "source_metric"), "transfer": transfer(ds), "target_result": result(ds)}
    return xr.Dataset({**results, **peak(curve), **width(curve)})


def groups(transfer_of: dict[str, float], within: float = GROUP_WIDTH) -> list[list[str]]:
    """Footnote 9: sort by transfer, take the best ungrouped one, and group with it all that are at most `within` below.

    Raises:
        ValueError: a transfer that is NaN.
    """
    if unknown := [name for name, value in transfer_of.items() if math.isnan(value)]:
        raise ValueError(f"expected a transfer for each schedule, got NaN for {', '.join(unknown)}")
    left = sorted(transfer_of, key=lambda name: -transfer_of[name])
    found = []
    while left:
        best = transfer_of[left[0]]
        found.append([name for name in left if best - transfer_of[name] <= within + 1e-12])
        left = left[len(found[-1]) :]
    return found


@dataclass(frozen=True)
class Interval:
    """An estimate with a 95 % interval and the number it rests on; the interval is infinite for n = 1."""

    estimate: float
    low: float
    high: float
    n: int
    p: float = math.nan

    @property
    def half(self) -> float:
        return (self.high - self.low) / 2

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def mean_interval(values: np.ndarray) -> Interval:
    """Student's t interval of a mean (of paired differences: the paired t-test), and its two-sided p against 0."""
    x = np.asarray(values, dtype=float)
    n, mean = len(x), float(np.mean(x))
    if n < 2:
        return Interval(mean, -math.inf, math.inf, n)
    se = float(np.std(x, ddof=1)) / math.sqrt(n)
    half = float(stats.t.ppf(0.975, n - 1)) * se
    p = float(stats.ttest_1samp(x, 0.0).pvalue) if se != 0 else float(mean == 0)
    return Interval(mean, mean - half, mean + half, n, p)


def paired_difference(values: xr.DataArray, first: str, second: str) -> Interval:
    """Schedule `first` minus `second` of a per-run value, paired by seed."""
    table = by_schedule(values)
    return mean_interval((table.sel(schedule=first) - table.sel(schedule=second)).values)


def by_schedule(values: xr.DataArray) -> xr.DataArray:
    """(run, ...) with coordinates schedule and seed -> (schedule, seed, ...), of the seeds that every schedule has.

    Raises:
        ValueError: no seed is complete.
    """
    order = list(dict.fromkeys(values["schedule"].values.tolist()))
    present = xr.ones_like(values["seed"], dtype=int).set_index(run=["schedule", "seed"]).unstack("run", fill_value=0)
    complete = present["seed"].values[present.all("schedule").values]
    if not len(complete):
        raise ValueError("no seed has a run of every schedule: finish the sweep, or select schedules that have one")
    table = values.set_index(run=["schedule", "seed"]).unstack("run")
    return table.reindex(schedule=order, seed=complete).transpose("schedule", "seed", ...)


def across_schedules(x: xr.DataArray, y: xr.DataArray, resamples: int = 9999) -> Interval:
    """Whether schedules with a higher x have a higher y: Spearman's rho between (schedule, seed) tables, cross-fitted.

    x is averaged over one half of the seeds and y over the other, both ways round: x and y of the same runs would go
    together by those runs' noise alone, whatever the schedules do. Needs two seeds; the estimate is NaN with one.
    """
    halves = [slice(0, None, 2), slice(1, None, 2)]
    if x.sizes["seed"] < 2:
        return Interval(math.nan, math.nan, math.nan, x.sizes["schedule"])
    first, second = ([table.isel(seed=half).mean("seed").values for half in halves] for table in (x, y))
    return rank_correlation(np.array(first), np.array(second[::-1]), resamples=resamples)


def rank_correlation(x: np.ndarray, y: np.ndarray, seed: int = 0, resamples: int = 9999) -> Interval:
    """Spearman's rho with a bootstrap interval (percentile) and a permutation p-value; needs at least 4 points.

    Args:
        x, y: (points,), or (pairs, points): then rho is the mean over pairs, whose points are resampled together.

    Returns:
        An Interval of NaN where a row is constant, too short or has a NaN.
    """
    x, y = np.atleast_2d(np.asarray(x, dtype=float)), np.atleast_2d(np.asarray(y, dtype=float))
    n = x.shape[1]
    if n < 4 or np.isnan(x).any() or np.isnan(y).any() or not (_vary(x) and _vary(y)):
        return Interval(math.nan, math.nan, math.nan, n)
    rng = np.random.default_rng(seed)
    rank_x, rank_y = _unit_ranks(x), _unit_ranks(y)
    found = float((rank_x * rank_y).sum(axis=-1).mean())
    orders = rng.permuted(np.tile(np.arange(n), (resamples, 1)), axis=1)
    shuffled = (rank_x[:, None] * rank_y[:, orders]).sum(axis=-1).mean(axis=0)
    p = (1 + int((np.abs(shuffled) >= abs(found) - 1e-12).sum())) / (resamples + 1)
    draws = rng.integers(n, size=(resamples, n))
    boot = (_unit_ranks(x[:, draws]) * _unit_ranks(y[:, draws])).sum(axis=-1).mean(axis=0)
    low, high = np.nanpercentile(boot, [2.5, 97.5])
    return Interval(found, float(low), float(high), n, p)


def _vary(rows: np.ndarray) -> bool:
    return bool((np.ptp(rows, axis=1) > 0).all())


def _unit_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks along the last axis, centred and of unit length: their dot product is Spearman's rho; NaN where constant."""
    ranks = stats.rankdata(values, axis=-1)
    ranks = ranks - ranks.mean(axis=-1, keepdims=True)
    length = np.linalg.norm(ranks, axis=-1, keepdims=True)
    return np.divide(ranks, length, out=np.full_like(ranks, np.nan), where=length > 0)


def order_effect(values: xr.DataArray) -> tuple[float, float, float]:
    """Whether schedules differ: a two-way table (schedule, seed) without interaction.

    Returns:
        sd of the schedules' means; sd of one run around schedule and seed; p of the F test (1 where all are equal).
    """
    schedules, seeds = values.sizes["schedule"], values.sizes["seed"]
    between = float(values.mean("seed").std(ddof=1))
    residual = values - values.mean("seed") - values.mean("schedule") + values.mean()
    freedom = (schedules - 1) * (seeds - 1)
    noise = float(np.sqrt((residual**2).sum() / freedom))
    if between < 1e-12:
        return between, noise, 1.0
    ratio = between**2 * seeds / noise**2 if noise > 0 else math.inf
    return between, noise, float(stats.f.sf(ratio, schedules - 1, freedom))
