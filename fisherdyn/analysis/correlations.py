"""Correlations with a bootstrap interval and a permutation p-value.

Every coefficient here is a cosine between two vectors of scores: centred values (Pearson), centred ranks (Spearman), the
signs of all pairwise differences (Kendall).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from scipy import stats

from .intervals import Interval

Method = Literal["pearson", "spearman", "kendall"]
RESAMPLES = 9999
MEMORY = 4_000_000
"""Numbers held at a time while resampling."""


def correlation(
    x: np.ndarray, y: np.ndarray, method: Method = "spearman", seed: int = 0, resamples: int = RESAMPLES
) -> Interval:
    """A correlation with a 95 % bootstrap interval and a permutation p-value (exact for 7 points and fewer).

    Rank correlations have the percentile interval. Pearson's is Student's interval of Fisher's z with the bootstrap's
    standard error, because the percentile interval covers only 89 % at 10 points.

    Args:
        x, y: (points,), or (pairs, points). With pairs the estimate is the mean over them, and their points are resampled
            together. That mean is compared with the shuffles of single pairs, which is conservative: a mean spreads no
            wider than one of its terms, however they depend on each other.
        method: pearson, spearman or kendall (tau-b).
        seed: of the resampling.
        resamples: bootstrap samples, and permutations.

    Returns:
        An undefined Interval where a row is constant, has fewer than 4 points or a NaN.

    Raises:
        ValueError: an unknown method, or shapes that differ.
    """
    if method not in _SCORES:
        raise ValueError(f"unknown method {method!r}: choose among {', '.join(_SCORES)}")
    x, y = _rows(x=x, y=y)
    n, scores = x.shape[1], _SCORES[method]
    if not _varies(x, y):
        return Interval.undefined(n)
    x_unit = _unit(scores(x))

    def strength(order: np.ndarray, axis: int) -> np.ndarray:
        """|correlation| of every pair, with y's points in another order: the null distribution."""
        x_aligned = x_unit if order.ndim == 1 else x_unit[:, None]
        return np.moveaxis(np.abs((x_aligned * _unit(scores(y[:, order]))).sum(axis=-1)), 0, -1)

    def estimate(points: np.ndarray, axis: int = -1) -> np.ndarray:
        """The mean over pairs of the correlation of these points."""
        return _cosine(scores(x[:, points]), scores(y[:, points])).mean(axis=0)

    values_held = x.size * (n if method == "kendall" else 1)
    options = _resampling(values_held, seed, resamples)
    points = np.arange(n)
    r = float(estimate(points))
    null = stats.permutation_test((points,), strength, permutation_type="pairings", alternative="greater", **options)
    p = _permutation_p(abs(r), null.null_distribution, n)
    bootstrap = stats.bootstrap((points,), estimate, method="percentile", **options)
    percentiles: tuple[float, float] = bootstrap.confidence_interval
    bounds = fisher_z_interval(r, bootstrap.bootstrap_distribution, n) if method == "pearson" else percentiles
    return _bounded(r, bounds, n, p)


def partial_correlation(
    x: np.ndarray, y: np.ndarray, given: np.ndarray, seed: int = 0, resamples: int = RESAMPLES
) -> Interval:
    """Spearman's partial correlation of x and y given a third variable, with a 95 % percentile interval.

    Its p is Student's: a permutation test of the residuals rejects 6 % of true null hypotheses at the 5 % level.

    Args:
        x, y, given: of one shape, as in `correlation`.
        seed: of the resampling.
        resamples: bootstrap samples.

    Returns:
        An undefined Interval where a row is constant, has fewer than 4 points or a NaN.

    Raises:
        ValueError: shapes that differ.
    """
    x, y, given = _rows(x=x, y=y, given=given)
    n = x.shape[1]
    if not _varies(x, y, given):
        return Interval.undefined(n)

    def estimate(points: np.ndarray, axis: int = -1) -> np.ndarray:
        fixed = _ranks(given[:, points])
        return _cosine(_residuals(_ranks(x[:, points]), fixed), _residuals(_ranks(y[:, points]), fixed)).mean(axis=0)

    points = np.arange(n)
    r = float(estimate(points))
    p = float(2 * stats.t.sf(abs(r) * math.sqrt((n - 3) / max(1 - r**2, 1e-12)), n - 3))
    options = _resampling(x.size, seed, resamples)
    bootstrap = stats.bootstrap((points,), estimate, method="percentile", **options)
    return _bounded(r, bootstrap.confidence_interval, n, p)


def fisher_z_interval(r: float, resampled: np.ndarray, n: int) -> tuple[float, float]:
    """Student's 95 % interval of Fisher's z = artanh r; z's standard error is half the middle 68 % of resampled z."""
    z, z_resampled = (np.arctanh(np.clip(value, -0.9999, 0.9999)) for value in (r, resampled))
    half = stats.t.ppf(0.975, n - 2) * np.diff(np.quantile(z_resampled, stats.norm.cdf([-1, 1]))).item() / 2
    return float(np.tanh(z - half)), float(np.tanh(z + half))


def _rows(**variables: np.ndarray) -> tuple[np.ndarray, ...]:
    """The variables as (pairs, points), all of one shape."""
    rows = [np.atleast_2d(np.asarray(values, dtype=float)) for values in variables.values()]
    if len({row.shape for row in rows}) > 1:
        shapes = ", ".join(str(row.shape) for row in rows)
        raise ValueError(f"expected {', '.join(variables)} of one shape, got {shapes}")
    return tuple(rows)


def _varies(*variables: np.ndarray) -> bool:
    """Whether a correlation is defined: 4 points or more, all finite, no constant row."""
    return all(
        rows.shape[1] >= 4 and bool(np.isfinite(rows).all()) and bool((np.ptp(rows, axis=1) > 0).all())
        for rows in variables
    )


def _resampling(values_held: int, seed: int, resamples: int) -> dict[str, Any]:
    """Options of scipy's resampling; calls that share them draw on one generator, one after the other."""
    return {
        "vectorized": True,
        "n_resamples": resamples,
        "batch": max(1, MEMORY // values_held),
        "rng": np.random.default_rng(seed),
    }


def _permutation_p(r: float, null: np.ndarray, n: int) -> float:
    """Share of the null distribution that is at least as strong as r.

    Where the orders are a random sample, the observed one is counted among them; where they are all n! orders, it is.
    """
    at_least_as_strong = int((null >= r - 1e-12).sum())
    observed = int(len(null) < math.factorial(n))
    return (at_least_as_strong + observed) / (null.size + observed)


def _bounded(r: float, bounds: tuple[float, float], n: int, p: float) -> Interval:
    low, high = bounds
    return Interval(r, max(float(low), -1.0), min(float(high), 1.0), n, p)


def _centred(values: np.ndarray) -> np.ndarray:
    return values - values.mean(axis=-1, keepdims=True)


def _ranks(values: np.ndarray) -> np.ndarray:
    return _centred(stats.rankdata(values, axis=-1))


def _signs(values: np.ndarray) -> np.ndarray:
    """Signs of all pairwise differences: the cosine of two such vectors is Kendall's tau-b."""
    first, second = np.triu_indices(values.shape[-1], 1)
    return np.sign(values[..., first] - values[..., second])


_SCORES: dict[str, Callable[[np.ndarray], np.ndarray]] = {"pearson": _centred, "spearman": _ranks, "kendall": _signs}


def _cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (_unit(a) * _unit(b)).sum(axis=-1)


def _unit(scores: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(scores, axis=-1, keepdims=True)
    return np.divide(scores, length, out=np.zeros_like(scores), where=length > 1e-12)


def _residuals(scores: np.ndarray, fixed: np.ndarray) -> np.ndarray:
    """Residuals of the regression of centred scores on a fixed variable's."""
    direction = _unit(fixed)
    return scores - (scores * direction).sum(axis=-1, keepdims=True) * direction
