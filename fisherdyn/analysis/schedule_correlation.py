"""Does the shape of tr(F) go with transfer? Correlations between schedules that the noise of single runs cannot fake.

Peak and transfer of the same run are correlated through that run's noise, whatever its schedule does. Two estimators are
free of this: `across_schedules` takes x and y from different halves of the seeds, `mixed_correlation` uses only products
of different seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import xarray as xr

from .correlations import RESAMPLES, Method, correlation, fisher_z_interval, partial_correlation
from .intervals import Interval, adjusted
from .power import points_needed
from .results import by_schedule

SMALLEST_CORRELATION = 0.6
"""The correlation between schedules that a study should be able to see."""
RELIABLE = 0.8
"""The reliability that a schedule's mean over half of the seeds should have."""
HALVES = (slice(0, None, 2), slice(1, None, 2))
"""Even and odd seeds."""


def across_schedules(
    x: xr.DataArray, y: xr.DataArray, method: Method = "spearman", resamples: int = RESAMPLES
) -> Interval:
    """Tests whether schedules with a higher x have a higher y, with x and y from different seeds (cross-fitted).

    x is averaged over one half of the seeds and y over the other, both ways round, and the two correlations are averaged.
    Halves are noisier than the whole, so the estimate is nearer to 0 than the schedules' true correlation.

    Args:
        x, y: (schedule, seed).
        method: as in `correlation`.

    Returns:
        An Interval over schedules, undefined with one seed.
    """
    if x.sizes["seed"] < 2:
        return Interval.undefined(x.sizes["schedule"])
    return correlation(_half_means(x), _half_means(y)[::-1], method, resamples=resamples)


def partial_across_schedules(
    x: xr.DataArray, y: xr.DataArray, given: xr.DataArray, resamples: int = RESAMPLES
) -> Interval:
    """`across_schedules` for the partial rank correlation; `given` is taken from the same half of the seeds as x."""
    if x.sizes["seed"] < 2:
        return Interval.undefined(x.sizes["schedule"])
    return partial_correlation(_half_means(x), _half_means(y)[::-1], _half_means(given), resamples=resamples)


def _half_means(table: xr.DataArray) -> np.ndarray:
    """(half, schedule): means over each half of the seeds."""
    return np.array([table.isel(seed=half).mean("seed").values for half in HALVES])


def mixed_correlation(x: xr.DataArray, y: xr.DataArray, seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """The true correlation between schedules, with seeds and runs as random effects.

    In the model x = schedule + seed + run (and likewise y), the product of two different seeds' runs has the schedules'
    covariance as its mean, whatever noise x and y of one run share. The estimate is a ratio of sums of such products,
    cov(x, y) / sqrt(var x var y); being made of moments, it needs no normality.

    The interval is that of Pearson's correlation, resampling schedules. A resample whose schedules do not differ beyond
    noise is uninformative and counts as -1 and 1 in turn. There is no p-value: `across_schedules` tests the same.

    Args:
        x, y: (schedule, seed).

    Returns:
        An Interval, undefined with fewer than 2 seeds or 4 schedules, or where schedules do not differ beyond noise.
    """
    n, seeds = x.sizes["schedule"], x.sizes["seed"]
    a, b = (table.transpose("schedule", "seed").values.astype(float) for table in (x, y))
    if seeds < 2 or n < 4 or not (np.isfinite(a).all() and np.isfinite(b).all()):
        return Interval.undefined(n)
    samples = np.random.default_rng(seed).integers(n, size=(resamples, n))
    r, resampled = float(_true_correlation(a, b)), _true_correlation(a[samples], b[samples])
    if math.isnan(r):
        return Interval.undefined(n)
    uninformative = np.isnan(resampled)
    resampled[uninformative] = np.resize([-1.0, 1.0], uninformative.sum())
    return Interval(r, *fisher_z_interval(r, resampled, n), n)


def _true_correlation(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Of (..., schedule, seed); NaN where x or y has no variance between schedules."""
    x, y = (values - values.mean(axis=-2, keepdims=True) for values in (x, y))
    xx, yy = _cross_seed_products(x, x), _cross_seed_products(y, y)
    scale = np.sqrt(np.where((xx > 0) & (yy > 0), xx * yy, np.nan))
    return np.clip(_cross_seed_products(x, y) / scale, -1, 1)


def _cross_seed_products(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Sum of u_s v_t over schedules and over pairs of different seeds s, t; u and v are (..., schedule, seed)."""
    return (u.sum(axis=-1) * v.sum(axis=-1) - (u * v).sum(axis=-1)).sum(axis=-1)


def reliability(table: xr.DataArray, seeds: float) -> float:
    """Reliability of a schedule's mean over so many seeds: true variance / (true variance + noise / seeds).

    Args:
        table: (schedule, seed).

    Returns:
        0 to 1; 0 where schedules do not differ beyond noise, NaN with one seed.
    """
    n, m = table.sizes["seed"], table.sizes["schedule"]
    if n < 2:
        return math.nan
    values = table.transpose("schedule", "seed").values.astype(float)
    values = values - values.mean(axis=0)
    true_variance = float(_cross_seed_products(values, values)) / ((m - 1) * n * (n - 1))
    noise = float(((values - values.mean(axis=1, keepdims=True)) ** 2).sum()) / ((m - 1) * (n - 1))
    return true_variance / (true_variance + noise / seeds) if true_variance > 0 else 0.0


def transfer_correlations(
    summary: xr.Dataset, quantities: Sequence[str] = ("peak", "width", "area"), resamples: int = RESAMPLES
) -> xr.Dataset:
    """How the shape of tr(F) goes with transfer between schedules, by five measures, and whether the study has the power.

    Args:
        summary: from `summarise`, of schedules that differ in their order alone: leave out standard training.
        quantities: its variables to correlate with transfer.

    Returns:
        Over (quantity, measure): correlation, low, high, p and p_adjusted (over all of them). The measures pearson,
        spearman, kendall and partial (peak given width, width given peak; NaN for other quantities) are taken from halves
        of the seeds; mixed has no p.
        Over quantity: reliability (of the mean over half of the seeds), seeds_needed (for a reliability of 0.8 there; NaN
        where schedules do not differ), and censored (share of runs whose value is a lower bound).
        Attributes: schedules, schedules_needed (to find a correlation of 0.6 with 80 % power), seeds, and underpowered, a
        sentence that says of what there is too little ("" for nothing).

    Raises:
        ValueError: the summary has one schedule.
    """
    tables = by_schedule(summary[["transfer", *quantities]])
    if tables.sizes["schedule"] < 2:
        raise ValueError(f"one schedule, {tables['schedule'].item()}: a correlation across schedules needs several")
    measured = [_measures(name, tables, resamples) for name in quantities]
    columns = {"correlation": "estimate", "low": "low", "high": "high", "p": "p"}
    correlations = xr.Dataset(
        {
            name: (
                ("quantity", "measure"),
                np.array([[getattr(interval, column) for interval in row.values()] for row in measured]),
            )
            for name, column in columns.items()
        },
        {"quantity": list(quantities), "measure": list(measured[0])},
    )
    correlations["p_adjusted"] = (correlations["p"].dims, adjusted(correlations["p"].values))
    share = float(summary["censored"].mean())
    censored = [share if name in ("width", "area") else 0.0 for name in quantities]
    return _with_power(correlations.assign(censored=("quantity", censored)), tables)


def _measures(name: str, tables: xr.Dataset, resamples: int) -> dict[str, Interval]:
    """Measure -> the correlation of a quantity with transfer."""
    x, transfer = tables[name], tables["transfer"]
    control = {"peak": "width", "width": "peak"}.get(name)
    return {
        "pearson": across_schedules(x, transfer, "pearson", resamples),
        "spearman": across_schedules(x, transfer, "spearman", resamples),
        "kendall": across_schedules(x, transfer, "kendall", resamples),
        "partial": (
            partial_across_schedules(x, transfer, tables[control], resamples)
            if control in tables
            else Interval.undefined(tables.sizes["schedule"])
        ),
        "mixed": mixed_correlation(x, transfer, resamples=resamples),
    }


def _with_power(correlations: xr.Dataset, tables: xr.Dataset) -> xr.Dataset:
    """Adds how reliable each quantity is, and how many seeds and schedules there should be."""
    schedules, seeds = tables.sizes["schedule"], tables.sizes["seed"]
    schedules_needed = points_needed(SMALLEST_CORRELATION)
    reliabilities = {name: reliability(tables[name], seeds / 2) for name in correlations["quantity"].values.tolist()}
    needed = {name: _seeds_for(value, seeds) for name, value in reliabilities.items()}
    warnings = []
    if schedules < schedules_needed:
        effect = f"a correlation of {SMALLEST_CORRELATION:g}"
        warnings.append(f"{schedules} schedules, {schedules_needed} needed to find {effect}")
    if seeds < 2:
        warnings.append("one seed: what schedules differ by cannot be told from noise")
    else:
        for name, count in needed.items():
            if math.isnan(count):
                warnings.append(f"{name}: schedules do not differ beyond noise, no number of seeds can be named")
            elif count > seeds:
                warnings.append(f"{name}: {seeds} seeds, {count:.0f} needed to know each schedule's")
    return correlations.assign(
        reliability=("quantity", list(reliabilities.values())), seeds_needed=("quantity", list(needed.values()))
    ).assign_attrs(
        schedules=schedules, schedules_needed=schedules_needed, seeds=seeds, underpowered="; ".join(warnings)
    )


def _seeds_for(value: float, seeds: int) -> float:
    """Seeds of which a half is as reliable as `RELIABLE`, by Spearman and Brown's formula; NaN for a reliability of 0."""
    if not value > 0:
        return math.nan
    return math.ceil(seeds * RELIABLE / (1 - RELIABLE) * (1 - value) / value - 1e-9)
