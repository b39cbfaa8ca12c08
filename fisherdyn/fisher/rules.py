"""One short rule a layer kind: per-example squared gradient norms from activations and output gradients.

A rule brings a module's input a and the gradient d at its output to (batch, positions, ...), and then takes one of three
norms, ||sum_t grad_t||^2 for each of the module's own parameters. Summing over positions and calls before squaring is the
whole point: a weight that is used at every token has one gradient per example.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import group_norm, layer_norm, pad, unfold

from ..labels import widen

Norms = dict[str, Tensor]
"""Parameter name (of the module itself) -> (batch,)."""

BUDGET, BUDGET_OF_A_GPU = 2**19, 2**24
"""Numbers that a norm may hold at once beside its inputs: 2 MiB in float32, which stay in a CPU's cache, or 64 MiB."""


CANCELLED = 1e-2
"""Share of the positions' own squared norms below which what is left of their sum is taken from the gradient itself."""


@dataclass(frozen=True)
class Rule:
    """How a kind of module is measured.

    Attributes:
        inputs, gradients: (module, tensor of one call) -> (batch, positions, ...); calls are then laid side by side.
        norms: of the two, all calls together.
    """

    inputs: Callable[[Any, Tensor], Tensor]
    gradients: Callable[[Any, Tensor], Tensor]
    norms: Callable[[Any, Tensor, Tensor], Norms]


def square_sum(gradient: Tensor) -> Tensor:
    """(batch, ...) -> (batch,)."""
    flat = gradient.flatten(1)
    return torch.linalg.vecdot(flat, flat)


def outer(module: nn.Module, a: Float[Tensor, "b t g d"], d: Float[Tensor, "b t g p"]) -> Norms:
    """||sum_t d_t a_t^T||^2, summed over groups g, by whichever is cheaper: the Gram matrices or the gradient itself.

    Gram ("ghost norm": Goodfellow 2015, arXiv 1510.01799; Li et al. 2022, arXiv 2110.05679) costs 2 T^2 (d + p) FLOPs an
    example and the gradient 2 T d p. By memory Gram wins iff 2 T^2 <= d p (Bu et al. 2022, arXiv 2205.10683); here the
    FLOPs decide, and chunks bound the memory. With one position it is ||a||^2 ||d||^2.
    """
    a, d = _to_the_last_gradient(a, d)
    positions = a.shape[1]
    if positions == 1:
        squares = torch.linalg.vecdot(d, d)
        weight = torch.linalg.vecdot(a, a) * squares
        return {"weight": weight.sum(dim=(1, 2)), "bias": squares.sum(dim=(1, 2))}
    return {"weight": outer_weight(a, d), "bias": square_sum(d.sum(dim=1))}


def outer_weight(a: Float[Tensor, "b t g d"], d: Float[Tensor, "b t g p"]) -> Tensor:
    """(batch,) ||sum_t d_t a_t^T||^2."""
    batch, positions, groups = a.shape[:3]
    a, d = (x.transpose(1, 2).flatten(0, 1) for x in (a, d))
    size_a, size_d = a.shape[2], d.shape[2]
    by_gram = positions * (size_a + size_d) <= size_a * size_d
    rows = max(1, budget_of(a) // (2 * positions**2 if by_gram else size_a * size_d))
    norm = _by_gram if by_gram else _by_gradient
    weight = torch.cat([norm(x, y) for x, y in zip(a.split(rows), d.split(rows), strict=True)])
    return weight.reshape(batch, groups).sum(dim=1)


def budget_of(x: Tensor) -> int:
    return BUDGET_OF_A_GPU if x.is_cuda else BUDGET


def _by_gram(a: Tensor, d: Tensor) -> Tensor:
    """By the gradient itself for examples whose positions cancel: the sum of products would keep no digits there."""
    gram_a, gram_d = a @ a.mT, d @ d.mT
    norms = torch.linalg.vecdot(gram_a.flatten(1), gram_d.flatten(1))
    apart = torch.linalg.vecdot(gram_a.diagonal(dim1=1, dim2=2), gram_d.diagonal(dim1=1, dim2=2))
    cancelled = norms < CANCELLED * apart
    if cancelled.any():
        norms[cancelled] = _by_gradient(a[cancelled], d[cancelled])
    return norms


def _by_gradient(a: Tensor, d: Tensor) -> Tensor:
    return square_sum(d.mT @ a)


def _to_the_last_gradient(a: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """Without the positions that follow the last one with a gradient: padding, or all but the first token in the top block.

    Only where an answer is cheap: asking a GPU would make it wait.
    """
    if d.shape[1] == 1 or d.is_cuda or d[:, -1].any():
        return a, d
    largest = d.flatten(2).abs().amax(dim=(0, 2))
    end = int(largest.nonzero().max()) + 1 if largest.any() else 1
    return a[:, :end], d[:, :end]


def elementwise(module: nn.Module, a: Float[Tensor, "b t *n"], d: Float[Tensor, "b t *n"]) -> Norms:
    """A scale and a shift of the normalised input a."""
    a, d = _to_the_last_gradient(a, d)
    return {"weight": square_sum((d * a).sum(dim=1)), "bias": square_sum(d.sum(dim=1))}


def lookup(module: nn.Embedding, a: Int[Tensor, "b t"], d: Float[Tensor, "b t p"]) -> Norms:
    """Rows add up where a token recurs. O(T p): the sums themselves are formed, so that none is lost where they cancel."""
    return {"weight": square_sum(sum_by_token(a, without_padding(module, a, d))[1])}


def without_padding(module: nn.Embedding, a: Tensor, d: Tensor) -> Tensor:
    """The gradient that reaches the weight: none where the token is the module's padding."""
    return d if module.padding_idx is None else d * (a != module.padding_idx)[..., None]


def sum_by_token(a: Int[Tensor, "b t"], d: Float[Tensor, "b t p"]) -> tuple[Tensor, Tensor]:
    """Tokens (b, t) and the sum of each one's gradients (b, t, p); places that are left over hold a token and zero."""
    tokens, order = a.sort(dim=1)
    first = torch.ones_like(tokens, dtype=torch.bool)
    first[:, 1:] = tokens[:, 1:] != tokens[:, :-1]
    place = first.cumsum(dim=1) - 1
    sums = torch.zeros_like(d).scatter_add_(
        1, place[..., None].expand_as(d), d.gather(1, order[..., None].expand_as(d))
    )
    return torch.zeros_like(tokens).scatter_(1, place, tokens), sums


def _features_last(module: nn.Module, x: Tensor) -> Tensor:
    return widen(x).reshape(len(x), -1, 1, x.shape[-1])


def _channels_last(module: nn.Module, x: Tensor) -> Tensor:
    """(batch, channels, ...) -> (batch, positions, channels)."""
    return widen(x).reshape(len(x), x.shape[1], -1).mT


def _patches(module: nn.Conv1d | nn.Conv2d, x: Tensor) -> Tensor:
    """What each output position of a convolution sees: (batch, positions, groups, channels of a group x kernel)."""
    x, padding = widen(x), module.padding
    if module.padding_mode != "zeros" or isinstance(padding, str):
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        x, padding = pad(x, module._reversed_padding_repeated_twice, mode=mode), (0,) * (x.ndim - 2)
    kernel, stride, dilation = module.kernel_size, module.stride, module.dilation
    if x.ndim == 3:
        x = x[:, :, None]
        kernel, stride, dilation, padding = (1, *kernel), (1, *stride), (1, *dilation), (0, *padding)
    columns = unfold(x, kernel, dilation, padding, stride)
    return columns.reshape(len(x), module.groups, -1, columns.shape[2]).permute(0, 3, 1, 2)


def _conv_gradients(module: nn.Conv1d | nn.Conv2d, d: Tensor) -> Tensor:
    return widen(d).reshape(len(d), module.groups, module.out_channels // module.groups, -1).permute(0, 3, 1, 2)


def _norm_gradients(module: nn.LayerNorm | nn.RMSNorm, d: Tensor) -> Tensor:
    return widen(d).reshape(len(d), -1, *module.normalized_shape)


def _layer_normalised(module: nn.LayerNorm, a: Tensor) -> Tensor:
    return _norm_gradients(module, layer_norm(widen(a), module.normalized_shape, eps=module.eps))


def _rms_normalised(module: nn.RMSNorm, a: Tensor) -> Tensor:
    return _norm_gradients(module, nn.functional.rms_norm(widen(a), list(module.normalized_shape), eps=module.eps))


def _per_unit_of_weight(module: nn.Module, a: Tensor) -> Tensor:
    """What a scale multiplies, for a module that is linear in it: y(w = 1) - y(w = 0). Some scale by w, some by 1 + w."""
    one, none = (torch.func.functional_call(module, {"weight": w}, (a,)) for w in _one_and_none(module))
    return widen(one - none).reshape(len(a), -1, a.shape[-1])


def _one_and_none(module: nn.Module) -> tuple[Tensor, Tensor]:
    weight = module.get_parameter("weight").detach()
    return torch.ones_like(weight), torch.zeros_like(weight)


def _group_normalised(module: nn.GroupNorm, a: Tensor) -> Tensor:
    return _channels_last(module, group_norm(widen(a), module.num_groups, eps=module.eps))


def _batch_normalised(module: nn.BatchNorm1d | nn.BatchNorm2d, a: Tensor) -> Tensor:
    assert module.running_mean is not None
    assert module.running_var is not None
    rows = _channels_last(module, a)
    return (rows - module.running_mean.to(rows)) / (module.running_var.to(rows) + module.eps).sqrt()


def _tokens(module: nn.Embedding, a: Tensor) -> Tensor:
    return a.reshape(len(a), -1)


def _vectors(module: nn.Module, d: Tensor) -> Tensor:
    return widen(d).reshape(len(d), -1, d.shape[-1])


def _scaled_vectors(module: Any, d: Tensor) -> Tensor:
    return _vectors(module, d) * module.embed_scale


_LINEAR = Rule(_features_last, _features_last, outer)
_CONV = Rule(_patches, _conv_gradients, outer)
_HF_RMS_NORM = Rule(_per_unit_of_weight, _vectors, elementwise)
_BATCH_NORM = Rule(_batch_normalised, _channels_last, elementwise)

_EMBEDDING = Rule(_tokens, _vectors, lookup)
_SCALED_EMBEDDING = Rule(_tokens, _scaled_vectors, lookup)

_RMS_NAMES = ("RMSNorm", "T5LayerNorm")

RULES: dict[type[nn.Module], Rule] = {
    nn.Linear: _LINEAR,
    nn.Conv1d: _CONV,
    nn.Conv2d: _CONV,
    nn.LayerNorm: Rule(_layer_normalised, _norm_gradients, elementwise),
    nn.RMSNorm: Rule(_rms_normalised, _norm_gradients, elementwise),
    nn.GroupNorm: Rule(_group_normalised, _channels_last, elementwise),
    nn.BatchNorm1d: _BATCH_NORM,
    nn.BatchNorm2d: _BATCH_NORM,
    nn.Embedding: _EMBEDDING,
}


def find_rule(module: nn.Module) -> Rule | None:
    """The rule of a module's exact type, or None.

    None too where the module may compute something else than its type says: a subclass, a `forward` of the instance's own
    (accelerate's), or a weight that is made from other parameters (weight norm, pruning).
    """
    made = {name for name, _ in module.named_parameters(recurse=False)} - {"weight", "bias"}
    if made or "forward" in vars(module):
        return None
    if type(module).__name__ == "Conv1D" and type(module).__module__ == "transformers.pytorch_utils":
        return _LINEAR  # Hugging Face's: a Linear whose weight is stored transposed
    if type(module).__module__.startswith("transformers.models."):  # every family of models has a copy of its own
        if type(module).__name__.endswith(_RMS_NAMES):
            return _HF_RMS_NORM
        if type(module).__name__.endswith("ScaledWordEmbedding"):
            return _SCALED_EMBEDDING
    return RULES.get(type(module))
