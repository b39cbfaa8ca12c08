"""One short rule a layer kind: per-example squared gradient norms from activations and output gradients.

A rule gets a module, its input a and the gradient d at its output, each (batch, positions, ...) with all calls of the
module laid side by side along positions, and returns for each of its own parameters a tensor (batch,):
||sum_t grad_t||^2. Summing over positions and calls before squaring is the whole point: a weight that is used at every
token has one gradient per example.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

Norms = dict[str, Tensor]
"""Parameter name (of the module itself) -> (batch,)."""


def _square_sum(gradient: Tensor) -> Tensor:
    return gradient.flatten(1).square().sum(dim=1)


def linear(module: nn.Linear, a: Float[Tensor, "b t d"], d: Float[Tensor, "b t p"]) -> Norms:
    """||sum_t d_t a_t^T||^2, by whichever is cheaper: the Gram matrices or the gradient itself.

    Gram ("ghost norm": Goodfellow 2015, arXiv 1510.01799; Li et al. 2022, arXiv 2110.05679) costs 2 T^2 (d + p) and the
    gradient 2 T d p FLOPs an example; by memory Gram wins iff 2 T^2 <= d p (Bu et al. 2022, arXiv 2205.10683).
    """
    positions = a.shape[1]
    if 2 * positions**2 <= a.shape[2] * d.shape[2]:
        weight = ((a @ a.mT) * (d @ d.mT)).sum(dim=(1, 2))
    else:
        weight = _square_sum(d.mT @ a)
    return {"weight": weight, "bias": _square_sum(d.sum(dim=1))}


def layer_norm(module: nn.LayerNorm, a: Float[Tensor, "b t *n"], d: Float[Tensor, "b t *n"]) -> Norms:
    normalised = nn.functional.layer_norm(a, module.normalized_shape, eps=module.eps)
    return {"weight": _square_sum((d * normalised).sum(dim=1)), "bias": _square_sum(d.sum(dim=1))}


def embedding(module: nn.Embedding, a: Int[Tensor, "b t"], d: Float[Tensor, "b t p"]) -> Norms:
    """Rows add up where a token recurs: sum over t, t' with the same token of d_t . d_t'. O(T^2 p)."""
    if module.padding_idx is not None:
        d = d * (a != module.padding_idx)[..., None]
    same = a[:, :, None] == a[:, None, :]
    return {"weight": ((d @ d.mT) * same).sum(dim=(1, 2))}


RULES: dict[type[nn.Module], Callable[..., Norms]] = {
    nn.Linear: linear,
    nn.LayerNorm: layer_norm,
    nn.Embedding: embedding,
}


def feature_dims(module: nn.Module) -> tuple[int, int]:
    """How many trailing dimensions of (input, output) are features; those between them and the batch are positions."""
    if isinstance(module, nn.LayerNorm):
        return len(module.normalized_shape), len(module.normalized_shape)
    return (0, 1) if isinstance(module, nn.Embedding) else (1, 1)


def to_positions(x: Tensor, features: int) -> Tensor:
    """(batch, ..., *features) -> (batch, positions, *features); half precision becomes float32 before any square."""
    if x.dtype in (torch.float16, torch.bfloat16):
        x = x.float()
    return x.reshape(len(x), -1, *x.shape[x.ndim - features :])
