"""Statistical power: how many seeds or schedules a question needs."""

from __future__ import annotations

import math

import numpy as np
from scipy import optimize, stats

POWER, ALPHA = 0.8, 0.05
"""The usual levels: a true effect is found in four of five studies, a null effect in one of twenty."""
MOST_SEEDS = 100_000


def power(difference: float, sd: float, n: int, alpha: float = ALPHA) -> float:
    """Power of the two-sided paired t-test with n seeds (noncentral F).

    Args:
        difference, sd: mean and standard deviation of the paired differences.
    """
    if n < 2:
        return 0.0
    if sd == 0:
        return float(difference != 0)
    return float(stats.ncf.sf(stats.f.isf(alpha, 1, n - 1), 1, n - 1, n * (difference / sd) ** 2))


def seeds_needed(difference: float, sd: float, target_power: float = POWER, alpha: float = ALPHA) -> int:
    """The fewest seeds (at least 2) with which the paired t-test finds a difference with the target power.

    Use the smallest difference that would matter, not the observed one: power at the observed difference only restates
    its p-value.

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
    while power(abs(difference), sd, high, alpha) < target_power:
        low, high = high, 2 * high
        if high > MOST_SEEDS:
            raise ValueError(f"a difference of {difference:g} with sd {sd:g} needs more than {MOST_SEEDS:,} seeds")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(abs(difference), sd, middle, alpha) >= target_power else (middle, high)
    return high


def detectable(sd: float, n: int, target_power: float = POWER, alpha: float = ALPHA) -> float:
    """The smallest difference that the paired t-test with n seeds finds with the target power; infinite for n < 2.

    Raises:
        ValueError: a negative sd.
    """
    if sd < 0:
        raise ValueError(f"expected an sd of at least 0, got {sd}")
    if n < 2:
        return math.inf
    if sd == 0:
        return 0.0
    return sd * float(optimize.brentq(lambda d: power(d, 1.0, n, alpha) - target_power, 1e-9, 1e3))


def points_needed(rho: float, target_power: float = POWER, alpha: float = ALPHA) -> int:
    """Points (schedules, not seeds) with which a correlation of rho is found with the target power, by Fisher's z.

    Raises:
        ValueError: rho not between -1 and 1, or 0.
    """
    if not 0 < abs(rho) < 1:
        raise ValueError(f"expected a correlation between -1 and 1 other than 0, got {rho}")
    z = stats.norm.ppf(1 - alpha / 2) + stats.norm.ppf(target_power)
    return math.ceil(3 + (z / np.arctanh(abs(rho))) ** 2)
