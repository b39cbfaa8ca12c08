"""Orders in which layers open: those of the paper's Figure 4, random ones, and orders of your own."""

from __future__ import annotations

import random

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
"""The schedules of the paper's Figure 4: layer 11 is open from the start, then one of these opens every k steps.
The first is top-down."""

LAYERS = 12
"""Layers of the models that Figure 4's schedules are for."""


def parse_order(text: str, layers: int = LAYERS) -> tuple[int, ...]:
    """ "10,9,...,0" -> a permutation of the layers below the top one.

    Raises:
        ValueError: the text is no such permutation; the message says what is missing, unknown or repeated.
    """
    try:
        order = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"order {text}: expected layer numbers separated by commas") from None
    below = range(layers - 1)
    faults = {
        "missing": sorted(set(below) - set(order)),
        "unknown": sorted(set(order) - set(below)),
        "repeated": sorted({layer for layer in order if order.count(layer) > 1}),
    }
    if any(faults.values()):
        reasons = "; ".join(f"{fault} {', '.join(map(str, of))}" for fault, of in faults.items() if of)
        raise ValueError(
            f"order {text}: expected each of 0 to {layers - 2} once (layer {layers - 1} is open from the start); {reasons}"
        )
    return order


def random_orders(n: int, layers: int = LAYERS) -> list[tuple[int, ...]]:
    """n different orders under the rule of the paper's footnote 8: the first layer to open is one of the two below the top.

    They are the first n of one random sequence, which never changes. Top-down is not among them: the paper adds it itself.
    """
    draw = random.Random(0)
    below = range(layers - 1)
    orders: dict[tuple[int, ...], None] = {}
    while len(orders) < n:
        order = tuple(draw.sample(below, layers - 1))
        if order[0] >= layers - 3 and order != tuple(reversed(below)):
            orders[order] = None
    return list(orders)
