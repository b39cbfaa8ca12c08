"""Plain autograd in the weights themselves, without hooks and torch.func: slow, and the reference for the others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..model_index import ModelIndex
from .batches import ModelCall
from .methods import Signature


def call_with_weights(
    model: ModelIndex, weights: Mapping[str, Tensor], args: tuple[Tensor, ...], kwargs: Mapping[str, Any]
) -> Any:
    """The model's output with other weights, wherever each of them is used.

    functional_call replaces place by place. Left to tie weights itself, it would replace one place of a module that is
    registered under two names two times over, and restore the wrong tensor.
    """
    places = {
        place: weight for name, weight in weights.items() for *_, place in model.owners_of(model.get_parameter(name))
    }
    return torch.func.functional_call(model.model, places, args, dict(kwargs), tie_weights=False)


class PlainPass:
    """A forward pass for plain autograd: no hook, and weights that are differentiated wherever they are used."""

    folded = False

    def __init__(self, call: ModelCall) -> None:
        self.call = call
        names = [name for names in call.layers.values() for name in names]
        self.weights = {name: call.model.get_parameter(name).detach().requires_grad_() for name in names}
        self.logits = call.read(call_with_weights(call.model, self.weights, call.args, call.kwargs))
        self.signatures: Sequence[Signature] = [None] * len(call.layers)

    def squared_gradients(self, cotangents: Sequence[Tensor]) -> Tensor:
        """||J_l^T c||^2 of the whole batch, for each cotangent: (cotangents, 1, layers)."""
        rows = [self._scaled(c, last=i + 1 == len(cotangents)) for i, c in enumerate(cotangents)]
        return torch.stack(rows)[:, None]

    def _scaled(self, cotangent: Tensor, last: bool) -> Tensor:
        # A power of two, so that small gradients have squares in any precision.
        exponent = torch.frexp(cotangent.abs().amax()).exponent
        size = torch.ldexp(torch.ones((), dtype=torch.float64, device=cotangent.device), exponent)
        return size.square() * self.squared_gradient(torch.ldexp(cotangent, -exponent).to(self.logits), last)

    def squared_gradient(self, cotangent: Tensor, last: bool) -> Tensor:
        """||J_l^T c||^2 of the whole batch for a cotangent of about unit size: (layers,); `last` lets the graph go."""
        weights = list(self.weights.values())
        gradients = iter(torch.autograd.grad(self.logits, weights, cotangent, retain_graph=not last, allow_unused=True))
        norms = torch.zeros(len(self.call.layers), dtype=torch.float64, device=self.logits.device)
        for layer, names in enumerate(self.call.layers.values()):
            used = [g for g in (next(gradients) for _ in names) if g is not None]
            norms[layer] = sum(_square_sum(g) for g in used)
        return norms


def run_alone(call: ModelCall, i: int) -> PlainPass:
    """Example i of a batch that has been run. Raises as `one_example_alone`."""
    with one_example_alone(call):
        return PlainPass(call.example(i))


@contextmanager
def one_example_alone(call: ModelCall) -> Iterator[None]:
    """Says what an error of the model means here, which took the whole batch before.

    Raises:
        ValueError: the model does not take one example alone.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        first_line = f"{error}".partition("\n")[0][:120]
        raise ValueError(
            f"{type(call.model.model).__name__} does not take an example alone ({first_line}). Examples must be "
            "independent: the nodes of one graph are not, so make the graph the example, with a batch dimension of its own"
        ) from error


def _square_sum(g: Tensor) -> Tensor:
    """In float64, without a copy of g in it."""
    g = g.coalesce().values() if g.is_sparse else g  # of an Embedding with sparse=True
    return torch.linalg.vector_norm(torch.view_as_real(g) if g.is_complex() else g, dtype=torch.float64).square()
