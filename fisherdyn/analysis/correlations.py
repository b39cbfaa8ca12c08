"""What goes with what: correlations with bootstrap intervals and permutation p-values, and what runs' noise does to them.

Peak and transfer of the same runs go together by those runs' noise alone, whatever their schedules do. Two estimators
are free of that: `across_schedules` takes them from different halves of the seeds, `mixed_correlation` from products of
different seeds only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import xarray as xr
from scipy import stats

from .interval import Interval, adjusted
from .power import points_needed
from .results import by_schedule

RESAMPLES = 9999
OF_INTEREST = 0.6
"""The correlation between schedules that a study should be able to see."""
RELIABLE = 0.8
"""Share of a schedule's mean over half of the seeds that should be the schedule's own."""
MEMORY = 4_000_000
"""Numbers held at a time while resampling."""


def correlation(
    x: np.ndarray,
    y: np.ndarray,
    method: str = "spearman",
    given: np.ndarray | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Interval:
    """A correlation with a 95 % bootstrap interval and a permutation p-value (exact for 7 points and fewer).

    Rank correlations have the percentile interval; Pearson's is Student's on Fisher's scale with the bootstrap's error,
    because percentiles cover only 89 % at 10 points. The partial correlation is Spearman's; its p is Student's, because
    shuffling residuals finds 6 % where there is nothing.

    Args:
        x, y: (points,), or (pairs, points): then the estimate is the mean over pairs, whose points are resampled
            together, and that mean is compared with the shuffles of single pairs: a mean of pairs spreads no wider than
            one of them, however they depend.
        method: pearson, spearman, kendall (tau-b) or partial.
        given: shaped like x; what method "partial" holds fixed.

    Returns:
        An Interval of NaN where a row is constant, has fewer than 4 points or a NaN.

    Raises:
        ValueError: an unknown method, shapes that differ, or `given` without "partial" and the other way round.
    """
    if method not in _SCORES:
        raise ValueError(f"unknown method {method!r}: choose among {', '.join(_SCORES)}")
    if (given is not None) != (method == "partial"):
        raise ValueError('expected `given` with method "partial", and with no other')
    x, y, z = (np.atleast_2d(np.asarray(a, dtype=float)) for a in (x, y, x if given is None else given))
    if not x.shape == y.shape == z.shape:
        raise ValueError(f"expected x, y and given of one shape, got {x.shape}, {y.shape} and {z.shape}")
    n = x.shape[1]
    if n < 4 or not all(np.isfinite(a).all() and (np.ptp(a, axis=1) > 0).all() for a in (x, y, z)):
        return Interval(math.nan, math.nan, math.nan, n)
    rng = np.random.default_rng(seed)
    scores, fixed, points = _SCORES[method], None if given is None else z, np.arange(n)
    held_at_once = x.size * (n if method == "kendall" else 1)
    how = {"vectorized": True, "n_resamples": resamples, "batch": max(1, MEMORY // held_at_once), "rng": rng}
    left = _unit(scores(x))

    def strength(order: np.ndarray, axis: int) -> np.ndarray:
        aligned = left if order.ndim == 1 else left[:, None]
        return np.moveaxis(np.abs((aligned * _unit(scores(y[:, order]))).sum(axis=-1)), 0, -1)

    def estimate(index: np.ndarray, axis: int) -> np.ndarray:
        held = None if fixed is None else scores(fixed[:, index])
        a, b = (_unit(_without(scores(values[:, index]), held)) for values in (x, y))
        return (a * b).sum(axis=-1).mean(axis=0)

    found = float(estimate(points, -1))
    if fixed is None:
        null = stats.permutation_test((points,), strength, permutation_type="pairings", alternative="greater", **how)
        p = _share_as_strong(abs(found), null.null_distribution, n)
    else:
        p = float(2 * stats.t.sf(abs(found) * math.sqrt((n - 3) / max(1 - found**2, 1e-12)), n - 3))
    boot = stats.bootstrap((points,), estimate, method="percentile", **how)
    low, high = boot.confidence_interval if method != "pearson" else _student(found, boot.bootstrap_distribution, n)
    return Interval(found, float(low), float(high), n, p)


def _share_as_strong(found: float, null: np.ndarray, n: int) -> float:
    as_strong = int((null >= found - 1e-12).sum())
    drawn = int(len(null) < math.factorial(n))  # else these are all orders that there are, the observed one among them
    return (as_strong + drawn) / (null.size + drawn)


def _student(found: float, drawn: np.ndarray, n: int) -> tuple[float, float]:
    """Student's interval on Fisher's scale; its error is the spread of the middle 68 % of the bootstrap's draws."""
    middle, z = (np.arctanh(np.clip(r, -0.9999, 0.9999)) for r in (found, drawn))
    half = stats.t.ppf(0.975, n - 2) * np.diff(np.quantile(z, stats.norm.cdf([-1, 1]))).item() / 2
    return float(np.tanh(middle - half)), float(np.tanh(middle + half))


def _centred(values: np.ndarray) -> np.ndarray:
    return values - values.mean(axis=-1, keepdims=True)


def _ranks(values: np.ndarray) -> np.ndarray:
    return _centred(stats.rankdata(values, axis=-1))


def _signs(values: np.ndarray) -> np.ndarray:
    """Of all differences of two points: the cosine of two such vectors is Kendall's tau-b."""
    first, second = np.triu_indices(values.shape[-1], 1)
    return np.sign(values[..., first] - values[..., second])


_SCORES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "pearson": _centred,
    "spearman": _ranks,
    "kendall": _signs,
    "partial": _ranks,
}
"""What a correlation is the cosine of."""


def _unit(scores: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(scores, axis=-1, keepdims=True)
    return np.divide(scores, length, out=np.zeros_like(scores), where=length > 1e-12)


def _without(scores: np.ndarray, fixed: np.ndarray | None) -> np.ndarray:
    """Residuals of a regression on what is held fixed."""
    if fixed is None:
        return scores
    along = _unit(fixed)
    return scores - (scores * along).sum(axis=-1, keepdims=True) * along


def rank_correlation(x: np.ndarray, y: np.ndarray, seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """Spearman's rho: `correlation` with its default method."""
    return correlation(x, y, seed=seed, resamples=resamples)


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
    return Interval(found, *_student(found, drawn, n), n)


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
    for name, value in zip(tables, needed, strict=True):
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
