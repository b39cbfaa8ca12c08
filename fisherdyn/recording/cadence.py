"""At which steps a run is recorded."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ..validation import Count, Natural, check


@dataclass(frozen=True)
class Cadence:
    """Every so many steps and at the end, or at given steps and nowhere else."""

    every: int | None
    steps: frozenset[int]

    @classmethod
    def of(cls, every: int | None, steps: Iterable[int] | None) -> Cadence:
        """Every 100 steps where neither is given.

        Raises:
            ValueError: both are given; a step that is not a whole number.
        """
        if every is not None and steps is not None:
            raise ValueError("expected every= or steps=, got both")
        if steps is None:
            return cls(check("every", 100 if every is None else every, Count), frozenset())
        if not isinstance(steps, Iterable):
            raise ValueError(
                f"expected steps as whole numbers, such as log_spaced(10_000), got {steps!r}: every= is an interval"
            )
        chosen = frozenset(check("a step to record", step, Natural) for step in steps)
        if not chosen:
            raise ValueError("expected at least one step to record, got none")
        return cls(None, chosen)

    def due(self, step: int) -> bool:
        return step in self.steps if self.every is None else step % self.every == 0

    def due_at_the_end(self, step: int) -> bool:
        """Whether the state that no update follows is recorded."""
        return self.every is not None or step in self.steps

    def __str__(self) -> str:
        return f"every {self.every}" if self.every is not None else f"{len(self.steps)} given steps"


def log_spaced(last: int, per_decade: int = 10) -> tuple[int, ...]:
    """Steps from 0 to `last`, as evenly spaced in log(step) as whole numbers can be: 0, 1, 2, 3, 4, 5, 6, 8, 10, 13, ..."""
    last, per_decade = check("last", last, Count), check("per_decade", per_decade, Count)
    count = int(np.ceil(np.log10(last) * per_decade)) + 1
    return (0, *np.unique(np.geomspace(1, last, max(count, 2)).round().astype(int)).tolist())
