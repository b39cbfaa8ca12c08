"""Intervals and comparisons in words, made from the numbers alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import xarray as xr

from .. import analysis
from . import studies

STANDARD = studies.STANDARD.schedule


def half(x: analysis.Interval) -> str:
    return "(one seed)" if x.n < 2 else f"± {x.half:.1f}"


def points(x: analysis.Interval) -> str:
    if x.n < 2:
        return f"{100 * x.estimate:+.1f} points (one seed: no interval)"
    return f"{100 * x.estimate:+.1f} points [{100 * x.low:+.1f}, {100 * x.high:+.1f}], p = {x.p:.2g}, {x.n} seeds"


def against_standard(parts: Mapping[str, xr.Dataset]) -> list[str]:
    """Whether each schedule transfers better than standard training (where there is none, than the first one).

    Paired over seeds, by the t-test; p is corrected for the number of all these comparisons (false discovery rate),
    intervals are each for itself.

    Args:
        parts: what a sentence begins with -> source and transfer over run, of runs that are compared with one another.
    """
    gaps = [gap for start, results in parts.items() for gap in _gaps(start, results)]
    corrected = analysis.adjusted(np.array([gap.transfer.p for gap in gaps]))
    known = int(np.isfinite(corrected).sum())
    return [gap.sentence(p, known) for gap, p in zip(gaps, corrected.tolist(), strict=True)]


@dataclass(frozen=True)
class _Gap:
    """By how much a schedule is better than the baseline."""

    start: str
    name: str
    baseline: str
    transfer: analysis.Interval
    source: analysis.Interval

    def sentence(self, p: float, comparisons: int) -> str:
        correction = f" ({p:.2g} corrected for {comparisons} comparisons)" if comparisons > 1 else ""
        transfer = points(self.transfer) + correction
        return f"{self.start}{self._verdict(p)}, paired over seeds: {transfer}. On the source: {points(self.source)}."

    def _verdict(self, p: float) -> str:
        if self.transfer.n < 2:
            return f"Not answered with one seed: whether {self.name} transfers better than {self.baseline}"
        if np.isnan(p):
            return f"Not answered, as a run has no result: whether {self.name} transfers better than {self.baseline}"
        if p >= 0.05:
            return f"Not found: a difference in transfer between {self.name} and {self.baseline}"
        return (
            f"Found: {self.name} transfers {'better' if self.transfer.estimate > 0 else 'worse'} than {self.baseline}"
        )


def _gaps(start: str, results: xr.Dataset) -> Iterator[_Gap]:
    names = list(dict.fromkeys(results["schedule"].values.tolist()))
    baseline = STANDARD if STANDARD in names else names[0]
    tables = analysis.by_schedule(results[["transfer", "source"]])
    for name in names:
        if name != baseline:
            gap = (analysis.paired_difference(tables[value], name, baseline) for value in ("transfer", "source"))
            yield _Gap(start, name, baseline, *gap)
