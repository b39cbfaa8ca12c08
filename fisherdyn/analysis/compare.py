"""Is one better? Means over seeds, and schedules compared in pairs of runs that share a seed."""

from __future__ import annotations

import math

import numpy as np
import xarray as xr
from scipy import stats

from .interval import Interval, adjusted
from .power import seeds_needed
from .results import by_schedule

OF_INTEREST = 0.02
"""The difference that a study should be able to see: the 2 points that the paper reports over four data sets."""


def mean_interval(values: np.ndarray) -> Interval:
    """Student's t interval of a mean (of paired differences: the paired t-test), and its two-sided p against 0."""
    x = np.asarray(values, dtype=float)
    n, mean = len(x), float(np.mean(x))
    if n < 2:
        return Interval(mean, -math.inf, math.inf, n)
    se = float(np.std(x, ddof=1)) / math.sqrt(n)
    half = float(stats.t.ppf(0.975, n - 1)) * se
    # Not by ttest_1samp, which warns where differences are equal but for rounding.
    p = float(2 * stats.t.sf(abs(mean) / se, n - 1)) if se != 0 else float(mean == 0)
    return Interval(mean, mean - half, mean + half, n, p)


def over_seeds(values: xr.DataArray) -> xr.DataArray:
    """Mean and 95 % interval (Student's t) over `seed` of any table: (bound: estimate, low, high, ...).

    Peaks by schedule, for one: over_seeds(by_schedule(summarise(ds)["peak"])). With one seed the interval is infinite.
    """
    n = values.sizes["seed"]
    mean = values.mean("seed", skipna=False)
    half = mean * np.inf if n < 2 else stats.t.ppf(0.975, n - 1) * values.std("seed", ddof=1, skipna=False) / n**0.5
    half = abs(half)
    found = xr.concat([mean, mean - half, mean + half], "bound").assign_coords(bound=["estimate", "low", "high"])
    found.attrs = dict(values.attrs)
    return found


def paired_difference(values: xr.DataArray, first: str, second: str) -> Interval:
    """Schedule `first` minus `second` of a per-run value, paired by seed.

    Raises:
        ValueError: there is no such schedule.
    """
    table = by_schedule(values)
    if unknown := {first, second} - set(table["schedule"].values.tolist()):
        raise ValueError(f"no runs of {', '.join(sorted(unknown))}, only of {', '.join(table['schedule'].values)}")
    return mean_interval((table.sel(schedule=first) - table.sel(schedule=second)).values)


def compare(values: xr.DataArray, baseline: str = "standard", of_interest: float = OF_INTEREST) -> xr.Dataset:
    """Every schedule minus a baseline, paired by seed, and whether there were seeds enough to tell.

    Args:
        values: per run, with coordinates schedule and seed.
        of_interest: the difference that the study should be able to see, in the units of values.

    Returns:
        Over schedule: difference, low, high (95 %, each for itself), p (paired t), p_adjusted (over all schedules) and
        seeds_needed (for `of_interest` at 80 % power, from the spread that was found; NaN with one seed, infinite beyond
        100,000). All are NaN where a run has no value. Attributes: seeds, baseline, of_interest, and underpowered: what
        needs more seeds, in words, or "".

    Raises:
        ValueError: no run of the baseline, or none of anything else.
    """
    table = by_schedule(values)
    names = [name for name in table["schedule"].values.tolist() if name != baseline]
    if len(names) in (0, table.sizes["schedule"]):
        raise ValueError(f"expected runs of {baseline!r} and of others, got {', '.join(table['schedule'].values)}")
    differences = (table.sel(schedule=names) - table.sel(schedule=baseline)).transpose("schedule", "seed").values
    rows = [mean_interval(row) for row in differences]
    n = table.sizes["seed"]
    needed = [_needed(of_interest, row) for row in differences]
    columns = {
        "difference": [row.estimate for row in rows],
        "low": [row.low for row in rows],
        "high": [row.high for row in rows],
        "p": [row.p for row in rows],
        "p_adjusted": adjusted(np.array([row.p for row in rows])),
        "seeds_needed": needed,
    }
    found = xr.Dataset({name: ("schedule", values) for name, values in columns.items()}, {"schedule": names})
    short = [f"{name} {need:.0f}" for name, need in zip(names, needed, strict=True) if need > n]
    said = f"{n} seeds; to find a difference of {of_interest:g} it takes {', '.join(short)}" if short else ""
    if n < 2:
        said = "one seed: nothing can be told from it"
    return found.assign_attrs(seeds=n, baseline=baseline, of_interest=of_interest, underpowered=said)


def _needed(of_interest: float, differences: np.ndarray) -> float:
    sd = float(np.std(differences, ddof=1)) if len(differences) > 1 else math.nan
    if math.isnan(sd):
        return math.nan
    try:
        return seeds_needed(of_interest, sd)
    except ValueError:  # more than anybody has
        return math.inf


def order_effect(values: xr.DataArray) -> tuple[float, float, float]:
    """Whether schedules differ: a two-way table (schedule, seed) without interaction, as `by_schedule` makes it.

    Returns:
        sd of the schedules' means; sd of one run around schedule and seed; p of the F test (1 where all are equal). NaN
        where a run has no value.
    """
    if set(values.dims) != {"schedule", "seed"}:
        raise ValueError(
            f"expected the table of by_schedule, (schedule, seed), got ({', '.join(map(str, values.dims))})"
        )
    if bool(values.isnull().any()):
        return math.nan, math.nan, math.nan
    schedules, seeds = values.sizes["schedule"], values.sizes["seed"]
    between = float(values.mean("seed").std(ddof=1))
    residual = values - values.mean("seed") - values.mean("schedule") + values.mean()
    freedom = (schedules - 1) * (seeds - 1)
    noise = float(np.sqrt((residual**2).sum() / freedom))
    if between < 1e-12:
        return between, noise, 1.0
    ratio = between**2 * seeds / noise**2 if noise > 0 else math.inf
    return between, noise, float(stats.f.sf(ratio, schedules - 1, freedom))
