"""Is one schedule better than another? Comparisons of (schedule, seed) tables, paired by seed."""

from __future__ import annotations

import math

import numpy as np
import xarray as xr
from scipy import stats

from .intervals import Interval, adjusted, mean_interval
from .power import seeds_needed

SMALLEST_EFFECT = 0.02
"""The difference that a study should be able to see: the 2 points that the paper reports over four data sets."""


def paired_difference(table: xr.DataArray, first: str, second: str) -> Interval:
    """Schedule `first` minus schedule `second`, paired by seed, with the paired t-test's p.

    Args:
        table: (schedule, seed), made by `by_schedule`.

    Raises:
        ValueError: the table has other dimensions, or lacks one of the schedules.
    """
    _require_table(table)
    known = table["schedule"].values.tolist()
    if unknown := {first, second} - set(known):
        raise ValueError(f"no runs of {', '.join(sorted(unknown))}, only of {', '.join(known)}")
    return mean_interval((table.sel(schedule=first) - table.sel(schedule=second)).values)


def compare(table: xr.DataArray, baseline: str = "standard", smallest_effect: float = SMALLEST_EFFECT) -> xr.Dataset:
    """Compares every schedule with a baseline, paired by seed, and tells whether there were seeds enough.

    Args:
        table: (schedule, seed), made by `by_schedule`.
        smallest_effect: the smallest difference that the study should be able to see, in the units of the table.

    Returns:
        Over schedule: difference, low, high (95 %, not corrected), p (paired t-test), p_adjusted (over all schedules) and
        seeds_needed (to see `smallest_effect` with 80 % power, given the observed spread; NaN with one seed, infinite
        above 100,000). All are NaN where a run has no value. Attributes: seeds, baseline, smallest_effect, and
        underpowered, a sentence that names the schedules with too few seeds ("" where there is none).

    Raises:
        ValueError: the table has other dimensions, lacks the baseline, or has nothing else.
    """
    _require_table(table)
    names = [name for name in table["schedule"].values.tolist() if name != baseline]
    if len(names) in (0, table.sizes["schedule"]):
        raise ValueError(f"expected runs of {baseline!r} and of others, got {', '.join(table['schedule'].values)}")
    differences = (table.sel(schedule=names) - table.sel(schedule=baseline)).transpose("schedule", "seed").values
    intervals = [mean_interval(row) for row in differences]
    needed = [_seeds_needed(smallest_effect, row) for row in differences]
    columns = {
        "difference": [interval.estimate for interval in intervals],
        "low": [interval.low for interval in intervals],
        "high": [interval.high for interval in intervals],
        "p": [interval.p for interval in intervals],
        "p_adjusted": adjusted(np.array([interval.p for interval in intervals])),
        "seeds_needed": needed,
    }
    comparison = xr.Dataset({name: ("schedule", column) for name, column in columns.items()}, {"schedule": names})
    seeds = table.sizes["seed"]
    return comparison.assign_attrs(
        seeds=seeds,
        baseline=baseline,
        smallest_effect=smallest_effect,
        underpowered=_underpowered(dict(zip(names, needed, strict=True)), seeds, smallest_effect),
    )


def _seeds_needed(smallest_effect: float, differences: np.ndarray) -> float:
    sd = float(np.std(differences, ddof=1)) if len(differences) > 1 else math.nan
    if math.isnan(sd):
        return math.nan
    try:
        return seeds_needed(smallest_effect, sd)
    except ValueError:  # more than anybody has
        return math.inf


def _underpowered(needed: dict[str, float], seeds: int, smallest_effect: float) -> str:
    if seeds < 2:
        return "one seed: nothing can be told from it"
    short = [f"{name} {count:.0f}" for name, count in needed.items() if count > seeds]
    if not short:
        return ""
    return f"{seeds} seeds; to find a difference of {smallest_effect:g} it takes {', '.join(short)}"


def order_effect(table: xr.DataArray) -> tuple[float, float, float]:
    """Tests whether schedules differ: two-way analysis of variance (schedule, seed) without interaction.

    Args:
        table: (schedule, seed), made by `by_schedule`.

    Returns:
        The sd of the schedules' means, the sd of the residuals (one run, around schedule and seed), and the F test's p
        (1 where all means are equal). All are NaN where a run has no value.

    Raises:
        ValueError: the table has other dimensions.
    """
    _require_table(table)
    if bool(table.isnull().any()):
        return math.nan, math.nan, math.nan
    schedules, seeds = table.sizes["schedule"], table.sizes["seed"]
    between = float(table.mean("seed").std(ddof=1))
    residual = table - table.mean("seed") - table.mean("schedule") + table.mean()
    freedom = (schedules - 1) * (seeds - 1)
    noise = float(np.sqrt((residual**2).sum() / freedom))
    if between < 1e-12:
        return between, noise, 1.0
    ratio = between**2 * seeds / noise**2 if noise > 0 else math.inf
    return between, noise, float(stats.f.sf(ratio, schedules - 1, freedom))


def _require_table(table: xr.DataArray) -> None:
    if set(table.dims) != {"schedule", "seed"}:
        raise ValueError(
            "expected a table (schedule, seed), which by_schedule makes of values over run, "
            f"got ({', '.join(map(str, table.dims))})"
        )
