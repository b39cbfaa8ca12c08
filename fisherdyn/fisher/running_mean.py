"""The mean of per-example values over the batches so far, and its standard error; one mean over all processes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .distributed import all_gather, several


@dataclass(frozen=True)
class BatchValues:
    """What was measured in one pass.

    Attributes:
        rows: (examples, layers), or one row for the whole batch by a method that sees no single example.
        examples: how many they stand for.
        batches: how many of the loader's batches.
    """

    rows: Tensor
    examples: int
    batches: int


class RunningMean:
    """Values, one row an example or one a batch, each row with the number of examples that it stands for."""

    def __init__(self) -> None:
        self.rows: list[Tensor] = []
        self.weights: list[Tensor] = []
        self.batches = 0

    def add(self, values: BatchValues) -> None:
        n = len(values.rows)
        self.rows.append(values.rows)
        self.weights.append(torch.full((n,), values.examples / n, dtype=torch.float64))
        self.batches += values.batches

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
        error = (weights * (values - mean)).square().sum(dim=0).sqrt() / weights.sum()
        return mean, error * math.sqrt(n / (n - 1)) if n > 1 else torch.full_like(mean, math.nan)

    def relative_error(self) -> Tensor:
        """Standard error over estimate; infinite where there is none yet, 0 where tr(F) is 0 in every example."""
        mean, se = self.mean_and_error()
        return torch.where(mean == 0, 0.0, (se / mean.abs()).nan_to_num(nan=math.inf))

    def within(self, target: float) -> Tensor:
        """(layers,): whether the relative standard error is at most the target."""
        return self.relative_error() <= target


def across_ranks(measured: Iterable[BatchValues]) -> Iterator[list[BatchValues]]:
    """What every process measured in its next pass, in the order of ranks, until no process has one left.

    Every process gets the same lists, so that all of them stop at the same batch and end with the same numbers. An error in
    one process is raised in all.

    Raises:
        RuntimeError: another process failed; says which, and how.
    """
    if not several():
        yield from ([values] for values in measured)
        return
    passes = iter(measured)
    while True:
        try:
            mine: BatchValues | Exception | None = next(passes, None)
        except Exception as error:
            mine = error
        everyone = all_gather(f"{type(mine).__name__}: {mine}" if isinstance(mine, Exception) else mine)
        if isinstance(mine, Exception):
            raise mine
        if failed := {i: what for i, what in enumerate(everyone) if isinstance(what, str)}:
            raise RuntimeError("; ".join(f"process {i} failed with {what}" for i, what in failed.items()))
        values = [value for value in everyone if isinstance(value, BatchValues)]
        if not values:
            return
        yield values
