"""Estimates with their 95 % intervals: means over seeds, and p-values corrected for their number."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import xarray as xr
from scipy import stats


@dataclass(frozen=True)
class Interval:
    """An estimate, its 95 % interval, the number of points n it rests on, and a two-sided p-value where there is one.

    The interval is infinite for n = 1.
    """

    estimate: float
    low: float
    high: float
    n: int
    p: float = math.nan

    @classmethod
    def undefined(cls, n: int) -> Interval:
        """The interval of a statistic that n points do not define: NaN throughout."""
        return cls(math.nan, math.nan, math.nan, n)

    @property
    def half(self) -> float:
        """Half of the interval's width."""
        return (self.high - self.low) / 2

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def mean_interval(values: np.ndarray) -> Interval:
    """Student's t interval of a mean, and the t-test's p against 0; of paired differences, the paired t-test.

    Args:
        values: (n,).
    """
    values = np.asarray(values, dtype=float)
    n, mean = len(values), float(np.mean(values))
    if n < 2:
        return Interval(mean, -math.inf, math.inf, n)
    se = float(np.std(values, ddof=1)) / math.sqrt(n)
    half = float(stats.t.ppf(0.975, n - 1)) * se
    # scipy's ttest_1samp would warn where all differences are equal but for rounding.
    p = float(2 * stats.t.sf(abs(mean) / se, n - 1)) if se != 0 else float(mean == 0)
    return Interval(mean, mean - half, mean + half, n, p)


def over_seeds(table: xr.DataArray) -> xr.DataArray:
    """Mean and 95 % interval (Student's t) over `seed`, for every cell of a table; infinite with one seed.

    Args:
        table: (..., seed).

    Returns:
        (bound: estimate, low, high, ...).

    Example:
        over_seeds(by_schedule(summarise(ds)["peak"]))
    """
    n = table.sizes["seed"]
    mean = table.mean("seed", skipna=False)
    half = mean * np.inf if n < 2 else stats.t.ppf(0.975, n - 1) * table.std("seed", ddof=1, skipna=False) / n**0.5
    half = abs(half)
    bounds = xr.concat([mean, mean - half, mean + half], "bound").assign_coords(bound=["estimate", "low", "high"])
    bounds.attrs = dict(table.attrs)
    return bounds


def adjusted(p: np.ndarray) -> np.ndarray:
    """p-values corrected for their number (Benjamini and Hochberg's false discovery rate).

    NaN stays NaN and does not count.
    """
    corrected = np.array(p, dtype=float)
    known = ~np.isnan(corrected)
    if known.any():
        corrected[known] = stats.false_discovery_control(corrected[known])
    return corrected
