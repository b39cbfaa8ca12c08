"""An estimate and how sure we are of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats


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


def adjusted(p: np.ndarray) -> np.ndarray:
    """p-values corrected for their number (Benjamini and Hochberg's false discovery rate); NaN stays and does not count."""
    found = np.array(p, dtype=float)
    known = ~np.isnan(found)
    if known.any():
        found[known] = stats.false_discovery_control(found[known])
    return found
