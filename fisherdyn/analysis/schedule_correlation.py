"""Does the shape of tr(F) go with transfer? Correlations between schedules, and what runs' noise does to them.

Peak and transfer of the same runs go together by those runs' noise alone, whatever their schedules do. Two estimators
are free of that: `across_schedules` takes them from different halves of the seeds, `mixed_correlation` from products of
different seeds only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import xarray as xr

from .correlations import RESAMPLES, correlation, students_interval
from .interval import Interval, adjusted
from .power import points_needed
from .results import by_schedule

OF_INTEREST = 0.6
"""The correlation between schedules that a study should be able to see."""
RELIABLE = 0.8
"""Share of a schedule's mean over half of the seeds that should be the schedule's own."""


def across_schedules(
    x: xr.DataArray,
    y: xr.DataArray,
    resamples: int = RESAMPLES,
    method: str = "spearman",
    given: xr.DataArray | None = None,
) -> Interval:
    """Whether schedules with a higher x have a higher y: a correlation of (schedule, seed) tables, cross-fitted.

    x (and what is given) is averaged over one half of the seeds and y over the other, both ways round: x and y of the
    same runs would go together by those runs' noise alone, whatever the schedules do. Halves are noisier than the whole,
    so the estimate is nearer to 0 than the schedules' own correlation. Needs two seeds; NaN with one.
    """
    halves = [slice(0, None, 2), slice(1, None, 2)]
    if x.sizes["seed"] < 2:
        return Interval(math.nan, math.nan, math.nan, x.sizes["schedule"])

    def both(table: xr.DataArray) -> np.ndarray:
        return np.array([table.isel(seed=half).mean("seed").values for half in halves])

    held = None if given is None else both(given)
    return correlation(both(x), both(y)[::-1], method=method, given=held, resamples=resamples)


def mixed_correlation(x: xr.DataArray, y: xr.DataArray, seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """The correlation of the schedules' own x and y, with seeds and runs as random effects.

    In the model x = schedule + seed + run (and so y), products of two different seeds' runs have the schedules'
    covariance as their mean, whatever noise a run's x and y share: sums of those over sqrt(x's times y's). Moments, so
    no normality. The interval (as Pearson's of `correlation`) draws schedules; a draw in which they do not differ beyond
    noise could be anything and counts as -1 or 1 in turns. There is no p: `across_schedules` tests the same.

    Returns:
        An Interval of NaN with fewer than 2 seeds or 4 schedules, or where schedules do not differ beyond noise.
    """
    n, seeds = x.sizes["schedule"], x.sizes["seed"]
    a, b = (table.transpose("schedule", "seed").values.astype(float) for table in (x, y))
    if seeds < 2 or n < 4 or not (np.isfinite(a).all() and np.isfinite(b).all()):
        return Interval(math.nan, math.nan, math.nan, n)
    draws = np.random.default_rng(seed).integers(n, size=(resamples, n))
    found, drawn = float(_own_correlation(a, b)), _own_correlation(a[draws], b[draws])
    if math.isnan(found):
        return Interval(math.nan, math.nan, math.nan, n)
    undefined = np.isnan(drawn)
    drawn[undefined] = np.resize([-1.0, 1.0], undefined.sum())
    return Interval(found, *students_interval(found, drawn, n), n)


def _own_correlation(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Of (..., schedule, seed); NaN where x or y has no variance between schedules."""
    x, y = (rows - rows.mean(axis=-2, keepdims=True) for rows in (x, y))
    xx, yy = _between_seeds(x, x), _between_seeds(y, y)
    size = np.sqrt(np.where((xx > 0) & (yy > 0), xx * yy, np.nan))
    return np.clip(_between_seeds(x, y) / size, -1, 1)


def _between_seeds(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """The sum over schedules and over pairs of different seeds of u v, of (..., schedule, seed)."""
    return (u.sum(axis=-1) * v.sum(axis=-1) - (u * v).sum(axis=-1)).sum(axis=-1)


def reliability(table: xr.DataArray, seeds: float) -> float:
    """Share of the variance of a schedule's mean over so many seeds that is the schedule's own, of (schedule, seed).

    0 where schedules do not differ beyond noise; NaN with one seed.
    """
    n, m = table.sizes["seed"], table.sizes["schedule"]
    if n < 2:
        return math.nan
    rows = table.transpose("schedule", "seed").values.astype(float)
    rows = rows - rows.mean(axis=0)
    own = float(_between_seeds(rows, rows)) / ((m - 1) * n * (n - 1))
    noise = float(((rows - rows.mean(axis=1, keepdims=True)) ** 2).sum()) / ((m - 1) * (n - 1))
    return max(0.0, own) / (own + noise / seeds) if own > 0 else 0.0


def transfer_correlations(
    summary: xr.Dataset, quantities: Sequence[str] = ("peak", "width", "area"), resamples: int = RESAMPLES
) -> xr.Dataset:
    """How the shape of tr(F) goes with transfer between schedules, all ways that we know, and whether we could tell.

    Args:
        summary: of `summarise`, of schedules that are alike but for their order: leave out standard training.
        quantities: its variables to correlate with transfer.

    Returns:
        correlation, low, high, p and p_adjusted (over all of them) over (quantity, measure): pearson, spearman, kendall,
        partial (peak given width, width given peak; NaN for others) from halves of the seeds, and mixed (without p). Over
        quantity: reliability (of the mean over half of the seeds), seeds_needed (for a reliability of 0.8 there; NaN
        where schedules do not differ), and censored (share of runs whose value is a lower bound). Attributes: schedules,
        schedules_needed (to find a correlation of 0.6 with 80 % power), seeds, and underpowered: what is too few, in
        words, or "".
    """
    transfer = by_schedule(summary["transfer"])
    if transfer.sizes["schedule"] < 2:
        raise ValueError(f"one schedule, {transfer['schedule'].item()}: a correlation across schedules needs several")
    tables = {name: by_schedule(summary[name]) for name in quantities}
    other = {"peak": "width", "width": "peak"}
    measures = ("pearson", "spearman", "kendall", "partial", "mixed")
    nothing = Interval(math.nan, math.nan, math.nan, transfer.sizes["schedule"])

    def one(name: str, measure: str) -> Interval:
        if measure == "mixed":
            return mixed_correlation(tables[name], transfer, resamples=resamples)
        given = tables.get(other.get(name, "")) if measure == "partial" else None
        if measure == "partial" and given is None:
            return nothing
        return across_schedules(tables[name], transfer, resamples, measure, given)

    rows = [[one(name, measure) for measure in measures] for name in quantities]
    columns = {key: [[getattr(cell, attr) for cell in row] for row in rows] for key, attr in _COLUMNS.items()}
    found = xr.Dataset(
        {name: (("quantity", "measure"), np.array(values)) for name, values in columns.items()},
        {"quantity": list(quantities), "measure": list(measures)},
    )
    found["p_adjusted"] = (found["p"].dims, adjusted(found["p"].values))
    return _with_power(found, summary, tables, transfer)


_COLUMNS = {"correlation": "estimate", "low": "low", "high": "high", "p": "p"}


def _with_power(
    found: xr.Dataset, summary: xr.Dataset, tables: dict[str, xr.DataArray], transfer: xr.DataArray
) -> xr.Dataset:
    schedules, seeds = transfer.sizes["schedule"], transfer.sizes["seed"]
    needed_schedules = points_needed(OF_INTEREST)
    share = [reliability(table, seeds / 2) for table in tables.values()]
    needed = [_seeds_for(value, seeds) for value in share]
    bounded = [float(summary["censored"].mean()) if name in ("width", "area") else 0.0 for name in tables]
    found = found.assign(
        reliability=("quantity", share), seeds_needed=("quantity", needed), censored=("quantity", bounded)
    )
    said = []
    if schedules < needed_schedules:
        said.append(f"{schedules} schedules, {needed_schedules} needed to find a correlation of {OF_INTEREST:g}")
    if seeds < 2:
        said.append("one seed: what schedules differ by cannot be told from noise")
    for name, value in zip(tables, needed if seeds > 1 else [], strict=seeds > 1):
        if math.isnan(value):
            said.append(f"{name}: schedules do not differ beyond noise, no number of seeds can be named")
        elif value > seeds:
            said.append(f"{name}: {seeds} seeds, {value:.0f} needed to know each schedule's")
    return found.assign_attrs(
        schedules=schedules, schedules_needed=needed_schedules, seeds=seeds, underpowered="; ".join(said)
    )


def _seeds_for(share: float, seeds: int) -> float:
    """Seeds with which a half of them is as reliable as `RELIABLE`, by Spearman and Brown's formula."""
    return math.ceil(seeds * RELIABLE / (1 - RELIABLE) * (1 - share) / share - 1e-9) if share > 0 else math.nan
