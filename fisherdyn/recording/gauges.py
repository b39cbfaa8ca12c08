"""Norms and learning rates per layer, recorded beside tr(F).

Values are gathered on the device first, so that one record costs one synchronisation, whatever the number of layers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

Groups = Sequence[Sequence[Tensor]]
"""The tensors of each layer."""


def norms(groups: Groups) -> np.ndarray:
    """Euclidean norm over each group's tensors: (groups,); NaN where a group has none."""
    flat = [t.detach().float() if t.dtype.itemsize < 4 else t.detach() for group in groups for t in group]
    # One kernel for all tensors on a GPU, one call on a CPU; torch.nn.utils.get_total_norm would need a call per layer.
    each = iter(torch.stack(torch._foreach_norm(flat)).double().cpu().numpy() if flat else ())
    return np.array([np.linalg.norm([next(each) for _ in group]) if group else np.nan for group in groups])


def gradients(groups: Groups) -> list[list[Tensor]]:
    """The gradients of each group's tensors, without those that have none."""
    return [[t.grad for t in group if t.grad is not None] for group in groups]


def copies(groups: Groups) -> list[list[Tensor]]:
    return [[t.detach().clone() for t in group] for group in groups]


def changes(before: Groups, after: Groups) -> list[list[Tensor]]:
    return [[new.detach() - old for old, new in zip(*pair, strict=True)] for pair in zip(before, after, strict=True)]


def held(optimizer: Optimizer) -> list[Tensor]:
    """All parameters of the optimizer."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def learning_rates(optimizer: Optimizer, groups: Groups) -> np.ndarray:
    """Each layer's mean learning rate over the parameters that the optimizer holds, NaN if it holds none: (groups,)."""
    rates = {id(p): float(group["lr"]) for group in optimizer.param_groups for p in group["params"]}

    def rate(group: Sequence[Tensor]) -> float:
        moved = [p for p in group if id(p) in rates]
        weights = [p.numel() for p in moved]
        return float(np.average([rates[id(p)] for p in moved], weights=weights)) if moved else np.nan

    return np.array([rate(group) for group in groups])
