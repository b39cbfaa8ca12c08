"""method="hooks": per-example squared gradient norms from forward and backward hooks, without any weight gradient.

A hook on each module that owns a measured parameter keeps the module's input and listens at its output. The gradient is
then taken with respect to the lowest of those outputs only, so that the backward pass stops there. As it passes an output, a
short rule (`rules`) turns input and output gradient into the squared norm and lets both go. A module that has no rule is run
again, one example at a time (`replay`). Gradients of a weight that several modules read add first (`tied`). Where rows are
not one example after the other, a second backward pass tells whose they are (`rows`). Frozen parameters are measured like
any other: `requires_grad` is neither needed nor touched.

Unbiased given the cotangents; no variance of its own. Cost: one forward pass, and for each cotangent one backward pass
through the activations, and the rules. Hooks cannot see mixed examples, or a weight that is used outside its module's call:
`check` finds them. Where a batch cannot be taken apart, a warning says so, and the measurement goes on example by example
(`loop`).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.hooks import RemovableHandle

from ..layers import Layers
from ..likelihoods import to_unit_size
from ..model_index import ModelIndex
from .batches import ModelCall
from .capture import WITHOUT, LayerCapture, ModuleCall, capture_layers, expand_shared_row
from .loop import LoopPass
from .methods import DisagreementError, Method, NotSeparableError, Signature
from .plain import PlainPass
from .rows import RowOrder, tags
from .tied import TiedWeight


class Hooks(Method):
    """The default method. What it captures modules with is made once and serves all batches of a measurement."""

    name = "hooks"

    def prepare(self, model: ModelIndex, layers: Layers) -> None:
        self._captures: list[LayerCapture] = []
        self._tied: list[TiedWeight] = []
        self._order, self._loop, self._batches = RowOrder(), False, 0
        try:
            self._captures, self._tied = capture_layers(model, layers)
        except NotSeparableError as error:
            self.falls_back(error)

    def falls_back(self, error: NotSeparableError) -> bool:
        """To the loop, with a warning; not where batches before have been measured in a way that turns out to be wrong."""
        if isinstance(error, DisagreementError) and self._batches > 1:
            return False
        self._loop = True
        warnings.warn(
            f"{error}: hooks cannot take the batch apart there. The measurement goes on by plain autograd, one example at a "
            'time (as method="loop" does from the start). That is right, and costs a forward and a backward pass for every '
            "example; without that module's layer in layers= it stays fast",
            stacklevel=2,
        )
        return True

    @contextmanager
    def forward(self, call: ModelCall) -> Iterator[CaptureSession | LoopPass]:
        self._batches += 1
        if self._loop:
            yield LoopPass(call)
            return
        session = CaptureSession(call, self._captures, self._tied, self._order)
        try:
            session.run()
            yield session
        finally:
            session.remove_hooks()


# One batch


class CaptureSession:
    """One forward pass with hooks, and the squared norms that backward passes leave behind.

    Attributes:
        logits: what the backward passes start from.
    """

    logits: Tensor

    def __init__(self, call: ModelCall, captures: list[LayerCapture], tied: list[TiedWeight], order: RowOrder) -> None:
        self.call, self.captures, self.tied, self.order, self.examples = call, captures, tied, order, call.examples
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

    def run(self) -> None:
        """Runs the forward pass, and it alone: what checkpointing computes again in the backward pass is no other call."""
        try:
            self._run()
        except RuntimeError as error:
            if not self._expanded or isinstance(error, torch.OutOfMemoryError):
                raise
            # A lone row was not everybody's, or the model cannot go on with one an example (DeBERTa's positions).
            self.order.expands = False
            self.remove_hooks()
            self._run()
        self._validate_silent()
        self.signatures = self._signatures()
        several = any(capture.calls_of_several_rows(self.examples) for capture in self.captures)
        self.folded = several and not self._calls_to_look_up()

    def _run(self) -> None:
        handles = []
        for capture in self.captures:
            capture.begin_forward()
            hook = partial(self._capture_call if capture.rule is not None else self._capture_call_to_replay, capture)
            # First of all hooks: one that changes the output comes after what the module itself computes.
            handles.append(capture.module.register_forward_hook(hook, with_kwargs=True, prepend=True))
        try:
            self.logits = self.call.logits()
        finally:
            for handle in handles:
                handle.remove()

    def _validate_silent(self) -> None:
        """A module that was not called is an expert without a token, or read by others, or a mistake in the layers."""
        silent = [
            c for c in self.captures if not c.calls and c.name not in self.order.idle and not self._tied_elsewhere(c)
        ]
        if not silent:
            return
        names = ", ".join(capture.name for capture in silent)
        if self._read_elsewhere(silent):
            raise NotSeparableError(f"{names} not called in the forward pass, which reads their weights without a call")
        heard = {layer for capture in self.captures if capture.calls for layer in capture.layer_of.values()}
        alone = [capture.name for capture in silent if not heard.issuperset(capture.layer_of.values())]
        if mistaken := [name for name in alone if not self._has_routed_siblings(name)]:
            raise ValueError(f"not called in the forward pass: {', '.join(mistaken)}; {WITHOUT}, or activate it")
        self.order.idle |= {capture.name for capture in silent}

    def _tied_elsewhere(self, silent: LayerCapture) -> bool:
        called = [tied for capture in self.captures if capture.calls for tied in capture.tied.values()]
        return bool(silent.tied) and all(tied in called for tied in silent.tied.values())

    def _read_elsewhere(self, silent: Sequence[LayerCapture]) -> bool:
        """Whether their weights are in the graph of the first example's logits."""
        names = [f"{c.name}.{short}".lstrip(".") for c in silent for short in c.layer_of if short not in c.tied]
        alone = self.call.example(0)
        plain = PlainPass(replace(alone, layers={"silent": tuple(names)}))
        if plain.logits.grad_fn is None:
            return False
        ones = torch.ones_like(plain.logits)
        gradients = torch.autograd.grad(plain.logits, list(plain.weights.values()), ones, allow_unused=True)
        return any(gradient is not None for gradient in gradients)

    def _has_routed_siblings(self, name: str) -> bool:
        """Whether others in its list of modules see rows that are not one an example, as experts do."""
        while name := name.rpartition(".")[0]:
            if isinstance(self.call.model.places[name], nn.ModuleList | nn.ModuleDict):
                siblings = [capture for capture in self.captures if capture.name.startswith(f"{name}.")]
                return any(capture.calls_of_several_rows(self.examples) for capture in siblings)
        return False

    def _capture_call(self, capture: LayerCapture, module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> Tensor:
        """A call of a module that has a rule: one tensor in, one out."""
        a = args[0] if args else next(iter(kwargs.values()))
        if output.ndim < 2 or len(a) != len(output):
            raise NotSeparableError(
                f"module {capture.name!r} sees {tuple(a.shape)} for a batch of {self.examples} examples"
            )
        if not output.numel():  # an expert without a token
            self.order.idle.add(capture.name)
            return output
        if len(output) == 1 < self.examples and self.order.expands:
            a, output = expand_shared_row(a, output, self.examples)
            self._expanded = True
        ragged = bool(len(output) % self.examples)
        source = _listening_point(output)
        if source is None:  # a leaf, or a view that is not its base whole: what follows may not write into it
            source = _with_graph(output)
            output = source.clone()
        self._listen(capture, ModuleCall.of_input(a, ragged), [source], [output.shape])
        return output

    def _capture_call_to_replay(
        self, capture: LayerCapture, module: nn.Module, args: Any, kwargs: Any, output: Any
    ) -> Any:
        """A call of a module that has no rule: any structure of tensors in and out."""
        flat, structure = tree_flatten(output)
        if not any(isinstance(x, Tensor) for x in flat):
            kind = type(output).__name__
            raise NotSeparableError(f"module {capture.name!r} returns a {kind}, in which no tensor is found")
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
                of_layer[layer] += [capture.signature(self.examples)] * bool(capture.calls)
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
        for tied in self.tied:
            tied.begin_backward()
        self._norms = [[] for _ in self.call.layers]
        self._last = last
        self._tag(cotangent)
        self._listening = True
        try:
            torch.autograd.grad(self.logits, self.lowest, cotangent, retain_graph=not last, allow_unused=True)
        finally:
            self._listening = False
        in_part = [capture for capture in self.captures if capture.missing and capture.received_any]
        in_vain = [capture for capture in self.captures if capture.missing and not capture.received_any]
        for capture in in_part:  # some of its outputs do not reach the logits
            self._take_norms(capture)
        for tied in self.tied:
            if tied.used:
                with torch.no_grad(), torch.autocast(self.logits.device.type, enabled=False):
                    self._norms[tied.layer].append(tied.squared_norms())
        reached = {layer for layer, norms in enumerate(self._norms) if norms}
        ragged = [
            capture for capture in in_vain if any(call.ragged for call in capture.calls)
        ]  # their tokens were dropped
        if unused := [c for c in in_vain if c not in ragged and not reached.issuperset(c.layer_of.values())]:
            raise ValueError(_unused(unused))
        nothing = torch.zeros(self.examples, dtype=torch.float64, device=self.logits.device)
        return torch.stack([torch.stack([nothing, *norms]).sum(dim=0) for norms in self._norms], dim=1)

    def _tag(self, cotangent: Tensor) -> None:
        """A backward pass before the proper one, by which rows are told apart."""
        calls = self._calls_to_look_up()
        if not calls:
            return
        factors = self._factors.to(cotangent.dtype).reshape(-1, *(1,) * (cotangent.ndim - 1))
        edges = [edge for capture, i in calls if (edge := capture.edges[i][0]) is not None]
        gradients = torch.autograd.grad(self.logits, edges, cotangent * factors, retain_graph=True, allow_unused=True)
        for (capture, i), tagged in zip(calls, gradients, strict=True):
            if tagged is not None:
                capture.tagged[i] = tagged

    @cached_property
    def _factors(self) -> Tensor:
        return tags(self.examples, self.logits.dtype, self.logits.device)

    def _calls_to_look_up(self) -> list[tuple[LayerCapture, int]]:
        """Calls whose rows may be anybody's, unless those of the batches before were one example after the other.

        Where rows are routed, a module may see as many of them as there are examples, by chance.
        """
        several = [(capture, i) for capture in self.captures for i in capture.calls_of_several_rows(self.examples)]
        self.order.ragged |= {capture.name for capture, i in several if capture.calls[i].ragged}
        if self.examples == 1 or (self.order.sorted and not self.order.ragged):
            return []
        routed = [(c, i) for c in self.captures if c.name in self.order.ragged for i in range(len(c.calls))]
        doubtful = [(c, i) for c in self.captures for i in c.doubtful_calls(all_rows=bool(several or routed))]
        return list(dict.fromkeys(several + routed + doubtful))

    def _receive(
        self, capture: LayerCapture, call: int, output: int, shape: torch.Size | None, gradient: Tensor
    ) -> None:
        """A gradient on its way down."""
        if self._listening and capture.receive(call, output, gradient if shape is None else gradient.reshape(shape)):
            self._take_norms(capture)

    def _take_norms(self, capture: LayerCapture) -> None:
        device = next(d.device.type for call in capture.gradients for d in call if d is not None)
        with torch.no_grad(), torch.autocast(device, enabled=False):
            norms = capture.squared_norms(
                self.examples, self._factors if capture.tagged else None, self.order, self._last
            )
        for short, norm in norms.items():
            if short in capture.layer_of:
                self._norms[capture.layer_of[short]].append(norm)


def _unused(captures: Sequence[LayerCapture]) -> str:
    return f"{', '.join(capture.name for capture in captures)} do not reach the logits; {WITHOUT}"


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
