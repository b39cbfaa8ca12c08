"""Rows as they come, from this process and from the others, and what they come to."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from .distributed import all_gather, several


class RunningMean:
    """Values, one row an example or one a batch, each row with the number of examples that it stands for."""

    def __init__(self) -> None:
        self.rows: list[Tensor] = []
        self.weights: list[Tensor] = []
        self.batches = 0

    def add(self, rows: Tensor, examples: int, batches: int) -> None:
        self.rows.append(rows)
        self.weights.append(torch.full((len(rows),), examples / len(rows), dtype=torch.float64))
        self.batches += batches

    @property
    def examples(self) -> int:
        return round(float(sum(w.sum() for w in self.weights)))

    @property
    def values(self) -> Tensor:
        return torch.cat(self.rows)

    def mean_and_error(self) -> tuple[Tensor, Tensor]:
        """Weighted mean over rows and its standard error: sd / sqrt(n) where all rows stand for one example."""
        values, weights = self.values, torch.cat(self.weights)[:, None]
        mean = (weights * values).sum(dim=0) / weights.sum()
        n = len(values)
        spread = (weights * (values - mean)).square().sum(dim=0).sqrt() / weights.sum()
        return mean, spread * math.sqrt(n / (n - 1)) if n > 1 else torch.full_like(mean, math.nan)

    def relative_error(self) -> Tensor:
        """Standard error over estimate; infinite where there is none yet, 0 where tr(F) is 0 in every example."""
        mean, se = self.mean_and_error()
        return torch.where(mean == 0, 0.0, (se / mean.abs()).nan_to_num(nan=math.inf))

    def within(self, target: float) -> Tensor:
        return self.relative_error() <= target


Found = tuple[Tensor, int, int]
"""Rows, the number of examples that they stand for, and of how many batches."""


def across_ranks(found: Iterable[Found]) -> Iterator[list[Found]]:
    """What every process found in its next batch, in the order of ranks, until no process has one left.

    Every process gets the same lists, so that all of them stop at the same batch and end with the same numbers. An error in
    one process is raised in all.

    Raises:
        RuntimeError: another process failed; says which, and how.
    """
    if not several():
        yield from ([one] for one in found)
        return
    own = iter(found)
    while True:
        try:
            mine: Found | Exception | None = next(own, None)
        except Exception as error:
            mine = error
        theirs = all_gather(f"{type(mine).__name__}: {mine}" if isinstance(mine, Exception) else mine)
        if isinstance(mine, Exception):
            raise mine
        if failed := {i: what for i, what in enumerate(theirs) if isinstance(what, str)}:
            raise RuntimeError("; ".join(f"process {i} failed with {what}" for i, what in failed.items()))
        there = [one for one in theirs if isinstance(one, tuple)]
        if not there:
            return
        yield there
