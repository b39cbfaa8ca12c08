"""method="hooks": per-example squared gradient norms from forward and backward hooks, without any weight gradient.

A hook on each module that owns a measured parameter keeps the module's input and listens at its output. The gradient is
then taken with respect to the lowest of those outputs only, so that the backward pass stops there. As it passes an output, a
short rule (`rules`) turns input and output gradient into the squared norm and lets both go. A module that has no rule is run
again, one example at a time (`replay`). Frozen parameters are measured like any other: `requires_grad` is neither needed
nor touched.

Unbiased given the cotangents; no variance of its own. Cost: one forward pass, and for each cotangent one backward pass
through the activations, and the rules. Hooks cannot see mixed examples, or a weight that is used outside its module's call:
`check` finds them. Where a row is the same for all examples and the model cannot go on with one an example, the batch is
measured example by example.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.hooks import RemovableHandle

from ..labels import LabelMode
from ..layers import Layers
from ..likelihoods import to_unit_size
from ..model_index import ModelIndex
from .batches import ModelCall
from .capture import USE_VMAP, LayerCapture, ModuleCall, Signature, capture_layers, expand_shared_row

_WITHOUT = "pass layers= without it: of the dict that fisherdyn.layers.find_layers(model) gives, all but its layer"


class Hooks:
    """The default method. The captures of a model's modules are made once and serve all batches of a measurement."""

    name = "hooks"
    per_example = True
    needs_check = True

    def __init__(self) -> None:
        self._captures: tuple[ModelIndex, Layers, list[LayerCapture]] | None = None

    def validate_labels(self, labels: LabelMode) -> None:
        """Takes any."""

    @contextmanager
    def forward(self, call: ModelCall) -> Iterator[CaptureSession | ExampleByExample]:
        session = CaptureSession(call, self._captures_of(call))
        try:
            yield session if session.run() else ExampleByExample(call, session)
        finally:
            session.remove_hooks()

    def _captures_of(self, call: ModelCall) -> list[LayerCapture]:
        known = self._captures
        if known is None or known[0] is not call.model or known[1] is not call.layers:
            known = self._captures = call.model, call.layers, capture_layers(call.model, call.layers)
        return known[2]


class CaptureSession:
    """One forward pass with hooks, and the squared norms that backward passes leave behind.

    Attributes:
        logits: what the backward passes start from.
    """

    logits: Tensor

    def __init__(self, call: ModelCall, captures: list[LayerCapture]) -> None:
        self.call, self.captures, self.examples = call, captures, call.examples
        self.lowest: list[GradientEdge] = []
        self._expanded = False  # whether a row that was the same for all became one an example
        self._norms: list[list[Tensor]] = []
        self._handles: list[RemovableHandle] = []
        self._listening = self._last = False

    def remove_hooks(self) -> None:
        for handle in self._handles:
            handle.remove()
        for capture in self.captures:
            capture.begin_forward()

    # ---- forward

    def run(self) -> bool:
        """Runs the forward pass, and it alone: what checkpointing computes again in the backward pass is no other call.

        Returns:
            False where a module has one row for the whole batch, and the model cannot go on with one an example (DeBERTa's
            positions).
        """
        handles = []
        for capture in self.captures:
            capture.begin_forward()
            hook = partial(self._capture_call if capture.rule is not None else self._capture_call_to_replay, capture)
            # First of all hooks: one that changes the output comes after what the module itself computes.
            handles.append(capture.module.register_forward_hook(hook, with_kwargs=True, prepend=True))
        try:
            self.logits = self.call.logits()
        except RuntimeError as error:
            if not self._expanded or isinstance(error, torch.OutOfMemoryError):
                raise
            return False
        finally:
            for handle in handles:
                handle.remove()
        if silent := [capture.name for capture in self.captures if not capture.calls]:
            raise ValueError(f"not called in the forward pass: {', '.join(silent)}; {_WITHOUT}, or activate it")
        self.signatures = self._signatures()
        self.folded = any(capture.sees_several_rows(self.examples) for capture in self.captures)
        return True

    def _capture_call(self, capture: LayerCapture, module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> Tensor:
        """A call of a module that has a rule: one tensor in, one out."""
        a = args[0] if args else next(iter(kwargs.values()))
        rows = expand_shared_row(a, output, self.examples)
        if rows is None:
            raise ValueError(
                f"module {capture.name!r} sees {tuple(a.shape)} for a batch of {self.examples} examples, and not one "
                f"example after the other: its gradient is not separable by example here; {USE_VMAP}"
            )
        self._expanded |= rows[1] is not output
        a, output = rows
        source = _listening_point(output)
        if source is None:  # a leaf, or a view that is not its base whole: what follows may not write into it
            source = _with_graph(output)
            output = source.clone()
        self._listen(capture, ModuleCall.of_input(a), [source], [output.shape])
        return output

    def _capture_call_to_replay(
        self, capture: LayerCapture, module: nn.Module, args: Any, kwargs: Any, output: Any
    ) -> Any:
        """A call of a module that has no rule: any structure of tensors in and out."""
        flat, structure = tree_flatten(output)
        if not any(isinstance(x, Tensor) for x in flat):
            raise ValueError(
                f"module {capture.name!r} returns a {type(output).__name__}, in which no tensor is found; {USE_VMAP}"
            )
        kept = [x.detach().clone() if isinstance(x, Tensor) else None for x in flat]
        # Copies: an output may be written into later, and one may be computed from another.
        sources = [x.clone() if _differentiable(x) else x for x in map(_with_graph, flat)]
        points = [x if _differentiable(x) else None for x in sources]
        self._listen(capture, ModuleCall.of(args, kwargs, kept), points, [None] * len(flat))
        return tree_unflatten([x.clone() if _differentiable(x) else x for x in sources], structure)

    def _listen(
        self,
        capture: LayerCapture,
        call: ModuleCall,
        sources: list[Tensor | None],
        shapes: list[torch.Size | None],
    ) -> None:
        number = len(capture.calls)
        capture.calls.append(call)
        capture.edges.append([None if x is None else get_gradient_edge(x) for x in sources])
        for i, (x, shape) in enumerate(zip(sources, shapes, strict=True)):
            if x is not None:
                # A hook stays with what the tensor is now: an in-place change later comes after it.
                self._handles.append(x.register_hook(partial(self._receive, capture, number, i, shape)))

    def _signatures(self) -> list[Signature]:
        of_layer: list[list[Signature]] = [[] for _ in self.call.layers]
        for capture in self.captures:
            for layer in set(capture.layer_of.values()):
                of_layer[layer].append(capture.signature(self.examples > 1))
        return [frozenset(signatures) for signatures in of_layer]

    # ---- backward

    def squared_norms(self, cotangents: Sequence[Tensor], generator: torch.Generator) -> Tensor:
        """As `methods.ForwardPass` has it; each cotangent is scaled to unit size and its norm scaled back."""
        self.lowest = self._find_lowest()
        norms = []
        for i, cotangent in enumerate(cotangents):
            unit, size = to_unit_size(cotangent)
            pulled = self._pull_back(unit.to(self.logits.dtype), last=i + 1 == len(cotangents))
            norms.append(size.square()[:, None] * pulled)
        return torch.stack(norms)

    def _find_lowest(self) -> list[GradientEdge]:
        """The outputs below which there is no other: a backward pass down to them passes all others on its way."""
        edges = {
            edge.node: edge for capture in self.captures for call in capture.edges for edge in call if edge is not None
        }
        lowest = [edges[node] for node in _lowest_nodes(self.logits.grad_fn, edges)]
        if not lowest:
            raise ValueError(_unused(self.captures))
        return lowest

    def _pull_back(self, cotangent: Tensor, last: bool) -> Tensor:
        """One backward pass, from the logits to the lowest outputs: (examples, layers)."""
        for capture in self.captures:
            capture.begin_backward()
        self._norms = [[] for _ in self.call.layers]
        self._listening, self._last = True, last
        try:
            torch.autograd.grad(self.logits, self.lowest, cotangent, retain_graph=not last, allow_unused=True)
        except RuntimeError as error:
            if "use_reentrant=True" not in str(error):
                raise
            raise ValueError(
                "gradient checkpointing with use_reentrant=True takes gradients by backward() alone: turn it off "
                "(model.gradient_checkpointing_disable()) or set use_reentrant=False"
            ) from error
        finally:
            self._listening = False
        if unused := [capture for capture in self.captures if capture.missing and not capture.received_any]:
            raise ValueError(_unused(unused))
        for capture in self.captures:
            if capture.missing:  # some of its outputs do not reach the logits
                self._take_norms(capture)
        return torch.stack([torch.stack(norms).double().sum(dim=0) for norms in self._norms], dim=1)

    def _receive(
        self, capture: LayerCapture, call: int, output: int, shape: torch.Size | None, gradient: Tensor
    ) -> None:
        """A gradient on its way down."""
        if self._listening and capture.receive(call, output, gradient if shape is None else gradient.reshape(shape)):
            self._take_norms(capture)

    def _take_norms(self, capture: LayerCapture) -> None:
        device = next(d.device.type for call in capture.gradients for d in call if d is not None)
        with torch.no_grad(), torch.autocast(device, enabled=False):
            norms = capture.squared_norms(self.examples, self._last)
        for short, layer in capture.layer_of.items():
            self._norms[layer].append(norms[short])


class ExampleByExample:
    """Batches of one example, in which every row belongs to it; logits and cotangents are those of the whole batch."""

    def __init__(self, call: ModelCall, session: CaptureSession) -> None:
        self.call, self.session = call, session
        session.remove_hooks()
        with torch.no_grad():
            self.logits = call.logits()
        self.signatures: list[Signature] = [("example by example",)] * len(call.layers)
        self.folded = False

    def squared_norms(self, cotangents: Sequence[Tensor], generator: torch.Generator) -> Tensor:
        rows = []
        for i in range(self.call.examples):
            session = CaptureSession(self.call.example(i), self.session.captures)
            try:
                session.run()
                rows.append(session.squared_norms([c[i : i + 1] for c in cotangents], generator))
            finally:
                session.remove_hooks()
        return torch.cat(rows, dim=1)


def _unused(captures: Sequence[LayerCapture]) -> str:
    return f"{', '.join(capture.name for capture in captures)} do not reach the logits; {_WITHOUT}"


def _lowest_nodes(root: Node | None, captured: Mapping[Node, Any]) -> list[Node]:
    """Those of the captured nodes that are reached from the root and have no captured node below them."""
    reaches: dict[Node, bool] = {}  # node -> whether it, or a node below it, is captured
    lowest = []
    stack = [] if root is None else [(root, False)]
    while stack:
        node, children_done = stack.pop()
        below = [child for child, _ in node.next_functions if child is not None]
        if children_done:
            lower = any(reaches[child] for child in below)
            if node in captured and not lower:
                lowest.append(node)
            reaches[node] = lower or node in captured
        elif node not in reaches:
            reaches[node] = False
            stack.append((node, True))
            stack.extend((child, False) for child in below if child not in reaches)
    return lowest


def _differentiable(x: Any) -> bool:
    return isinstance(x, Tensor) and x.requires_grad


def _with_graph(x: Any) -> Any:
    """Below the lowest trainable weight nothing has a graph yet: it starts here."""
    if isinstance(x, Tensor) and x.is_floating_point() and not x.requires_grad:
        return x.detach().requires_grad_()
    return x


def _listening_point(output: Tensor) -> Tensor | None:
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
