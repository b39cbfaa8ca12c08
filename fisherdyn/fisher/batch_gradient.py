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
from .methods import Method
from .plain import PlainPass


class SignedGradient(Method):
    """method="batch": ||sum_i e_i g_i||^2 / B, one number a batch. Unbiased given the cotangents.

    Cost: a plain forward and backward pass, weight gradients included.
    """

    name = "batch"
    per_example = False
    needs_check = False

    @contextmanager
    def forward(self, call: ModelCall) -> Iterator[_SignedPass]:
        yield _SignedPass(call)


class AuthorsGradient(Method):
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


class _SignedPass(PlainPass):
    def squared_norms(self, cotangents: Sequence[Tensor], generator: torch.Generator) -> Tensor:
        signed = [c * random_signs(c.new_empty(len(c), *(1,) * (c.ndim - 1)), generator) for c in cotangents]
        return self.squared_gradients(signed) / self.call.examples


class _MeanLossPass(PlainPass):
    def squared_norms(self, cotangents: Sequence[Tensor], generator: torch.Generator) -> Tensor:
        return self.squared_gradients([c / len(c) for c in cotangents]) / self.call.examples
