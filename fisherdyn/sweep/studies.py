"""What runs: a study is a list of runs made from data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

FIGURE_4: tuple[tuple[int, ...], ...] = (
    (10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0),
    (10, 2, 6, 5, 8, 3, 7, 0, 1, 9, 4),
    (9, 6, 2, 4, 5, 8, 7, 10, 1, 3, 0),
    (9, 7, 0, 10, 5, 8, 2, 4, 1, 3, 6),
    (10, 5, 4, 7, 1, 9, 0, 8, 3, 2, 6),
    (10, 8, 1, 6, 7, 2, 0, 5, 4, 9, 3),
    (10, 4, 7, 5, 3, 0, 6, 2, 9, 8, 1),
    (10, 1, 0, 3, 9, 6, 8, 2, 5, 7, 4),
    (10, 9, 3, 5, 0, 4, 1, 8, 6, 7, 2),
    (10, 7, 0, 3, 4, 8, 1, 2, 6, 5, 9),
)
"""The schedules of the paper's Figure 4: layer 11 is open from the start, then one of these every k steps."""

LAYERS = 12
"""Of the models that Figure 4's schedules are for."""

STANDARD, TOP_DOWN = "standard", "top-down"


@dataclass(frozen=True)
class Run:
    """One training run. `order` is empty for standard training."""

    schedule: str
    order: tuple[int, ...]
    seed: int


@dataclass(frozen=True)
class Settings:
    """What all runs of a study share; two sweeps with equal settings and runs give the same numbers."""

    task: str = "world"
    steps: int = 140
    interval: int = 7
    lr: float = 8e-3
    record_every: int = 9
    evaluate_every: int = 35

    def asdict(self) -> dict[str, Any]:
        return asdict(self)


def parse_order(text: str, layers: int = LAYERS) -> tuple[int, ...]:
    """ "10,9,...,0" -> a permutation of the layers below the top one.

    Raises:
        ValueError: it is not one; the message says what is missing, unknown or there twice.
    """
    try:
        order = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"--order {text}: expected layer numbers separated by commas") from None
    below = range(layers - 1)
    faults = {
        "missing": sorted(set(below) - set(order)),
        "unknown": sorted(set(order) - set(below)),
        "repeated": sorted({layer for layer in order if order.count(layer) > 1}),
    }
    said = "; ".join(f"{fault} {', '.join(map(str, found))}" for fault, found in faults.items() if found)
    if said:
        raise ValueError(
            f"--order {text}: expected each of 0 to {layers - 2} once (layer {layers - 1} is open from the start); {said}"
        )
    return order


def permutations(seeds: Sequence[int], schedules: int = 10, orders: Sequence[tuple[int, ...]] = ()) -> list[Run]:
    """Standard training, the first `schedules` of Figure 4's ten, and orders of one's own, for every seed.

    Runs of one seed share initial weights, data order and label noise: schedules are compared within a seed.

    Raises:
        ValueError: schedules not in 0..10, no seed, or an order given twice.
    """
    if not 0 <= schedules <= len(FIGURE_4):
        raise ValueError(f"--schedules {schedules}: Figure 4 has {len(FIGURE_4)}; choose 0 to {len(FIGURE_4)}")
    if not seeds:
        raise ValueError("expected at least one seed")
    named: dict[str, tuple[int, ...]] = {STANDARD: ()}
    for i, order in enumerate(FIGURE_4[:schedules]):
        named[TOP_DOWN if i == 0 else f"figure-4/{i}"] = order
    for order in orders:
        if order in named.values():
            raise ValueError(f"--order {','.join(map(str, order))} is there already")
        named["-".join(map(str, order))] = order
    return [Run(name, order, seed) for seed in seeds for name, order in named.items()]
