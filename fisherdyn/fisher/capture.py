"""What hooks keep of a module: its calls, and the gradients that come to their outputs."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge
from torch.utils._pytree import tree_flatten, tree_map

from ..layers import Layers
from ..model_index import ModelIndex
from .methods import NotSeparableError
from .replay import reading_module, replay
from .rows import RowOrder, examples_of_rows, is_sorted, regroup
from .rules import Rule, find_rule
from .tied import TiedWeight, Use

WITHOUT = "pass layers= without it: of the dict that fisherdyn.layers.find_layers(model) gives, all but its layer"


@dataclass(frozen=True)
class ModuleCall:
    """One call of a module: its inputs, and its outputs where `replay` will need them.

    Attributes:
        ragged: whether it has another number of rows than the batch has examples: they may be anybody's.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: list[Tensor | None]
    tensors: list[Tensor]
    versions: list[int]
    ragged: bool = False

    @classmethod
    def of(cls, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: list[Tensor | None]) -> ModuleCall:
        args, kwargs = tree_map(_detached, (args, kwargs))
        tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
        return cls(args, kwargs, outputs, tensors, [x._version for x in tensors])

    @classmethod
    def of_input(cls, a: Tensor, ragged: bool) -> ModuleCall:
        """The call of a module with one input, whose rule needs no output."""
        a = a.detach()
        return cls((a,), {}, [], [a], [a._version], ragged)

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
        tied: the module's own name of a parameter -> the weight that other modules read too.
        edges: for each call and each of its outputs, the edge of the graph that its gradient passes.
        tagged: for each call whose rows are looked up, the gradient of the tagged cotangent at its output.
    """

    def __init__(self, name: str, module: nn.Module, layer_of: dict[str, int], tied: dict[str, TiedWeight]) -> None:
        self.name, self.module, self.layer_of, self.tied = name, module, layer_of, tied
        self.rule: Rule | None = find_rule(module) if set(layer_of) <= {"weight", "bias"} else None
        self.calls: list[ModuleCall] = []
        self.edges: list[list[GradientEdge | None]] = []
        self.gradients: list[list[Tensor | None]] = []
        self.tagged: dict[int, Tensor] = {}
        self.missing = 0

    def begin_forward(self) -> None:
        """Forgets the calls of the forward pass before."""
        self.calls, self.edges, self.gradients, self.tagged = [], [], [], {}

    def begin_backward(self) -> None:
        """Expects a gradient for each output that has a graph."""
        self.gradients = [[None] * len(edges) for edges in self.edges]
        self.missing = sum(edge is not None for edges in self.edges for edge in edges)
        self.tagged = {}

    def receive(self, call: int, output: int, gradient: Tensor) -> bool:
        """Keeps a gradient; returns whether it was the last one expected."""
        if self.gradients[call][output] is not None:
            raise NotSeparableError(f"module {self.name!r}: the gradient of one output came twice")
        self.gradients[call][output] = gradient
        self.missing -= 1
        return not self.missing

    @property
    def received_any(self) -> bool:
        return any(gradient is not None for call in self.gradients for gradient in call)

    def squared_norms(self, examples: int, factors: Tensor | None, order: RowOrder, last: bool) -> dict[str, Tensor]:
        """(examples,) for each measured parameter of the module that is not tied, which is kept for `TiedWeight`.

        After the last backward pass nothing else is kept.
        """
        numbers = [i for i, row in enumerate(self.gradients) if any(gradient is not None for gradient in row)]
        pairs = [(self.calls[i], self.gradients[i]) for i in numbers]
        if any(call.changed_in_place() for call, _ in pairs):
            raise ValueError(
                f"module {self.name!r}: its input is changed in place after it was read, so there is no gradient: {WITHOUT}"
            )
        self.gradients = []
        if last:
            self.calls = []
        if self.rule is None:
            return replay(self.name, self.module, pairs, list(self.layer_of), examples)
        rows = [
            self._rows(call.args[0], gradients[0], self.tagged.get(i), factors, order)
            for i, (call, gradients) in zip(numbers, pairs, strict=True)
            if gradients[0] is not None
        ]
        a, d = (concatenate_calls(calls, examples) for calls in zip(*rows, strict=True))
        if not self.tied:
            return self.rule.norms(self.module, a, d)
        for short in self.layer_of:
            self.tied[short].add(Use(self.module, self.rule, short, a, d))
        return {}

    def _rows(
        self, a: Tensor, d: Tensor, tagged: Tensor | None, factors: Tensor | None, order: RowOrder
    ) -> tuple[Tensor, Tensor]:
        """Input and gradient of one call as (rows, positions, ...); one row an example where they had to be looked up."""
        assert self.rule is not None
        tagged = None if tagged is None else self.rule.gradients(self.module, tagged.reshape_as(d))
        a, d = self.rule.inputs(self.module, a), self.rule.gradients(self.module, d)
        if tagged is None or factors is None:
            return a, d
        a, d, tagged = (x.flatten(0, 1) for x in (a, d, tagged))
        if len(a) != len(d):
            raise NotSeparableError(f"module {self.name!r} has other rows in its output than in its input")
        owner = examples_of_rows(d, tagged, factors, self.name)
        if not is_sorted(owner, len(factors)):
            order.sorted = False
            order.ragged.add(self.name)  # also where it sees as many rows as there are examples, by chance
        elif order.sorted is None:
            order.sorted = True
        return regroup(a, owner, len(factors)), regroup(d, owner, len(factors))

    def signature(self, examples: int) -> Hashable:
        """How the module was called in this forward pass; experts are called now so, now so."""
        if any(call.ragged for call in self.calls):
            return self.name, "ragged"
        return self.name, examples > 1, *(tuple(x.ndim for x in call.tensors) for call in self.calls)

    def calls_of_several_rows(self, examples: int) -> list[int]:
        """Numbers of the calls with several rows an example: to whom they belong can change from batch to batch."""
        return [i for i, call in self._ruled_calls() if call.ragged or any(len(x) != examples for x in call.tensors)]

    def doubtful_calls(self, all_rows: bool) -> list[int]:
        """Numbers of the calls with one number a row (positions, perhaps, that all share); `all_rows`: or one vector."""
        return [
            i
            for i, call in self._ruled_calls()
            if call.tensors[0].ndim == 1 or (all_rows and call.tensors[0].ndim == 2)
        ]

    def _ruled_calls(self) -> Iterable[tuple[int, ModuleCall]]:
        return enumerate(self.calls) if self.rule is not None else ()


def capture_layers(model: ModelIndex, layers: Layers) -> tuple[list[LayerCapture], list[TiedWeight]]:
    """A capture for each module whose calls read measured parameters, and the weights that several modules read.

    Raises:
        NotSeparableError: a weight whose gradients, in the modules that read it, do not add by any rule.
    """
    layer_of: dict[str, dict[str, int]] = {}
    tied: list[TiedWeight] = []
    tied_of: dict[str, dict[str, TiedWeight]] = {}
    for number, names in enumerate(layers.values()):
        for name in names:
            readers = _readers(model, name)
            for reader, short in readers.items():
                layer_of.setdefault(reader, {})[short] = number
            if len(readers) > 1:
                tied.append(TiedWeight(number, name))
                for reader, short in readers.items():
                    tied_of.setdefault(reader, {})[short] = tied[-1]
    for reader, weights in tied_of.items():  # its other parameters' gradients are taken in the same way
        for short in layer_of[reader].keys() - weights.keys():
            weights[short] = TiedWeight(layer_of[reader][short], f"{reader}.{short}")
            tied.append(weights[short])
    captures = [
        LayerCapture(name, model.places[name], numbers, tied_of.get(name, {})) for name, numbers in layer_of.items()
    ]
    for capture in captures:
        for short in capture.tied:
            if not Use.known(capture.module, capture.rule):
                kind = type(capture.module).__name__
                raise NotSeparableError(f"module {capture.name!r} ({kind}) reads {short!r}, as other modules do")
    return captures, tied


def _readers(model: ModelIndex, name: str) -> dict[str, str]:
    """Modules whose calls read a parameter -> its name there.

    A module without a rule that has a weight in common with a module inside of it is taken to hold it only: BERT's
    prediction head has the decoder's bias. `check` finds the one that reads it itself.
    """
    found: dict[str, str] = {}
    for owner, own, place in model.owners_of(model.get_parameter(name)):
        reader, short = reading_module(model.places, place)
        found.setdefault(reader, short)
        if f"{reader}.{own}".lstrip(".") != place:  # the owner only holds it, perhaps for several
            found |= dict(reading_module(model.places, f"{other}.{own}") for other in model.names_of(owner))
    holders = {
        reader
        for reader in found
        if find_rule(model.places[reader]) is None
        and any(not reader or other.startswith(f"{reader}.") for other in found.keys() - {reader})
    }
    return {reader: short for reader, short in found.items() if reader not in holders}


def expand_shared_row(a: Tensor, output: Tensor, examples: int) -> tuple[Tensor, Tensor]:
    """A call's input and output; a row that is broadcast over the batch (BERT's positions) becomes one an example.

    That has to be before the gradients add up.
    """
    if len(output) == 1 and len(a) == 1 and examples > 1:
        return a.expand(examples, *a.shape[1:]), output.expand(examples, *output.shape[1:])
    return a, output


def concatenate_calls(calls: Sequence[Tensor], examples: int) -> Tensor:
    """Calls of (rows, positions, ...) -> (examples, positions of all rows and calls, ...)."""
    rows = [x.reshape(examples, -1, *x.shape[2:]) for x in calls]
    return rows[0] if len(rows) == 1 else torch.cat(rows, dim=1)
