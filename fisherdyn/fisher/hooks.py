"""Per-example squared gradient norms from forward and backward hooks: no weight gradient is ever formed by autograd.

A hook on each module that owns a wanted parameter keeps the module's input and listens at its output. The gradient is then
taken with respect to the lowest of those outputs only, so that the backward pass stops there, and as it passes an output a
short rule (`rules`) turns input and output gradient into the squared norm and lets both go; a module that has no rule is run
again, one example at a time (`replay`). Frozen parameters are measured like any other: `requires_grad` is neither needed
nor touched.

Unbiased given the cotangents; no variance of its own. Cost: one forward pass, and for each cotangent one backward pass
through the activations plus the rules; now and then also a plain pass of two examples (`alone`), which finds what hooks
cannot see: mixed examples, and weights that are used outside their module's call. Where a row is the same for all examples
and the model cannot go on with one an example, the batch is measured example by example.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.hooks import RemovableHandle

from ..layers import Layers
from ..likelihoods import to_unit_size
from .batches import count_examples, one_example
from .capture import LayerCapture, one_row_an_example, watched_in
from .check import USE_VMAP, PerExampleCheck
from .replay import Call

_WITHOUT = "pass layers= without it: of the dict that fisherdyn.layers.find_layers(model) gives, all but its layer"
_NEVER_CALLED = f"not called in the forward pass: {{}}; {_WITHOUT}, or activate it"
_UNUSED = f"{{}} do not reach the logits; {_WITHOUT}"


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
    examples = count_examples(args, kwargs)
    with CaptureSession(watched_in(model, layers), examples, len(layers)) as tape:
        try:
            f = tape.watch(lambda: outputs(model(*args, **kwargs)))
        except _OneRowForAllError:
            with torch.no_grad():
                columns = list(cotangents(outputs(model(*args, **kwargs))))
            return _one_by_one(partial(squared_norms, model, layers=layers, outputs=outputs), args, kwargs, columns)
        columns = list(cotangents(f))
        tape.find_lowest(f)
        alone = PerExampleCheck(model, args, kwargs, layers, outputs, tape.ways, tape.folded)
        total = torch.zeros(examples, len(layers), device=f.device, dtype=torch.float64)
        for i, column in enumerate(columns):
            unit, size = to_unit_size(column)
            norms = tape.pull_back(f, unit.to(f.dtype), last=i + 1 == len(columns))
            total += size.square()[:, None] * norms
    if alone.needed:  # now that the graph is gone
        alone.check(unit.to(f.dtype), norms)
    return total


def _one_by_one(
    norms: Callable[..., Tensor], args: tuple[Tensor, ...], kwargs: Mapping[str, Any], columns: list[Tensor]
) -> Tensor:
    """Batches of one example, in which every row belongs to it; the cotangents are those of the whole batch."""
    rows = []
    for i in range(len(columns[0])):
        own = tuple(one_example(x, i) for x in args), {key: one_example(x, i) for key, x in kwargs.items()}
        rows.append(norms(*own, cotangents=partial(_rows, columns, i)))
    return torch.cat(rows)


def _rows(columns: list[Tensor], i: int, f: Tensor) -> list[Tensor]:
    return [column[i : i + 1] for column in columns]


class _OneRowForAllError(Exception):
    """A module has one row for the whole batch, and the model cannot go on with one an example (DeBERTa's positions)."""


class CaptureSession:
    """What the watched modules were given in one forward pass, and the norms that backward passes leave behind.

    Listens until the end of its `with`.
    """

    def __init__(self, watched: list[LayerCapture], examples: int, layers: int) -> None:
        self.watched, self.examples, self.layers = watched, examples, layers
        self.lowest: list[GradientEdge] = []
        self.expanded = False
        """Whether a row that was the same for all became one an example."""
        self._norms: list[list[Tensor]] = []
        self._handles: list[RemovableHandle] = []
        self._listening = self._last = False

    def __enter__(self) -> CaptureSession:
        return self

    def __exit__(self, *exc: object) -> None:
        for handle in self._handles:
            handle.remove()

    def watch(self, forward: Callable[[], Tensor]) -> Tensor:
        """Runs the forward pass, and it alone: what checkpointing computes again in the backward pass is no other call."""
        handles = []
        for one in self.watched:
            hook = partial(self._called if one.rule is not None else self._called_without_rule, one)
            # First of all hooks: one that changes the output comes after what the module itself computes.
            handles.append(one.module.register_forward_hook(hook, with_kwargs=True, prepend=True))
        try:
            f = forward()
        except RuntimeError as error:
            if not self.expanded or isinstance(error, torch.OutOfMemoryError):
                raise
            raise _OneRowForAllError from error
        finally:
            for handle in handles:
                handle.remove()
        if silent := [one.name for one in self.watched if not one.calls]:
            raise ValueError(_NEVER_CALLED.format(", ".join(silent)))
        return f

    def _called(self, one: LayerCapture, module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> Tensor:
        """A call of a module that has a rule: one tensor in, one out."""
        a, output = self._one_row_an_example(one.name, args[0] if args else next(iter(kwargs.values())), output)
        source = _source(output)
        if source is None:  # a leaf, or a view that is not its base whole: what follows may not write into it
            source = _marked(output)
            output = source.clone()
        self._listen(one, Call.of_one(a), [source], [output.shape])
        return output

    def _one_row_an_example(self, name: str, a: Tensor, output: Tensor) -> tuple[Tensor, Tensor]:
        """As `watched` has it; lengths that do not fit are refused."""
        found = one_row_an_example(a, output, self.examples)
        if found is None:
            raise ValueError(
                f"module {name!r} sees {tuple(a.shape)} for a batch of {self.examples} examples, and not one example after "
                f"the other: its gradient is not separable by example here; {USE_VMAP}"
            )
        self.expanded |= found[1] is not output
        return found

    def _called_without_rule(self, one: LayerCapture, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        flat, spec = tree_flatten(output)
        if not any(isinstance(x, Tensor) for x in flat):
            raise ValueError(
                f"module {one.name!r} returns a {type(output).__name__}, in which no tensor is found; {USE_VMAP}"
            )
        kept = [x.detach().clone() if isinstance(x, Tensor) else None for x in flat]
        # Copies: an output may be written into later, and one may be computed from another.
        sources = [x.clone() if _differentiable(x) else x for x in map(_marked, flat)]
        self._listen(
            one, Call.of(args, kwargs, kept), [x if _differentiable(x) else None for x in sources], [None] * len(flat)
        )
        return tree_unflatten([x.clone() if _differentiable(x) else x for x in sources], spec)

    def _listen(
        self, one: LayerCapture, call: Call, sources: list[Tensor | None], shapes: list[torch.Size | None]
    ) -> None:
        n = len(one.calls)
        one.calls.append(call)
        one.edges.append([None if x is None else get_gradient_edge(x) for x in sources])
        for i, (x, shape) in enumerate(zip(sources, shapes, strict=True)):
            if x is not None:
                # A hook stays with what the tensor is now: an in-place change later comes after it.
                self._handles.append(x.register_hook(partial(self._passed, one, n, i, shape)))

    def _passed(self, one: LayerCapture, call: int, output: int, shape: torch.Size | None, gradient: Tensor) -> None:
        """A gradient on its way down."""
        if self._listening and one.arrive(call, output, gradient if shape is None else gradient.reshape(shape)):
            self._take(one)

    def _take(self, one: LayerCapture) -> None:
        device = next(d.device.type for call in one.gradients for d in call if d is not None)
        with torch.no_grad(), torch.autocast(device, enabled=False):
            norms = one.norms(self.examples, self._last)
        for short, layer in one.wanted.items():
            self._norms[layer].append(norms[short])

    @property
    def ways(self) -> list[Hashable]:
        """How often and with how many dimensions the modules of each layer were called, for one example or several."""
        calls: list[list[Hashable]] = [[] for _ in range(self.layers)]
        for one in self.watched:
            dimensions = (tuple(x.ndim for x in call.tensors) for call in one.calls)
            of_one = (one.name, self.examples > 1, *dimensions)
            for layer in set(one.wanted.values()):
                calls[layer].append(of_one)
        return [frozenset(of_layer) for of_layer in calls]

    @property
    def folded(self) -> bool:
        """Whether some module sees several rows an example: whose they are can change from batch to batch."""
        rules = (one for one in self.watched if one.rule is not None)
        return any(len(x) != self.examples for one in rules for call in one.calls for x in call.tensors)

    def find_lowest(self, f: Tensor) -> None:
        """The outputs below which there is no other: the backward pass is for them, and passes all others on its way."""
        edges = {edge.node: edge for one in self.watched for call in one.edges for edge in call if edge is not None}
        self.lowest = [edges[node] for node in _lowest(f.grad_fn, edges)]
        if not self.lowest:
            raise ValueError(_UNUSED.format(", ".join(one.name for one in self.watched)))

    def pull_back(self, f: Tensor, cotangent: Tensor, last: bool) -> Tensor:
        """One backward pass, from f down to the lowest outputs: squared norms, (examples, layers)."""
        for one in self.watched:
            one.expect()
        self._norms = [[] for _ in range(self.layers)]
        self._listening, self._last = True, last
        try:
            torch.autograd.grad(f, self.lowest, cotangent, retain_graph=not last, allow_unused=True)
        except RuntimeError as error:
            if "use_reentrant=True" not in str(error):
                raise
            raise ValueError(
                "gradient checkpointing with use_reentrant=True takes gradients by backward() alone: turn it off "
                "(model.gradient_checkpointing_disable()) or set use_reentrant=False"
            ) from error
        finally:
            self._listening = False
        if unused := [one.name for one in self.watched if one.missing and not one.arrived]:
            raise ValueError(_UNUSED.format(", ".join(unused)))
        for one in self.watched:
            if one.missing:  # some of its outputs do not reach f
                self._take(one)
        return torch.stack([torch.stack(norms).double().sum(dim=0) for norms in self._norms], dim=1)


def _lowest(root: Node | None, watched: Mapping[Node, Any]) -> list[Node]:
    """Those of the watched nodes that are reached from the root and have no watched node below them."""
    reaches: dict[Node, bool] = {}  # node -> whether it, or a node below it, is watched
    found = []
    stack = [] if root is None else [(root, False)]
    while stack:
        node, children_done = stack.pop()
        below = [child for child, _ in node.next_functions if child is not None]
        if children_done:
            lower = any(reaches[child] for child in below)
            if node in watched and not lower:
                found.append(node)
            reaches[node] = lower or node in watched
        elif node not in reaches:
            reaches[node] = False
            stack.append((node, True))
            stack.extend((child, False) for child in below if child not in reaches)
    return found


def _differentiable(x: Any) -> bool:
    return isinstance(x, Tensor) and x.requires_grad


def _marked(x: Any) -> Any:
    """Below the lowest trainable weight nothing has a graph yet: it starts here."""
    if isinstance(x, Tensor) and x.is_floating_point() and not x.requires_grad:
        return x.detach().requires_grad_()
    return x


def _source(output: Tensor) -> Tensor | None:
    """The tensor at which to listen for an output that may be written into later: itself, or the base that it shows whole.

    An in-place change of a view moves the view's place in the graph, but comes after its base as that is now. None where
    there is no such tensor.
    """
    if not output.requires_grad or output.is_leaf:
        return None
    if not output._is_view():
        return output
    base = output._base
    whole = base is not None and base.numel() == output.numel() and base.is_contiguous() and output.is_contiguous()
    return base if whole and base is not None and base.requires_grad and not base.is_leaf else None
