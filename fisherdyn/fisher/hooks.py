"""Per-example squared gradient norms from forward hooks: no weight gradient is ever formed by autograd.

A hook on each module that owns a wanted parameter keeps the module's input and marks its output. The gradient is then
taken with respect to the marked outputs only, so the backward pass stops at the lowest of them, and a short rule
(`rules`) turns input and output gradient into the squared norm. Frozen parameters are measured like any other:
`requires_grad` is neither needed nor touched.

Unbiased given the cotangents; no variance of its own. Cost: one forward pass, and for each cotangent one backward pass
through the activations plus the rules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.utils.hooks import RemovableHandle

from ..layers import Layers
from .forward import count_examples, logits_of
from .rules import RULES, feature_dims, to_positions

USE_VMAP = 'measure it with method="vmap"'


def squared_norms(
    model: nn.Module,
    args: tuple[Tensor, ...],
    kwargs: Mapping[str, Any],
    layers: Layers,
    cotangents: Callable[[Tensor], Iterable[Tensor]],
) -> Tensor:
    """sum over c of ||J_l^T c||^2 for each example and layer: (examples, layers).

    Args:
        model: in evaluation mode.
        args, kwargs: one batch, batch dimension first in every tensor.
        layers: layer -> its parameters.
        cotangents: logits -> the cotangents, each of the logits' shape.

    Raises:
        ValueError: a module that no rule covers, that is not called, is tied to another, or does not keep the batch
            dimension: each by its name.
    """
    owners = _owners(model, layers)
    examples = count_examples(args, kwargs)
    with Tape(model, owners, examples) as tape:
        logits = logits_of(model(*args, **kwargs))
    columns = list(cotangents(logits))
    total = torch.zeros(examples, len(layers), device=logits.device, dtype=torch.float64)
    place = {name: i for i, names in enumerate(layers.values()) for name in names}
    for i, column in enumerate(columns):
        for name, norms in tape.norms(logits, column, keep_graph=i + 1 < len(columns)).items():
            total[:, place[name]] += norms
    return total


def _owners(model: nn.Module, layers: Layers) -> dict[str, list[str]]:
    """Module name -> the short names of its wanted parameters; refuses what no rule covers and tied weights."""
    modules = dict(model.named_modules())
    everywhere: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        everywhere.setdefault(id(parameter), []).append(name)
    owners: dict[str, list[str]] = {}
    for layer, names in layers.items():
        for name in names:
            owner, _, short = name.rpartition(".")
            tied = everywhere[id(model.get_parameter(name))]
            if len(tied) > 1:
                raise ValueError(f"layer {layer!r}: one weight is used as {' and '.join(tied)}; {USE_VMAP}")
            if type(modules[owner]) not in RULES:
                kind = type(modules[owner]).__name__
                raise ValueError(f"layer {layer!r}: no rule for {kind} (parameter {name!r}); {USE_VMAP}")
            owners.setdefault(owner, []).append(short)
    return owners


class Tape:
    """The inputs of the watched modules and the edges of the graph at their outputs, call by call."""

    def __init__(self, model: nn.Module, owners: Mapping[str, list[str]], examples: int) -> None:
        self.modules = {name: model.get_submodule(name) for name in owners}
        self.owners = owners
        self.examples = examples
        self.inputs: dict[str, list[Tensor]] = {name: [] for name in owners}
        self.edges: dict[str, list[GradientEdge]] = {name: [] for name in owners}
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Tape:
        for name, module in self.modules.items():
            self._handles.append(module.register_forward_hook(self._watch(name), with_kwargs=True))
        return self

    def __exit__(self, *exc: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _watch(self, name: str) -> Callable[..., Tensor]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
            a = args[0] if args else kwargs["input"]
            if output.ndim < 2 or len(output) != self.examples or len(a) != self.examples:
                raise ValueError(
                    f"module {name!r} sees {tuple(a.shape)} -> {tuple(output.shape)}, but the batch has "
                    f"{self.examples} examples: its gradient is not separable by example here; {USE_VMAP}"
                )
            if not output.requires_grad:
                # Below the lowest trainable weight nothing has a graph yet: it starts here. The clone is what the model
                # goes on with, so that an in-place activation does not write into a leaf.
                output = output.detach().requires_grad_().clone()
            self.inputs[name].append(a.detach())
            # The edge, not the tensor: if the output is later changed in place, the edge still is the output's.
            self.edges[name].append(get_gradient_edge(output))
            return output

        return hook

    def norms(self, logits: Tensor, cotangent: Tensor, keep_graph: bool) -> dict[str, Tensor]:
        """Squared gradient norms of every watched parameter by its full name, each (examples,)."""
        silent = [name for name, edges in self.edges.items() if not edges]
        if silent:
            raise ValueError(f"not called in the forward pass: {', '.join(silent)}; leave out its layer or activate it")
        flat = [edge for edges in self.edges.values() for edge in edges]
        try:
            gradients = iter(torch.autograd.grad(logits, flat, cotangent, retain_graph=keep_graph))
        except RuntimeError as error:
            if "appears to not have been used" not in str(error):
                raise
            raise ValueError(
                f"some of {', '.join(self.edges)} do not reach the logits; leave out their layers"
            ) from None
        found = {}
        for name, module in self.modules.items():
            wide_in, wide_out = feature_dims(module)
            a = torch.cat([to_positions(x, wide_in) for x in self.inputs[name]], dim=1)
            d = torch.cat([to_positions(next(gradients), wide_out) for _ in self.edges[name]], dim=1)
            norms = RULES[type(module)](module, a, d)
            found.update({f"{name}.{short}".lstrip("."): norms[short] for short in self.owners[name]})
        return found
