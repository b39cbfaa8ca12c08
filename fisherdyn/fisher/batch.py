"""Squared gradients of whole batches: the cheap estimate that needs no per-example gradient, and the paper's code's.

With random signs e_i, E ||sum_i e_i g_i||^2 / B = mean_i ||g_i||^2: cross terms have mean zero, so the batch's signed
gradient is unbiased for the same quantity as per-example norms. Its variance, about 2 tr(F^2) a batch, does not fall with
the size of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..layers import Layers
from ..likelihoods import random_signs
from .batches import count_examples
from .model_state import call_with


def signed(
    model: nn.Module,
    args: tuple[Tensor, ...],
    kwargs: Mapping[str, Any],
    layers: Layers,
    outputs: Callable[[Any], Tensor],
    cotangents: Callable[[Tensor], Iterable[Tensor]],
    generator: torch.Generator,
) -> Tensor:
    """||sum_i e_i g_i||^2 / B, summed over cotangents: (1, layers), one number a batch. Unbiased given the cotangents.

    Cost: a plain forward and backward pass, weight gradients included.
    """

    def weigh(c: Tensor) -> Tensor:
        return c * random_signs(c.new_empty(len(c), *(1,) * (c.ndim - 1)), generator)

    weighed = _weighed(cotangents, weigh)
    return plain_squared(model, args, kwargs, layers, outputs, weighed) / count_examples(args, kwargs)


def authors(
    model: nn.Module,
    args: tuple[Tensor, ...],
    kwargs: Mapping[str, Any],
    layers: Layers,
    outputs: Callable[[Any], Tensor],
    cotangents: Callable[[Tensor], Iterable[Tensor]],
) -> Tensor:
    """||grad of the batch's mean loss||^2 / B, as the paper's code has it: (1, layers). For comparison only.

    Biased: for sampled labels its mean is tr(F) / B^2, and for the model's mode it is no Fisher information at all.
    """
    means = _weighed(cotangents, lambda c: c / len(c))
    return plain_squared(model, args, kwargs, layers, outputs, means) / count_examples(args, kwargs)


def _weighed(
    cotangents: Callable[[Tensor], Iterable[Tensor]], weigh: Callable[[Tensor], Tensor]
) -> Callable[[Tensor], Iterable[Tensor]]:
    return lambda f: map(weigh, cotangents(f))


def plain_squared(
    model: nn.Module,
    args: tuple[Tensor, ...],
    kwargs: Mapping[str, Any],
    layers: Layers,
    outputs: Callable[[Any], Tensor],
    cotangents: Callable[[Tensor], Iterable[Tensor]],
) -> Tensor:
    """||J_l^T c||^2 by plain autograd, summed over cotangents c of the batch: (1, layers). The model stays as it is."""
    names = [name for names in layers.values() for name in names]
    weights = {name: model.get_parameter(name).detach().requires_grad_() for name in names}
    f = outputs(call_with(model, weights, args, kwargs))
    columns = list(cotangents(f))
    total = torch.zeros(1, len(layers), dtype=torch.float64, device=f.device)
    for i, column in enumerate(columns):
        keep = i + 1 < len(columns)
        # A power of two, so that small gradients have squares in any precision.
        exponent = torch.frexp(column.abs().amax()).exponent
        size = torch.ldexp(torch.ones((), dtype=torch.float64, device=f.device), exponent)
        unit = torch.ldexp(column, -exponent).to(f)
        gradients = iter(torch.autograd.grad(f, list(weights.values()), unit, retain_graph=keep, allow_unused=True))
        for j, own in enumerate(layers.values()):
            found = [g for g in (next(gradients) for _ in own) if g is not None]
            total[0, j] += size.square() * sum(_square_sum(g) for g in found)
    return total


def _square_sum(g: Tensor) -> Tensor:
    """In float64, without a copy of g in it."""
    return torch.linalg.vector_norm(torch.view_as_real(g) if g.is_complex() else g, dtype=torch.float64).square()
