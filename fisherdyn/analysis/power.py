"""Could this study have seen it? How many seeds or schedules a question needs."""

from __future__ import annotations

import math

import numpy as np
from scipy import optimize, stats

POWER, ALPHA = 0.8, 0.05
"""The usual ones: the effect is found in four of five studies where it is there, in one of twenty where it is not."""
MOST_SEEDS = 100_000


def power(difference: float, sd: float, n: int, alpha: float = ALPHA) -> float:
    """Power of the two-sided paired t-test of n seeds, where the differences' mean and sd are these (noncentral F)."""
    if n < 2:
        return 0.0
    if sd == 0:
        return float(difference != 0)
    return float(stats.ncf.sf(stats.f.isf(alpha, 1, n - 1), 1, n - 1, n * (difference / sd) ** 2))


def seeds_needed(difference: float, sd: float, at: float = POWER, alpha: float = ALPHA) -> int:
    """The fewest seeds with which a paired difference of this size is found with power `at`; at least 2.

    Take the difference that would matter, not the one that was found: power at the latter is the p-value said again.

    Args:
        difference: in the units of sd; its sign does not matter.
        sd: of the paired differences over seeds.

    Raises:
        ValueError: a difference of 0, a negative sd, or more than 100,000 seeds.
    """
    if not (difference != 0 and sd >= 0):
        raise ValueError(f"expected a difference other than 0 and an sd of at least 0, got {difference} and {sd}")
    if sd == 0:
        return 2
    low, high = 1, 2
    while power(abs(difference), sd, high, alpha) < at:
        low, high = high, 2 * high
        if high > MOST_SEEDS:
            raise ValueError(f"a difference of {difference:g} with sd {sd:g} needs more than {MOST_SEEDS:,} seeds")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(abs(difference), sd, middle, alpha) >= at else (middle, high)
    return high


def detectable(sd: float, n: int, at: float = POWER, alpha: float = ALPHA) -> float:
    """The smallest paired difference that n seeds find with power `at`; infinite for fewer than 2."""
    if sd < 0:
        raise ValueError(f"expected an sd of at least 0, got {sd}")
    if n < 2:
        return math.inf
    if sd == 0:
        return 0.0
    return sd * float(optimize.brentq(lambda d: power(d, 1.0, n, alpha) - at, 1e-9, 1e3))


def points_needed(rho: float, at: float = POWER, alpha: float = ALPHA) -> int:
    """Points (schedules, not seeds) with which a correlation of rho is found with power `at`, by Fisher's z.

    Raises:
        ValueError: rho not between -1 and 1, or 0.
    """
    if not 0 < abs(rho) < 1:
        raise ValueError(f"expected a correlation between -1 and 1 other than 0, got {rho}")
    z = stats.norm.ppf(1 - alpha / 2) + stats.norm.ppf(at)
    return math.ceil(3 + (z / np.arctanh(abs(rho))) ** 2)
