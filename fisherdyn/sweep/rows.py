"""What a row of a study file may say: which keys, and numbers as the command line checks its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

COUNTS = ("steps", "interval", "record_every", "evaluate_every")
OWN = ("policy", "order", "lr", *COUNTS, "device", "fit", "task")
"""What a row may have beside the task's options."""


def numbers(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with its numbers as numbers: to YAML, 1e-3 is a text.

    Raises:
        ValueError: a value that is no such number.
    """
    own = dict(row)
    for key in COUNTS:
        if key in own:
            own[key] = _count(key, own[key])
    if "lr" in own:
        own["lr"] = _rate(own["lr"])
    return own


def check(row: Mapping[str, Any], options: Iterable[str], task: str) -> None:
    """Refuses what a run on a task could not be given.

    Raises:
        ValueError: keys that are neither a row's own nor the task's options (the message lists both); no number of examples.
    """
    if unknown := [str(key) for key in row if key not in OWN and key not in options]:
        raise ValueError(
            f"unknown key {', '.join(unknown)}: a schedule may have {', '.join(OWN)}, and the options of task {task!r}: "
            f"{', '.join(options)}"
        )
    if "train_examples" in row:
        _count("train_examples", row["train_examples"])
    if not isinstance(row.get("fit", {}), Mapping):
        raise ValueError(f"fit {row['fit']}: expected arguments of fit() by name")


def _count(key: str, value: Any) -> int:
    if key == "interval" and isinstance(value, list | tuple):
        raise ValueError(
            f"interval {value}: expected one number of steps: a sweep opens a layer every so many; call fit() for steps "
            "of your own choice"
        )
    try:
        number = int(value)
        whole = number == float(value) and number >= 1 and not isinstance(value, bool)
    except (TypeError, ValueError, OverflowError):
        whole = False
    if not whole:
        raise ValueError(f"{key} {value}: expected a whole number of at least 1")
    return number


def _rate(value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = 0.0
    if not 0 < number < float("inf") or isinstance(value, bool):
        raise ValueError(f"lr {value}: expected a positive number")
    return number
