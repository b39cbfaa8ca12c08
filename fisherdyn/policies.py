"""SELECT: which layers to open next. A policy never computes a Fisher; it gets scores and answers with layers.

Everywhere, `layers` is the tuple of all layers, bottom first, and the classifier, which is always open, is not in it. What
has parallel parts at one depth (two adapters a block) is one layer with the parameters of both: tr(F) adds up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from .labels import LABELS, LabelMode
from .validation import Count, check

Scores = Mapping[str, tuple[float, float]]
"""Layer -> (tr(F), standard error)."""


@dataclass(frozen=True)
class SelectionContext:
    """What SELECT sees.

    Attributes:
        step: optimizer updates so far.
        layers: all of them, bottom first.
        open: those open, in the order of opening.
        scores: of the frozen layers, where the policy asked for them; nan where there was only one, which is not measured.
        generator: for a policy that draws.
    """

    step: int
    layers: tuple[str, ...]
    open: tuple[str, ...]
    scores: Scores = field(default_factory=dict)
    generator: torch.Generator = field(default_factory=torch.Generator)

    @property
    def frozen(self) -> tuple[str, ...]:
        return tuple(layer for layer in self.layers if layer not in self.open)


@dataclass(frozen=True)
class Scoring:
    """How tr(F) is sampled for a choice; `selection.choose` does it.

    Attributes:
        labels: "rademacher", "exact", "mc" or, biased, "argmax"; None: those of the record. Or a `LabelMode` of your own.
        method: "hooks", "loop", "vmap" or, biased, "authors". Or a `Method` of your own.
        batches: read at most this many.
        error_rate: the chance that a layer is called the best which is not, and, on average, that stopping early changes
            the choice; 0 reads all batches and calls every choice a tie, as none is certain.
    """

    labels: str | LabelMode | None = None
    method: Any = "hooks"
    batches: int = 40
    error_rate: float = 0.05


@dataclass(frozen=True)
class Policy:
    """A way to unfreeze, and what it is called: nothing else in the project names a policy.

    Attributes:
        id: what studies, records and the command line know it by.
        start: all layers -> those open at step 0.
        select: SELECT of Algorithm 1: the current state -> layers to open; asked while a layer is frozen.
        scoring: how tr(F) is measured for SELECT; None: SELECT looks at no scores.
        label: its name in figures; by default its id.
        paper: its row in the paper's tables; "" where the paper has none.

    Example:
        A policy that opens two layers at a time, from the top:

            two_at_a_time = Policy("two_at_a_time", lambda layers: layers[-2:], lambda context: context.frozen[-2:])
    """

    id: str
    start: Callable[[tuple[str, ...]], tuple[str, ...]]
    select: Callable[[SelectionContext], tuple[str, ...]]
    scoring: Scoring | None = None
    label: str = ""
    paper: str = ""

    def __post_init__(self) -> None:
        if not self.label:
            object.__setattr__(self, "label", self.id)

    def label_of(self, schedule: str) -> str:
        """How a figure shows a schedule of this policy.

        A schedule that bears the policy's name, in any spelling ("top-down", "Top_Down", "GU"), is shown by the label.
        Any other name ("top-down, k = 2") says more than the policy does, and is shown as it is.
        """
        names = (self.id, self.label, self.paper.removeprefix("Ada+"))
        return self.label if _spelling(schedule) in map(_spelling, names) else schedule


def _spelling(name: str) -> str:
    return name.lower().replace("_", "-").replace(" ", "-")


def _top(layers: tuple[str, ...]) -> tuple[str, ...]:
    return layers[-1:]


def all_at_once() -> Policy:
    """Standard fine-tuning: everything is open from the start."""
    return Policy("standard", lambda layers: layers, lambda context: (), paper="Ada")


def full_fine_tuning() -> Policy:
    """Every layer is open from the start, as in standard training; the task trains all weights (tuning="full")."""
    return replace(all_at_once(), id="full", label="full fine-tuning", paper="full fine-tuning")


def top_down() -> Policy:
    """Gradual unfreezing, GU (Howard & Ruder 2018): the highest frozen layer."""
    return Policy("top_down", _top, lambda context: context.frozen[-1:], label="GU (top-down)", paper="Ada+GU")


def bottom_up() -> Policy:
    """The reverse of GU: the top layer at the start, then from the lowest."""
    return Policy("bottom_up", _top, lambda context: context.frozen[:1], label="reverse", paper="Ada+GU (rev)")


def linear_probing() -> Policy:
    """LPFT (Kumar et al. 2022): the classifier alone for one interval, then everything."""
    return Policy("linear_probing", lambda layers: (), lambda context: context.frozen, label="LPFT", paper="Ada+LPFT")


def random_order() -> Policy:
    """A frozen layer, drawn uniformly from the generator."""

    def select(context: SelectionContext) -> tuple[str, ...]:
        return (context.frozen[int(torch.randint(len(context.frozen), (), generator=context.generator))],)

    return Policy("random", _top, select, paper="Ada+Rand")


def permutation(order: Sequence[str | int | Sequence[str | int]]) -> Policy:
    """A fixed order of all layers but the top one, which opens at the start. A group in it, (9, 8), opens at once.

    Raises:
        ValueError: at the start of training, unless `order` names each of the other layers once.
    """
    groups = [(str(g),) if isinstance(g, str | int) else tuple(str(layer) for layer in g) for g in order]
    named = [layer for group in groups for layer in group]

    def start(layers: tuple[str, ...]) -> tuple[str, ...]:
        if sorted(named) != sorted(layers[:-1]):
            raise ValueError(
                f"expected an order that names each of {', '.join(layers[:-1])} once (layer {layers[-1]} is open from the "
                f"start), got {','.join(named)}"
            )
        return _top(layers)

    def select(context: SelectionContext) -> tuple[str, ...]:
        return next((group for group in groups if group and group[0] in context.frozen), ())

    return Policy("permutation", start, select)


def surgical(layers: Sequence[str | int]) -> Policy:
    """Surgical fine-tuning (Lee et al. 2022): these layers from the start, and no others ever.

    Raises:
        ValueError: a layer that is named twice; at the start of training, one that the model lacks.
    """
    chosen = tuple(str(layer) for layer in layers)
    if twice := sorted({layer for layer in chosen if chosen.count(layer) > 1}):
        raise ValueError(f"expected each layer once, got {','.join(chosen)}: leave out the second {', '.join(twice)}")

    def start(known: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := [layer for layer in chosen if layer not in known]:
            raise ValueError(f"unknown layer(s) {', '.join(unknown)}: the model has {', '.join(known)}")
        return chosen

    return Policy("surgical", start, lambda context: ())


def fun(
    labels: str | None = None, method: str = "hooks", batches: int | None = None, error_rate: float = 0.05
) -> Policy:
    """FUN, Fisher unfreezing: the frozen layer with the largest tr(F); of equals, the highest.

    Args:
        labels: of tr(F): "rademacher", "exact" or "mc"; None: those of the record.
        method: "hooks", "loop" or "vmap". With labels="argmax", "authors" is the selection rule of the paper's code: the
            squared gradient of each batch's mean loss over the batch's size, always of 41 batches.
        batches: read at most this many (40 as in the paper; 41 in its code, whose test is `step > 39`); as a rule far fewer
            are read: see `selection.choose`.
        error_rate: see `selection.choose`; 0 always reads all batches.

    Raises:
        ValueError: unknown labels or method, or a pair that does not go together; batches below 1; an error_rate out of
            range.
    """
    if labels is not None and labels not in LABELS:
        raise ValueError(f"unknown labels={labels!r} of FUN: choose one of {', '.join(LABELS)}")
    if method not in ("hooks", "loop", "vmap", "authors"):
        raise ValueError(f'unknown method={method!r} of FUN: choose "hooks", "loop", "vmap" or "authors"')
    if (method == "authors") != (labels == "argmax"):
        raise ValueError(
            'expected labels="argmax" and method="authors" together (the authors\' rule) or neither, got '
            f"labels={labels!r}, method={method!r}"
        )
    if not 0 <= error_rate < 1:
        raise ValueError(f"expected an error_rate of at least 0 and below 1, such as 0.05, got {error_rate}")

    def select(context: SelectionContext) -> tuple[str, ...]:
        return (max(reversed(context.frozen), key=lambda layer: context.scores[layer][0]),)

    read = check("batches", batches, Count) if batches is not None else (41 if method == "authors" else 40)
    return Policy("fun", _top, select, Scoring(labels, method, read, error_rate), label="FUN", paper="Ada+FUN")


NAMED: dict[str, Policy] = {
    policy.id: policy
    for policy in (
        all_at_once(),
        random_order(),
        top_down(),
        linear_probing(),
        fun(),
        bottom_up(),
        full_fine_tuning(),
    )
}
"""The policies that need no argument, by id."""
