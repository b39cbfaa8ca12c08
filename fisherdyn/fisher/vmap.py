"""Per-example squared gradient norms by torch.func: any module, no rules, at the price of forming every gradient.

vmap over examples of a vector-Jacobian product. The norm is taken inside the mapped function, so that one chunk's
gradients, not the whole batch's, are alive at a time. Unbiased given the cotangents. Cost: forward, backward and
(chunk x parameters) numbers of memory.

Models whose forward pass branches on data (HF's SDPA attention with a 2-D mask) cannot be mapped: load them with
attn_implementation="eager". Neither can recurrent layers, checkpointing and custom autograd functions: they are refused.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..layers import Layers
from ..likelihoods import to_unit_size
from .batches import count_examples
from .model_state import call_with
from .replay import same_up_to_rounding

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
        together = outputs(model(*args, **kwargs))
        scaled = [to_unit_size(column) for column in cotangents(together)]
        columns = torch.stack([unit for unit, _ in scaled], dim=1).to(together.dtype)
        squares = torch.stack([size.square() for _, size in scaled], dim=1)
    wanted = {name: model.get_parameter(name).detach() for names in layers.values() for name in names}

    batched = {key: 0 if isinstance(v, Tensor) and v.ndim > 0 else None for key, v in kwargs.items()}

    def one_example(
        args: tuple[Tensor, ...], kwargs: dict[str, Any], columns: Tensor, squares: Tensor
    ) -> tuple[Tensor, Tensor]:
        def logits(weights: dict[str, Tensor]) -> Tensor:
            one = {key: v[None] if batched[key] == 0 else v for key, v in kwargs.items()}
            output = call_with(model, weights, tuple(x[None] for x in args), one)
            return outputs(output)[0]

        alone, pull_back = torch.func.vjp(logits, wanted)[:2]
        total = torch.zeros(len(layers), dtype=torch.float64, device=columns.device)
        for column, square in zip(columns, squares, strict=True):
            gradient = pull_back(column)[0]
            sums = [sum(gradient[name].abs().double().square().sum() for name in names) for names in layers.values()]
            total = total + square * torch.stack(sums)
        return total, alone

    # The outer level only: torch.func differentiates on a level of its own.
    with torch.no_grad(), warnings.catch_warnings():
        # Some operations are mapped one example at a time: slower, and no less right.
        warnings.filterwarnings("ignore", message="There is a performance drop")
        try:
            mapped = torch.func.vmap(one_example, in_dims=(0, batched, 0, 0), chunk_size=CHUNK)
            norms, alone = mapped(args, dict(kwargs), columns, squares)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # the forward pass above went through: it is torch.func that cannot
            raise ValueError(
                f"torch.func cannot map {type(model).__name__} ({str(error).splitlines()[0][:120]}): for Hugging Face's "
                'attention load it with attn_implementation="eager"; else use method="hooks", or method="batch" with '
                "batches of one example, which is plain autograd"
            ) from error
    if not same_up_to_rounding(together, alone):
        raise ValueError(
            f"{type(model).__name__} gives other logits for an example alone than in a batch: it mixes examples (statistics "
            "of the batch, attention between examples), and a gradient of one example does not exist"
        )
    return norms
