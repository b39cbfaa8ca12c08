"""method="vmap": per-example squared gradient norms by torch.func, for any module, at the price of forming every gradient.

vmap over examples of a vector-Jacobian product. The norm is taken inside the mapped function, so that one chunk's
gradients, not the whole batch's, are alive at a time. Unbiased given the cotangents. Cost: forward, backward and
(chunk x parameters) numbers of memory.

Models whose forward pass branches on data (HF's SDPA attention with a 2-D mask) cannot be mapped: load them with
attn_implementation="eager". Neither can recurrent layers, checkpointing and custom autograd functions: they are refused,
and method="loop" measures them.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from ..likelihoods import to_unit_size
from .batches import ModelCall
from .loop import MIXES, same_logits
from .methods import USE_LOOP, Method, Signature
from .plain import call_with_weights

CHUNK = 8
"""Examples whose gradients are alive at a time."""


class VMap(Method):
    """Sees tied weights and weights that are used outside their module's call."""

    name = "vmap"
    needs_check = False

    @contextmanager
    def forward(self, call: ModelCall) -> Iterator[_MappedPass]:
        yield _MappedPass(call)


class _MappedPass:
    folded = False

    def __init__(self, call: ModelCall) -> None:
        self.call, self.kind = call, type(call.model.model).__name__
        _ = call.examples  # inputs that share no batch dimension are refused before the model is run
        with torch.no_grad():
            self.logits = call.logits()
        self.signatures: Sequence[Signature] = [None] * len(call.layers)

    def squared_norms(self, cotangents: Sequence[Tensor], generator: torch.Generator) -> Tensor:
        """As `methods.ForwardPass` has it; also compares each example's logits alone with those in the batch."""
        scaled = [to_unit_size(cotangent) for cotangent in cotangents]
        columns = torch.stack([unit for unit, _ in scaled], dim=1).to(self.logits.dtype)
        sizes = torch.stack([size for _, size in scaled])
        # The outer level only: torch.func differentiates on a level of its own.
        with torch.no_grad(), warnings.catch_warnings():
            # Some operations are mapped one example at a time: slower, and no less right.
            warnings.filterwarnings("ignore", message="There is a performance drop")
            norms, alone = self._map(columns)
        if not same_logits(self.logits, alone.split(1), cotangents):
            raise ValueError(f"{self.kind} {MIXES}")
        return sizes.square()[..., None] * norms.transpose(0, 1)

    def _map(self, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Squared norms (examples, cotangents, layers) of unit cotangents, and each example's logits alone."""
        mapped_kwargs = tree_map(lambda x: 0 if isinstance(x, Tensor) and x.ndim > 0 else None, dict(self.call.kwargs))
        one_example = _OneExample(self.call, mapped_kwargs)
        try:
            mapped = torch.func.vmap(one_example, in_dims=(0, mapped_kwargs, 0), chunk_size=CHUNK)
            return mapped(self.call.args, dict(self.call.kwargs), columns)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # the model's own forward pass went through: it is torch.func that cannot
            raise ValueError(
                f"torch.func cannot map {self.kind} ({str(error).splitlines()[0][:120]}): for Hugging Face's attention "
                f'load it with attn_implementation="eager"; else {USE_LOOP}'
            ) from error


class _OneExample:
    """What vmap maps: an example's inputs and cotangents -> its squared norms (cotangents, layers) and logits."""

    def __init__(self, call: ModelCall, mapped_kwargs: dict[str, Any]) -> None:
        self.call, self.mapped_kwargs = call, mapped_kwargs
        self.weights = {
            name: call.model.get_parameter(name).detach() for names in call.layers.values() for name in names
        }

    def __call__(self, args: tuple[Tensor, ...], kwargs: dict[str, Any], columns: Tensor) -> tuple[Tensor, Tensor]:
        def logits(weights: dict[str, Tensor]) -> Tensor:
            batch_of_one = tree_map(lambda dim, x: x[None] if dim == 0 else x, self.mapped_kwargs, kwargs)
            output = call_with_weights(self.call.model, weights, tree_map(lambda x: x[None], args), batch_of_one)
            return self.call.reader(output, self.call.batch, 1)[0]

        alone, pull_back = torch.func.vjp(logits, self.weights)[:2]
        rows = []
        for column in columns:
            gradient = pull_back(column)[0]
            sums = [
                sum(gradient[name].abs().double().square().sum() for name in names)
                for names in self.call.layers.values()
            ]
            rows.append(torch.stack(sums))
        return torch.stack(rows), alone
