"""Per-example squared gradient norms of a training batch, from the backward pass that training runs anyway.

Hooks on the modules that own wanted parameters keep a module's input and, when training's own backward pass comes by, the
gradient at its output; the rules (`rules`) turn both into squared norms. The hooks only listen: the computation, and so
the trained weights, stay what they are to the bit.

The loss is taken to be the mean over all N examples of an update (micro-batches of gradient accumulation included), so
that an example's own gradient is N times what its hook sees. The labels are the data's: this is the empirical Fisher, in
training mode, and not tr(F) (Kunstner et al. 2019).

Cost: the rules, no backward pass. Memory: inputs and output gradients of the measured modules until `take`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..layers import Layers
from ..model_index import ModelIndex
from .batches import count_examples
from .capture import LayerCapture, capture_layers, concatenate_calls, expand_shared_row

LEAVE_OUT = "leave its layer out with layers="


@dataclass
class _Call:
    """One call of a module: its input, and the gradient at its output once that has come."""

    a: Tensor
    version: int
    d: Tensor | None = None

    def receive(self, d: Tensor) -> None:
        self.d = d.detach() if self.d is None else self.d + d.detach()


@dataclass
class _Pass:
    """One forward and backward pass of the model."""

    examples: int
    calls: dict[str, list[_Call]] = field(default_factory=dict)
    closed: set[str] = field(default_factory=set)
    """Modules below everything that is trained: no gradient comes to their outputs."""


class TrainingPass:
    """Listens to the passes of one update, between `start` and `stop`.

    Raises:
        ValueError: a module that has no rule or mixes examples, by its name.
    """

    def __init__(self, model: nn.Module, layers: Layers) -> None:
        self.model, self.layers = model, layers
        self.captures, tied = capture_layers(ModelIndex(model), layers)
        if tied:
            raise ValueError(
                f"weight {tied[0].name!r} is read by several modules, and the training pass does not add their gradients: "
                f"{LEAVE_OUT}"
            )
        for capture in self.captures:
            if capture.rule is None:
                raise ValueError(
                    f"module {capture.name!r} ({type(capture.module).__name__}) has no rule, so the training pass "
                    f"does not give its per-example gradients: {LEAVE_OUT}"
                )
        for name, module in model.named_modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                raise ValueError(
                    f"module {name!r} ({type(module).__name__}) mixes the examples of a training batch: they have no "
                    "gradients of their own"
                )
        self._passes: list[_Pass] = []
        self._handles: list[RemovableHandle] = []

    def start(self) -> None:
        """Listens from now on, and forgets what was heard."""
        self.stop()
        self._passes = []
        self._handles = [self.model.register_forward_pre_hook(self._open, with_kwargs=True, prepend=True)]
        for capture in self.captures:
            hook = partial(self._capture_call, capture.name)
            self._handles.append(capture.module.register_forward_hook(hook, with_kwargs=True, prepend=True))

    def stop(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _open(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if torch.is_grad_enabled():
            self._passes.append(_Pass(count_examples(args, kwargs)))

    def _capture_call(
        self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> Tensor | None:
        if not torch.is_grad_enabled() or not self._passes:
            return None
        current = self._passes[-1]
        if not output.requires_grad:
            current.closed.add(name)
            return None
        a: Tensor = args[0] if args else next(iter(kwargs.values()))
        a, expanded = expand_shared_row(a, output, current.examples)
        if expanded.ndim < 2 or len(a) != len(expanded) or len(expanded) % current.examples or not len(expanded):
            raise ValueError(
                f"module {name!r} sees {tuple(a.shape)} for a training batch of {current.examples} examples: its "
                f"gradient is not separable by example; {LEAVE_OUT}"
            )
        call = _Call(a.detach(), a._version)
        expanded.register_hook(call.receive)
        current.calls.setdefault(name, []).append(call)
        return None if expanded is output else expanded

    @property
    def evaluations(self) -> int:
        """How many passes were heard."""
        return len(self._passes)

    def take(self) -> Tensor:
        """Squared norms of the examples' own gradients, (examples, layers); NaN for layers below all that is trained.

        Raises:
            ValueError: no pass was seen; a module's gradient was not, though its output is differentiated.
        """
        passes = [p for p in self._passes if any(c.d is not None for calls in p.calls.values() for c in calls)]
        self._passes = []
        if not passes:
            raise ValueError(
                "no training pass of the model was seen: the model that is recorded must be the one that is called"
            )
        examples = sum(p.examples for p in passes)
        return torch.cat([self._norms(p) for p in passes]) * examples**2

    def _norms(self, training_pass: _Pass) -> Tensor:
        device = next(calls[0].a.device for calls in training_pass.calls.values())
        total = torch.zeros(training_pass.examples, len(self.layers), dtype=torch.float64, device=device)
        for capture in self.captures:
            norms = _module_norms(capture, training_pass)
            for short, layer in capture.layer_of.items():
                total[:, layer] += torch.nan if norms is None else norms[short]
        return total


def _module_norms(capture: LayerCapture, training_pass: _Pass) -> dict[str, Tensor] | None:
    """Squared norms (examples,) of each measured parameter; None where no gradient comes to the module."""
    calls, rule, examples = training_pass.calls.get(capture.name, []), capture.rule, training_pass.examples
    if not calls or rule is None or capture.name in training_pass.closed:
        return None
    inputs, gradients = [], []
    for call in calls:
        if call.d is None or call.a._version != call.version:
            raise ValueError(
                f"module {capture.name!r}: its input or output is changed in place, or does not reach the loss: {LEAVE_OUT}"
            )
        inputs.append(rule.inputs(capture.module, call.a))
        gradients.append(rule.gradients(capture.module, call.d))
    return rule.norms(capture.module, concatenate_calls(inputs, examples), concatenate_calls(gradients, examples))
