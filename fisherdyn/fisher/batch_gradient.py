"""Squared gradients of whole batches: the cheap estimate that needs no per-example gradient, and the paper's code's.

With random signs e_i, E ||sum_i e_i g_i||^2 / B = mean_i ||g_i||^2: cross terms have mean zero, so the batch's signed
gradient is unbiased for the same quantity as per-example norms. Its variance, about 2 tr(F^2) a batch, does not fall with
the size of the batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from ..labels import LABELS, LabelMode, random_signs
from .batches import ModelCall
from .capture import Signature
from .model_state import call_with_weights


class SignedGradient:
    """method="batch": ||sum_i e_i g_i||^2 / B, one number a batch. Unbiased given the cotangents.

    Cost: a plain forward and backward pass, weight gradients included.
    """

    name = "batch"
    per_example = False
    needs_check = False

    def validate_labels(self, labels: LabelMode) -> None:
        """Takes any."""

    @contextmanager
    def forward(self, call: ModelCall) -> Iterator[_SignedPass]:
        yield _SignedPass(call)


class AuthorsGradient:
    """method="authors": ||grad of the batch's mean loss||^2 / B, as the paper's code has it. For comparison only.

    Biased: for labels="mc" its mean is tr(F) / B^2, and for the model's mode it is no Fisher information at all.
    """

    name = "authors"
    per_example = False
    needs_check = False

    def validate_labels(self, labels: LabelMode) -> None:
        if not labels.one_label:
            choices = ", ".join(f'"{name}"' for name, mode in LABELS.items() if mode.one_label and name != "argmax")
            raise ValueError(
                'method="authors" is the gradient of a loss, which has one label an example: choose labels="argmax" '
                f"(theirs), or one of {choices}, not {labels.name!r}"
            )

    @contextmanager
    def forward(self, call: ModelCall) -> Iterator[_MeanLossPass]:
        yield _MeanLossPass(call)


class PlainPass:
    """A forward pass for plain autograd: no hook, and weights that are differentiated wherever they are used."""

    folded = False

    def __init__(self, call: ModelCall) -> None:
        self.call = call
        names = [name for names in call.layers.values() for name in names]
        self.weights = {name: call.model.get_parameter(name).detach().requires_grad_() for name in names}
        self.logits = call.reader(call_with_weights(call.model, self.weights, call.args, call.kwargs))
        self.signatures: Sequence[Signature] = [None] * len(call.layers)

    def squared_gradients(self, cotangents: Sequence[Tensor]) -> Tensor:
        """||J_l^T c||^2 of the whole batch, for each cotangent: (cotangents, 1, layers)."""
        rows = [self._squared_gradient(c, last=i + 1 == len(cotangents)) for i, c in enumerate(cotangents)]
        return torch.stack(rows)[:, None]

    def _squared_gradient(self, cotangent: Tensor, last: bool) -> Tensor:
        # A power of two, so that small gradients have squares in any precision.
        exponent = torch.frexp(cotangent.abs().amax()).exponent
        size = torch.ldexp(torch.ones((), dtype=torch.float64, device=cotangent.device), exponent)
        unit = torch.ldexp(cotangent, -exponent).to(self.logits)
        weights = list(self.weights.values())
        gradients = iter(torch.autograd.grad(self.logits, weights, unit, retain_graph=not last, allow_unused=True))
        norms = torch.zeros(len(self.call.layers), dtype=torch.float64, device=self.logits.device)
        for layer, names in enumerate(self.call.layers.values()):
            used = [g for g in (next(gradients) for _ in names) if g is not None]
            norms[layer] = size.square() * sum(_square_sum(g) for g in used)
        return norms


class _SignedPass(PlainPass):
    def squared_norms(self, cotangents: Sequence[Tensor], generator: torch.Generator) -> Tensor:
        signed = [c * random_signs(c.new_empty(len(c), *(1,) * (c.ndim - 1)), generator) for c in cotangents]
        return self.squared_gradients(signed) / self.call.examples


class _MeanLossPass(PlainPass):
    def squared_norms(self, cotangents: Sequence[Tensor], generator: torch.Generator) -> Tensor:
        return self.squared_gradients([c / len(c) for c in cotangents]) / self.call.examples


def _square_sum(g: Tensor) -> Tensor:
    """In float64, without a copy of g in it."""
    return torch.linalg.vector_norm(torch.view_as_real(g) if g.is_complex() else g, dtype=torch.float64).square()
