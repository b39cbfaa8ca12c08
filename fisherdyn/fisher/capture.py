"""What hooks capture of a module that owns measured parameters: what went in, what gradient came back, and their norms."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge
from torch.utils._pytree import tree_flatten, tree_map

from ..layers import Layers
from ..model_index import ModelIndex
from .replay import reading_module, replay
from .rules import Rule, find_rule

USE_VMAP = 'measure it with method="vmap"'

Signature = Hashable
"""How the modules of a layer were called: how often, with how many dimensions, for one example or several."""


@dataclass(frozen=True)
class ModuleCall:
    """One call of a module: its inputs, and its outputs where `replay` will need them."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: list[Tensor | None]
    tensors: list[Tensor]
    versions: list[int]

    @classmethod
    def of(cls, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: list[Tensor | None]) -> ModuleCall:
        args, kwargs = tree_map(_detached, (args, kwargs))
        tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
        return cls(args, kwargs, outputs, tensors, [x._version for x in tensors])

    @classmethod
    def of_input(cls, a: Tensor) -> ModuleCall:
        """The call of a module with one input, whose rule needs no output."""
        a = a.detach()
        return cls((a,), {}, [], [a], [a._version])

    def changed_in_place(self) -> bool:
        """Whether an input was written into since: a detached tensor shares its version with the original."""
        return self.versions != [x._version for x in self.tensors]


def _detached(x: Any) -> Any:
    """A parameter stays one: that is how a weight which is passed as an argument is told from a batch."""
    return x.detach() if isinstance(x, Tensor) and not isinstance(x, nn.Parameter) else x


class LayerCapture:
    """A module, the measured parameters that it reads, and its calls in one forward pass.

    A weight that is used in several calls has one gradient, the sum of theirs: the norm is taken when the gradients of all
    calls have arrived.

    Attributes:
        layer_of: the module's own name of a parameter -> number of its layer.
        edges: for each call and each of its outputs, the edge of the graph that its gradient passes.
    """

    def __init__(self, name: str, module: nn.Module, layer_of: dict[str, int]) -> None:
        self.name, self.module, self.layer_of = name, module, layer_of
        self.rule: Rule | None = find_rule(module) if set(layer_of) <= {"weight", "bias"} else None
        self.calls: list[ModuleCall] = []
        self.edges: list[list[GradientEdge | None]] = []
        self.gradients: list[list[Tensor | None]] = []
        self.missing = 0

    def begin_forward(self) -> None:
        """Forgets the calls of the forward pass before."""
        self.calls, self.edges, self.gradients = [], [], []

    def begin_backward(self) -> None:
        """Expects a gradient for each output that has a graph."""
        self.gradients = [[None] * len(edges) for edges in self.edges]
        self.missing = sum(edge is not None for edges in self.edges for edge in edges)

    def receive(self, call: int, output: int, gradient: Tensor) -> bool:
        """Keeps a gradient; returns whether it was the last one expected."""
        if self.gradients[call][output] is not None:
            raise ValueError(f"module {self.name!r}: the gradient of one output came twice; {USE_VMAP}")
        self.gradients[call][output] = gradient
        self.missing -= 1
        return not self.missing

    @property
    def received_any(self) -> bool:
        return any(gradient is not None for call in self.gradients for gradient in call)

    def squared_norms(self, examples: int, last: bool) -> dict[str, Tensor]:
        """(examples,) for each measured parameter of the module; after the last backward pass nothing is kept."""
        pairs = [
            (call, gradients)
            for call, gradients in zip(self.calls, self.gradients, strict=True)
            if any(gradient is not None for gradient in gradients)
        ]
        if any(call.changed_in_place() for call, _ in pairs):
            raise ValueError(f"module {self.name!r}: its input is changed in place after it was read; {USE_VMAP}")
        self.gradients = []
        if last:
            self.calls = []
        if self.rule is None:
            return replay(self.name, self.module, pairs, list(self.layer_of), examples)
        a = [self.rule.inputs(self.module, call.args[0]) for call, _ in pairs]
        d = [self.rule.gradients(self.module, gradients[0]) for _, gradients in pairs if gradients[0] is not None]
        return self.rule.norms(self.module, concatenate_calls(a, examples), concatenate_calls(d, examples))

    def signature(self, several_examples: bool) -> Hashable:
        """How the module was called in this forward pass."""
        return self.name, several_examples, *(tuple(x.ndim for x in call.tensors) for call in self.calls)

    def sees_several_rows(self, examples: int) -> bool:
        """Whether some call has several rows an example: to whom they belong can change from batch to batch."""
        return self.rule is not None and any(len(x) != examples for call in self.calls for x in call.tensors)


def capture_layers(model: ModelIndex, layers: Layers) -> list[LayerCapture]:
    """A capture for each module whose calls read measured parameters.

    Raises:
        ValueError: a weight that several modules own; it has one gradient, and no module sees all of it.
    """
    layer_of: dict[str, dict[str, int]] = {}
    for number, (layer, names) in enumerate(layers.items()):
        for name in names:
            owners = model.owners_of(model.get_parameter(name))
            if len(owners) > 1:
                uses = " and ".join(place for *_, place in owners)
                raise ValueError(f"layer {layer!r}: one weight is used as {uses}; {USE_VMAP}")
            reader, short = reading_module(model.places, name)
            layer_of.setdefault(reader, {})[short] = number
    return [LayerCapture(name, model.places[name], numbers) for name, numbers in layer_of.items()]


def expand_shared_row(a: Tensor, output: Tensor, examples: int) -> tuple[Tensor, Tensor] | None:
    """A call's input and output with a row for each example; None where their lengths do not fit.

    A row that is broadcast over the batch (BERT's positions) becomes one an example, before the gradients add up.
    """
    if len(output) == 1 and len(a) == 1 and examples > 1:
        return a.expand(examples, *a.shape[1:]), output.expand(examples, *output.shape[1:])
    fits = output.ndim >= 2 and not len(output) % examples and len(a) == len(output)
    return (a, output) if fits else None


def concatenate_calls(calls: Sequence[Tensor], examples: int) -> Tensor:
    """Calls of (rows, positions, ...) -> (examples, positions of all rows and calls, ...)."""
    rows = [x.reshape(examples, -1, *x.shape[2:]) for x in calls]
    return rows[0] if len(rows) == 1 else torch.cat(rows, dim=1)
