"""Numbers that training logs, as their means between two records."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from torch import Tensor

from .. import record
from ..fisher.distributed import all_gather

STANDARD = ("train_loss", "source_metric")
"""Variables of the record's schema that are logged."""


def check_name(name: str) -> None:
    """Refuses a name that a variable of the record cannot have.

    Raises:
        ValueError: it is not an identifier, or the record has it for something else.
    """
    if not name.isidentifier():
        instead = re.sub(r"\W+", "_", name).strip("_")
        instead = instead if instead.isidentifier() else "my_metric"
        raise ValueError(
            f"expected a name of letters, digits and underscores, got {name!r}: log it as {instead!r}, for instance"
        )
    if name not in STANDARD and (name in record.VARIABLES or name in record.COORDINATES):
        raise ValueError(f"{name!r} is a name of the record's own: log it under another")


def as_number(name: str, value: Any) -> float | Tensor:
    """One number in float64; a tensor stays on its device.

    Raises:
        ValueError: the value is not one number.
    """
    if np.prod(np.shape(value)) != 1:
        raise ValueError(f"expected one number for {name!r}, got shape {tuple(np.shape(value))}")
    if isinstance(value, Tensor):
        return value.detach().double().reshape(())
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"expected one number for {name!r}, got {value!r}") from None


class LoggedMeans:
    """The mean of each logged number since the last `take`. Tensors stay on their device until then."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[float | Tensor, int]] = {}

    def add(self, name: str, value: float | Tensor) -> None:
        """Raises ValueError for a name that `check_name` refuses and for a value that is not one number."""
        check_name(name)
        number = as_number(name, value)
        total, count = self._sums.get(name, (0.0, 0))
        self._sums[name] = (total + number, count + 1)

    def take(self) -> dict[str, float]:
        """The means over everything since the last time, over all processes."""
        pairs: dict[str, list[tuple[float, int]]] = {}
        for sums in all_gather(self.state_dict()):
            for name, pair in sums.items():
                pairs.setdefault(name, []).append(pair)
        self._sums = {}
        return {name: sum(total for total, _ in both) / sum(n for _, n in both) for name, both in pairs.items()}

    def state_dict(self) -> dict[str, tuple[float, int]]:
        """Sum and count by name."""
        return {name: (float(total), count) for name, (total, count) in self._sums.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._sums = {name: (total, count) for name, (total, count) in state.items()}
