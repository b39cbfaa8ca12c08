"""The modules whose calls read the wanted parameters: what went in, what gradient came to what came out, and the norms."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from ..layers import Layers
from .check import USE_VMAP
from .replay import Call, reader, replay
from .rules import Rule, find_rule


def watched_in(model: nn.Module, layers: Layers) -> list[LayerCapture]:
    """The modules whose calls read the wanted parameters; refuses weights that several modules read."""
    readers: dict[int, dict[int, str]] = {}  # parameter -> the modules that own it -> its name there
    modules = dict(model.named_modules(remove_duplicate=False))
    for name, module in modules.items():
        for short, parameter in module._parameters.items():
            if parameter is not None:
                readers.setdefault(id(parameter), {}).setdefault(id(module), f"{name}.{short}".lstrip("."))
    wanted: dict[str, dict[str, int]] = {}
    for i, (layer, names) in enumerate(layers.items()):
        for name in names:
            owner, _, short = name.rpartition(".")
            tied = readers[id(modules[owner]._parameters[short])]
            if len(tied) > 1:
                raise ValueError(f"layer {layer!r}: one weight is used as {' and '.join(tied.values())}; {USE_VMAP}")
            owner, short = reader(modules, name)
            wanted.setdefault(owner, {})[short] = i
    return [LayerCapture(name, modules[name], own) for name, own in wanted.items()]


class LayerCapture:
    """A module, the parameters that it reads and that are wanted, and its calls in this forward pass.

    A weight that is used in several calls has one gradient, the sum of theirs: the norm is taken when the gradients of all
    calls are there.

    Attributes:
        wanted: short name -> number of its layer.
        edges: of each call, for each of its outputs, where its gradient passes.
    """

    def __init__(self, name: str, module: nn.Module, wanted: dict[str, int]) -> None:
        self.name, self.module, self.wanted = name, module, wanted
        self.rule: Rule | None = find_rule(module) if set(wanted) <= {"weight", "bias"} else None
        self.calls: list[Call] = []
        self.edges: list[list[GradientEdge | None]] = []
        self.gradients: list[list[Tensor | None]] = []
        self.missing = 0

    def expect(self) -> None:
        """Before a backward pass: nothing has arrived yet."""
        self.gradients = [[None] * len(edges) for edges in self.edges]
        self.missing = sum(edge is not None for edges in self.edges for edge in edges)

    def arrive(self, call: int, output: int, gradient: Tensor) -> bool:
        """Keeps a gradient; whether it was the last that is waited for."""
        if self.gradients[call][output] is not None:
            raise ValueError(f"module {self.name!r}: the gradient of one output came twice; {USE_VMAP}")
        self.gradients[call][output] = gradient
        self.missing -= 1
        return not self.missing

    @property
    def arrived(self) -> bool:
        return any(d is not None for call in self.gradients for d in call)

    def norms(self, examples: int, last: bool) -> dict[str, Tensor]:
        """Squared norms (examples,) of the module's parameters; after the last backward pass nothing is kept."""
        pairs = [(c, ds) for c, ds in zip(self.calls, self.gradients, strict=True) if any(d is not None for d in ds)]
        if any(call.changed() for call, _ in pairs):
            raise ValueError(f"module {self.name!r}: its input is changed in place after it was read; {USE_VMAP}")
        self.gradients = []
        if last:
            self.calls = []
        if self.rule is None:
            return replay(self.name, self.module, pairs, list(self.wanted), examples)
        a = [self.rule.inputs(self.module, call.args[0]) for call, _ in pairs]
        d = [self.rule.gradients(self.module, ds[0]) for _, ds in pairs if ds[0] is not None]
        return self.rule.norms(self.module, side_by_side(a, examples), side_by_side(d, examples))


def one_row_an_example(a: Tensor, output: Tensor, examples: int) -> tuple[Tensor, Tensor] | None:
    """A call's input and output; None where their lengths do not fit one example after the other.

    Rows that are broadcast over the batch (BERT's positions) become one an example, before their gradients add up.
    """
    if len(output) == 1 and len(a) == 1 and examples > 1:
        return a.expand(examples, *a.shape[1:]), output.expand(examples, *output.shape[1:])
    fits = output.ndim >= 2 and not len(output) % examples and len(a) == len(output)
    return (a, output) if fits else None


def side_by_side(calls: list[Tensor], examples: int) -> Tensor:
    """Calls of (rows, positions, ...) -> (examples, positions of all rows and calls, ...)."""
    rows = [x.reshape(examples, -1, *x.shape[2:]) for x in calls]
    return rows[0] if len(rows) == 1 else torch.cat(rows, dim=1)
