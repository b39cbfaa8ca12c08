"""Per-example squared gradient norms from forward hooks: no weight gradient is ever formed by autograd.

A hook on each module that owns a wanted parameter keeps the module's input and marks its output. The gradient is then
taken with respect to the marked outputs only, so the backward pass stops at the lowest of them, and a short rule
(`rules`) turns input and output gradient into the squared norm; a module that has no rule is run again, one example at a
time (`replay`). Frozen parameters are measured like any other: `requires_grad` is neither needed nor touched.

Unbiased given the cotangents; no variance of its own. Cost: one forward pass, and for each cotangent one backward pass
through the activations plus the rules. Where shapes leave in doubt which dimension is the batch, one more forward pass of
a single example settles it.

What a hook cannot see: a weight that its own module is not called with (`F.linear(x, layer.weight)`). Such uses are
missing from the result; `method="vmap"` has them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.hooks import RemovableHandle

from ..layers import Layers
from .forward import count_examples, one_example
from .replay import Call, replay
from .rules import find_rule

USE_VMAP = 'measure it with method="vmap"'


def squared_norms(
    model: nn.Module,
    args: tuple[Tensor, ...],
    kwargs: Mapping[str, Any],
    layers: Layers,
    outputs: Callable[[Any], Tensor],
    cotangents: Callable[[Tensor], Iterable[Tensor]],
) -> Tensor:
    """sum over c of ||J_l^T c||^2 for each example and layer: (examples, layers).

    Args:
        model: in evaluation mode.
        args, kwargs: one batch, batch dimension first in every tensor.
        layers: layer -> its parameters.
        outputs: what the model returns -> f, the tensor that is differentiated.
        cotangents: f -> the cotangents, each of f's shape.

    Raises:
        ValueError: a module that is not called, is tied to another, mixes examples or does not keep the batch dimension
            first: each by its name.
    """
    owners = _owners(model, layers)
    examples = count_examples(args, kwargs)
    with Tape(model, owners, examples) as tape:
        f = outputs(model(*args, **kwargs))
    columns = list(cotangents(f))
    tape.check_called()
    if tape.doubtful:
        tape.check_batch_first(f, _rows_alone(model, args, kwargs, tape.doubtful))
    total = torch.zeros(examples, len(layers), device=f.device, dtype=torch.float64)
    place = {name: i for i, names in enumerate(layers.values()) for name in names}
    for i, column in enumerate(columns):
        for name, norms in tape.norms(f, column, keep_graph=i + 1 < len(columns)).items():
            total[:, place[name]] += norms
    return total


def _owners(model: nn.Module, layers: Layers) -> dict[str, list[str]]:
    """Module name -> the short names of its wanted parameters; refuses tied weights."""
    everywhere: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        everywhere.setdefault(id(parameter), []).append(name)
    owners: dict[str, list[str]] = {}
    for layer, names in layers.items():
        for name in names:
            owner, _, short = name.rpartition(".")
            tied = everywhere[id(model.get_parameter(name))]
            modules = {id(model.get_submodule(other.rpartition(".")[0])) for other in tied}
            if len(modules) > 1:
                raise ValueError(f"layer {layer!r}: one weight is used as {' and '.join(tied)}; {USE_VMAP}")
            owners.setdefault(owner, []).append(short)
    return owners


def _rows_alone(
    model: nn.Module, args: tuple[Tensor, ...], kwargs: Mapping[str, Any], names: Iterable[str]
) -> dict[str, int]:
    """How long the outputs of the named modules are for one example."""
    rows: dict[str, int] = {}
    handles = [
        model.get_submodule(name).register_forward_hook(lambda *call, name=name: rows.update({name: len(call[-1])}))
        for name in names
    ]
    try:
        with torch.no_grad():
            model(*(one_example(x, 0) for x in args), **{key: one_example(x, 0) for key, x in kwargs.items()})
    finally:
        for handle in handles:
            handle.remove()
    return rows


class Tape:
    """The calls of the watched modules: inputs, and the edges of the graph at their outputs.

    Args:
        owners: module name -> its wanted parameters.
        examples: in the batch.

    Attributes:
        doubtful: module name -> length of its output, where the shapes do not show that the batch comes first.
    """

    def __init__(self, model: nn.Module, owners: Mapping[str, list[str]], examples: int) -> None:
        self.modules = {name: model.get_submodule(name) for name in owners}
        self.owners = owners
        self.examples = examples
        self.doubtful: dict[str, int] = {}
        self.calls: dict[str, list[Call]] = {name: [] for name in owners}
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Tape:
        for name, module in self.modules.items():
            # First of all hooks: one that changes the output comes after what the module itself computes.
            watch = self._watch(name)
            self._handles.append(module.register_forward_hook(watch, with_kwargs=True, prepend=True))
        return self

    def __exit__(self, *exc: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _watch(self, name: str) -> Callable[..., Any]:
        by_rule = find_rule(self.modules[name]) is not None

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            if by_rule:
                a, output = self._one_row_an_example(name, args[0] if args else next(iter(kwargs.values())), output)
                args, kwargs = (a,), {}
            flat, spec = tree_flatten(output)
            flat = [_marked(x) for x in flat]
            # The edge, not the tensor: if the output is later changed in place, the edge still is the output's.
            edges = [get_gradient_edge(x) if _differentiable(x) else None for x in flat]
            self.calls[name].append(Call.of(args, kwargs, flat, edges, keep_outputs=not by_rule))
            return tree_unflatten([x.clone() if _fragile(x) else x for x in flat], spec)

        return hook

    def _one_row_an_example(self, name: str, a: Tensor, output: Tensor) -> tuple[Tensor, Tensor]:
        """Rows broadcast over the batch (BERT's positions) become one an example; what is not batch-first is refused."""
        if len(output) == 1 and len(a) == 1 and self.examples > 1:
            return a.expand(self.examples, *a.shape[1:]), output.expand(self.examples, *output.shape[1:])
        if output.ndim < 2 or len(output) % self.examples or len(a) != len(output):
            raise ValueError(self._not_separable(name, a))
        # Another dimension may be the batch, or there is none (positions that are the same for all).
        elsewhere = output.ndim == 2 or any(n == 1 or n % self.examples == 0 for n in output.shape[1:-1])
        if self.examples > 1 and (elsewhere or len(output) > self.examples):
            self.doubtful[name] = len(output)
        return a, output

    def _not_separable(self, name: str, a: Tensor) -> str:
        return (
            f"module {name!r} sees {tuple(a.shape)} for a batch of {self.examples} examples, and not one example after the "
            f"other: its gradient is not separable by example here; {USE_VMAP}"
        )

    def check_called(self) -> None:
        silent = [name for name, calls in self.calls.items() if not calls]
        if silent:
            raise ValueError(f"not called in the forward pass: {', '.join(silent)}; leave out its layer or activate it")

    def check_batch_first(self, f: Tensor, alone: Mapping[str, int]) -> None:
        """A doubtful module's output must be as much longer than that of one example as the batch is.

        Where one example has several rows, they must lie together: the first example's output may depend on no others.
        """
        for name, rows in self.doubtful.items():
            if rows != alone[name] * self.examples:
                raise ValueError(self._not_separable(name, self.calls[name][-1].args[0]))
        several = [name for name in self.doubtful if alone[name] > 1]
        if not several:
            return
        only_first = torch.zeros_like(f)
        only_first[0] = 1.0
        gradients = self._gradients(f, only_first, keep_graph=True)
        for name in several:
            for (d, *_), call in zip(gradients[name], self.calls[name], strict=True):
                if d is not None and d[alone[name] :].any():
                    raise ValueError(self._not_separable(name, call.args[0]))

    def _gradients(self, f: Tensor, cotangent: Tensor, keep_graph: bool) -> dict[str, list[list[Tensor | None]]]:
        """For each module, call and output the gradient there; None where f does not depend on it."""
        flat = [edge for calls in self.calls.values() for call in calls for edge in call.edges if edge is not None]
        found = iter(torch.autograd.grad(f, flat, cotangent, retain_graph=keep_graph, allow_unused=True))
        return {
            name: [[None if edge is None else next(found) for edge in call.edges] for call in calls]
            for name, calls in self.calls.items()
        }

    def norms(self, f: Tensor, cotangent: Tensor, keep_graph: bool) -> dict[str, Tensor]:
        """Squared gradient norms of every watched parameter by its full name, each (examples,)."""
        gradients = self._gradients(f, cotangent, keep_graph)
        unused = [name for name, calls in gradients.items() if all(d is None for call in calls for d in call)]
        if unused:
            raise ValueError(f"{', '.join(unused)} do not reach the logits; leave out their layers")
        found = {}
        for name, module in self.modules.items():
            pairs = zip(self.calls[name], gradients[name], strict=True)
            calls = [(call, ds) for call, ds in pairs if any(d is not None for d in ds)]
            for call, _ in calls:
                if call.changed():
                    raise ValueError(f"module {name!r}: its input is changed in place after it was read; {USE_VMAP}")
            rule = find_rule(module)
            if rule is None:
                norms = replay(name, module, calls, self.owners[name], self.examples)
            else:
                a = torch.cat([self._by_example(rule.inputs(module, call.args[0])) for call, _ in calls], dim=1)
                d = torch.cat([self._by_example(rule.gradients(module, cast(Tensor, ds[0]))) for _, ds in calls], dim=1)
                norms = rule.norms(module, a, d)
            found.update({f"{name}.{short}".lstrip("."): norms[short] for short in self.owners[name]})
        return found

    def _by_example(self, x: Tensor) -> Tensor:
        """(rows, positions, ...) -> (examples, positions of all its rows, ...)."""
        return x.reshape(self.examples, -1, *x.shape[2:])


def _differentiable(x: Any) -> bool:
    return isinstance(x, Tensor) and x.requires_grad


def _marked(x: Any) -> Any:
    """Below the lowest trainable weight nothing has a graph yet: it starts here."""
    if isinstance(x, Tensor) and x.is_floating_point() and not x.requires_grad:
        return x.detach().requires_grad_()
    return x


def _fragile(x: Any) -> bool:
    """Leaves, which must not be written into, and views, whose edge an in-place change would move."""
    return _differentiable(x) and (x.is_leaf or x._is_view())
