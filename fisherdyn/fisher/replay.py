"""The rule for modules that have none: run the module again, one example at a time, and pull its gradient back.

Right for any module that keeps examples apart and has no randomness, at the price of a loop: for the odd module out, not
for a whole network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

from .forward import one_example


@dataclass(frozen=True)
class Call:
    """One call of a module: what went in, and what came out where it is kept."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: list[Tensor | None]
    tensors: list[Tensor]
    versions: list[int]

    @classmethod
    def of(cls, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: list[Tensor | None]) -> Call:
        args, kwargs = tree_map(lambda x: x.detach() if isinstance(x, Tensor) else x, (args, kwargs))
        tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
        return cls(args, kwargs, outputs, tensors, [x._version for x in tensors])

    @classmethod
    def of_one(cls, a: Tensor) -> Call:
        """The call of a module of one input, whose output nobody asks for."""
        a = a.detach()
        return cls((a,), {}, [], [a], [a._version])

    def changed(self) -> bool:
        """Whether an input was written into since: a detached tensor shares its version with the original."""
        return self.versions != [x._version for x in self.tensors]


def replay(
    name: str,
    module: nn.Module,
    calls: Sequence[tuple[Call, Sequence[Tensor | None]]],
    wanted: Sequence[str],
    examples: int,
) -> dict[str, Tensor]:
    """Squared norms (examples,) of the module's own parameters `wanted`; gradients of all calls add before squaring.

    Raises:
        ValueError: one example alone does not give what it gave in the batch (examples are mixed, or not first).
    """
    weights = {short: getattr(module, short).detach().requires_grad_() for short in wanted}
    found = {short: torch.zeros(examples, dtype=torch.float64, device=w.device) for short, w in weights.items()}
    for i in range(examples):
        sums = {short: torch.zeros(w.shape, dtype=torch.float64, device=w.device) for short, w in weights.items()}
        for call, gradients in calls:
            for short, g in zip(weights, _pull_back(name, module, weights, call, gradients, i, examples), strict=True):
                sums[short] += 0 if g is None else g
        for short, total in sums.items():
            found[short][i] = total.square().sum()
    return found


def _pull_back(
    name: str,
    module: nn.Module,
    weights: dict[str, Tensor],
    call: Call,
    gradients: Sequence[Tensor | None],
    i: int,
    examples: int,
) -> Sequence[Tensor | None]:
    args, kwargs = tree_map(lambda x: one_example(x, i) if _holds(x, examples) else x, (call.args, call.kwargs))
    with torch.enable_grad():
        outputs = tree_flatten(torch.func.functional_call(module, weights, args, kwargs))[0]
    pairs = []
    for alone, together, d in zip(outputs, call.outputs, gradients, strict=True):
        if d is None or together is None:
            continue
        part, d_part = (_part(x, alone, i, examples) for x in (together, d))
        if part is None or d_part is None or not torch.allclose(part, alone.to(part), rtol=1e-2, atol=1e-4):
            raise ValueError(
                f"module {name!r} ({type(module).__name__}, which has no rule) gives another output for an example alone "
                'than in the batch: measure it with method="vmap"'
            )
        pairs.append((alone, d_part))
    alone, d_parts = zip(*pairs, strict=True)
    return torch.autograd.grad(alone, list(weights.values()), d_parts, allow_unused=True)


def _holds(x: Any, examples: int) -> bool:
    return isinstance(x, Tensor) and x.ndim > 0 and len(x) == examples


def _part(x: Tensor, alone: Tensor, i: int, examples: int) -> Tensor | None:
    """Example i of x, along the one dimension in which an example alone is shorter (an LSTM's state has it second).

    None where there is no such dimension: an output that is the same for the whole batch has its gradient summed over it.
    """
    if x.shape == alone.shape and examples == 1:
        return x
    differing = [dim for dim in range(x.ndim) if x.ndim == alone.ndim and x.shape[dim] != alone.shape[dim]]
    return x.narrow(differing[0], i, 1) if len(differing) == 1 and alone.shape[differing[0]] == 1 else None
