"""Whole numbers that users give: Python's or numpy's, and never true or false."""

from __future__ import annotations

from typing import Any

import numpy as np


def is_whole(value: Any) -> bool:
    """Whether it is an int or numpy's; 2.0 and True are not, since both are mistakes where a count is wanted."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def whole(name: str, value: Any, least: int | None = 1) -> int:
    """The value as an int, which JSON and records can hold.

    Raises:
        ValueError: it is no whole number, or below `least`.
    """
    if not is_whole(value):
        raise ValueError(f"expected {name} as a whole number, got {value!r}")
    if least is not None and value < least:
        raise ValueError(f"expected {name} of at least {least}, got {value}")
    return int(value)
