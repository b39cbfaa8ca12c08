"""Per-example squared gradient norms by torch.func: any module, no rules, at the price of forming every gradient.

vmap over examples of a vector-Jacobian product. The norm is taken inside the mapped function, so that one chunk's
gradients, not the whole batch's, are alive at a time. Unbiased given the cotangents. Cost: forward, backward and
(chunk x parameters) numbers of memory.

Models whose forward pass branches on data (HF's SDPA attention with a 2-D mask) cannot be mapped: load them with
attn_implementation="eager".
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..layers import Layers
from .forward import call_with, count_examples

CHUNK = 8


def squared_norms(
    model: nn.Module,
    args: tuple[Tensor, ...],
    kwargs: Mapping[str, Any],
    layers: Layers,
    outputs: Callable[[Any], Tensor],
    cotangents: Callable[[Tensor], Iterable[Tensor]],
) -> Tensor:
    """sum over c of ||J_l^T c||^2 for each example and layer: (examples, layers). As `hooks.squared_norms`."""
    count_examples(args, kwargs)
    with torch.no_grad():
        f = outputs(model(*args, **kwargs))
        columns = torch.stack(list(cotangents(f)), dim=1).to(f.dtype)
    wanted = {name: model.get_parameter(name).detach() for names in layers.values() for name in names}

    def one_example(args: tuple[Tensor, ...], kwargs: dict[str, Any], columns: Tensor) -> Tensor:
        def logits(weights: dict[str, Tensor]) -> Tensor:
            one = {key: v[None] if isinstance(v, Tensor) else v for key, v in kwargs.items()}
            output = call_with(model, weights, tuple(x[None] for x in args), one)
            return outputs(output)[0]

        pull_back = torch.func.vjp(logits, wanted)[1]
        total = torch.zeros(len(layers), dtype=torch.float64, device=columns.device)
        for column in columns:
            gradient = pull_back(column)[0]
            sums = [sum(gradient[name].double().square().sum() for name in names) for names in layers.values()]
            total = total + torch.stack(sums)
        return total

    batched = {key: 0 if isinstance(v, Tensor) else None for key, v in kwargs.items()}
    # The outer level only: torch.func differentiates on a level of its own.
    with torch.no_grad(), warnings.catch_warnings():
        # Some operations are mapped one example at a time: slower, and no less right.
        warnings.filterwarnings("ignore", message="There is a performance drop")
        try:
            return torch.func.vmap(one_example, in_dims=(0, batched, 0), chunk_size=CHUNK)(args, dict(kwargs), columns)
        except RuntimeError as error:
            if "vmap" not in str(error):
                raise
            raise ValueError(
                f"torch.func cannot map {type(model).__name__}, whose forward pass depends on its data: load it with "
                f'attn_implementation="eager", or use method="hooks" ({str(error).splitlines()[0][:120]})'
            ) from error
