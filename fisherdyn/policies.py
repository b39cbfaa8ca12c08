"""SELECT: which layers to open next. A policy never computes a Fisher; it gets scores and answers with layers.

Everywhere, `layers` is the tuple of all layers, bottom first, and the classifier, which is always open, is not in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

Scores = Mapping[str, tuple[float, float]]
"""Layer -> (tr(F), standard error)."""
Select = Callable[[tuple[str, ...], tuple[str, ...], Scores, torch.Generator], tuple[str, ...]]
"""(layers, those open in the order of opening, scores, generator) -> layers to open now."""


@dataclass(frozen=True)
class Policy:
    """A way to unfreeze.

    Attributes:
        name: the field's.
        start: all layers -> those open at step 0.
        select: SELECT of Algorithm 1, called every k steps while a layer is frozen.
        needs_scores: whether SELECT looks at tr(F), which then has to be measured.
    """

    name: str
    start: Callable[[tuple[str, ...]], tuple[str, ...]]
    select: Select
    needs_scores: bool = False


def _top(layers: tuple[str, ...]) -> tuple[str, ...]:
    return layers[-1:]


def _frozen(layers: tuple[str, ...], is_open: tuple[str, ...]) -> list[str]:
    return [layer for layer in layers if layer not in is_open]


def all_at_once() -> Policy:
    """Standard fine-tuning: everything is open from the start."""
    return Policy("standard", lambda layers: layers, lambda layers, is_open, scores, generator: ())


def top_down() -> Policy:
    """Gradual unfreezing, GU (Howard & Ruder 2018): the highest frozen layer."""
    return Policy("top_down", _top, lambda layers, is_open, s, g: tuple(_frozen(layers, is_open)[-1:]))


def bottom_up() -> Policy:
    """The reverse of GU: the top layer at the start, then from the lowest."""
    return Policy("bottom_up", _top, lambda layers, is_open, s, g: tuple(_frozen(layers, is_open)[:1]))


def linear_probing() -> Policy:
    """LPFT (Kumar et al. 2022): the classifier alone for one interval, then everything."""
    return Policy("linear_probing", lambda layers: (), lambda layers, is_open, s, g: layers)


def random_order() -> Policy:
    """A frozen layer, drawn uniformly from the generator."""

    def select(layers: tuple[str, ...], is_open: tuple[str, ...], s: Scores, g: torch.Generator) -> tuple[str, ...]:
        frozen = _frozen(layers, is_open)
        return (frozen[int(torch.randint(len(frozen), (), generator=g))],)

    return Policy("random", _top, select)


def permutation(order: Sequence[str | int]) -> Policy:
    """A fixed order of all layers but the top one, which opens at the start.

    Raises:
        ValueError: at the start of training, unless `order` names each of the other layers once.
    """
    wanted = tuple(str(layer) for layer in order)

    def start(layers: tuple[str, ...]) -> tuple[str, ...]:
        if sorted(wanted) != sorted(layers[:-1]):
            raise ValueError(
                f"expected an order that names each of {', '.join(layers[:-1])} once (layer {layers[-1]} is open from the "
                f"start), got {','.join(wanted)}"
            )
        return _top(layers)

    return Policy("permutation", start, lambda layers, is_open, s, g: (wanted[len(is_open) - 1],))


def surgical(layers: Sequence[str | int]) -> Policy:
    """Surgical fine-tuning (Lee et al. 2022): these layers from the start, and no others ever."""
    chosen = tuple(str(layer) for layer in layers)

    def start(known: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := [layer for layer in chosen if layer not in known]:
            raise ValueError(f"unknown layer(s) {', '.join(unknown)}: the model has {', '.join(known)}")
        return chosen

    return Policy("surgical", start, lambda layers, is_open, s, g: ())


def fun() -> Policy:
    """FUN: the frozen layer with the largest tr(F); of equals, the highest."""

    def select(layers: tuple[str, ...], is_open: tuple[str, ...], s: Scores, g: torch.Generator) -> tuple[str, ...]:
        return (max(reversed(_frozen(layers, is_open)), key=lambda layer: s[layer][0]),)

    return Policy("fun", _top, select, needs_scores=True)


NAMED: dict[str, Callable[[], Policy]] = {
    "standard": all_at_once,
    "top_down": top_down,
    "bottom_up": bottom_up,
    "linear_probing": linear_probing,
    "random": random_order,
    "fun": fun,
}
"""The policies that need no argument, by name."""
