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
        process: whose pass it was, where there are several.
    """

    rows: Tensor
    examples: int
    batches: int
    process: int = 0


class RunningMean:
    """Values, one row an example or one a batch, each row with the number of examples that it stands for.

    Adding a pass and asking for mean and error cost what the pass is large, not what was read before.

    Attributes:
        rows, examples, batches: how many there are so far.
    """

    def __init__(self) -> None:
        self.rows = self.examples = self.batches = 0
        self._parts: list[BatchValues] = []

    def add(self, values: BatchValues) -> None:
        if not self._parts:
            self._origin = values.rows.mean(dim=0)  # sums of squares about it do not cancel
            self._sums = values.rows.new_zeros(3, values.rows.shape[1], dtype=torch.float64)
            self._square_weights = 0.0
        self._parts.append(values)
        weight, x = values.examples / len(values.rows), values.rows.double() - self._origin
        self._sums += torch.stack([weight * x.sum(dim=0), weight**2 * x.sum(dim=0), weight**2 * x.square().sum(dim=0)])
        self._square_weights += weight**2 * len(x)
        self.rows, self.examples = self.rows + len(x), self.examples + values.examples
        self.batches += values.batches

    @property
    def values(self) -> Tensor:
        """(rows, layers), in the loader's order; process by process, where there are several."""
        return torch.cat([part.rows for part in sorted(self._parts, key=lambda part: part.process)])

    def mean_and_error(self) -> tuple[Tensor, Tensor]:
        """Weighted mean over rows and its standard error: sd / sqrt(n) where all rows stand for one example."""
        once, twice, squares = self._sums
        mean, n = once / self.examples, self.rows
        # The sum of weight^2 (x - mean)^2.
        spread = squares - 2 * mean * twice + self._square_weights * mean.square()
        error = spread.clamp(min=0).sqrt() / self.examples
        return self._origin + mean, error * math.sqrt(n / (n - 1)) if n > 1 else torch.full_like(mean, math.nan)

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


def skewness(values: Tensor) -> Tensor:
    """(layers,): the third central moment over the cubed standard deviation of (rows, layers); 0 where all are equal."""
    centred = values - values.mean(dim=0)
    return torch.nan_to_num(centred.pow(3).mean(dim=0) / centred.square().mean(dim=0).pow(1.5))
