"""method="loop": squared gradient norms by plain autograd, one example at a time. The slowest way, and the surest.

It sees tied weights, weights that are used outside their module's call, and examples wherever a module has them: the model
has only to take a batch of one. Unbiased given the cotangents. Cost: a forward pass of the batch, and for each example a
forward and (for each cotangent) a backward pass of its own, weight gradients included.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from .batches import ModelCall
from .methods import Method, Signature
from .plain import run_alone

MIXES = (
    "gives other logits for an example alone than in a batch: it mixes examples (statistics of the batch, attention between "
    "examples), and a gradient of one example does not exist, or it draws random numbers in evaluation mode. Measure it in "
    "batches of one example, which have nothing to mix"
)


class Loop(Method):
    """Batches of one. `Hooks` goes on with it where a batch cannot be taken apart."""

    name = "loop"
    needs_check = False

    @contextmanager
    def forward(self, call: ModelCall) -> Iterator[LoopPass]:
        yield LoopPass(call)


class LoopPass:
    """A pass for each example; the logits are those of the whole batch."""

    folded = False

    def __init__(self, call: ModelCall) -> None:
        self.call = call
        with torch.no_grad():
            self.logits = call.logits()
        self.signatures: list[Signature] = [None] * len(call.layers)

    def squared_norms(self, cotangents: Sequence[Tensor], generator: torch.Generator) -> Tensor:
        """As `methods.ForwardPass` has it; also compares each example's logits alone with those in the batch."""
        rows, logits = [], []
        for i in range(self.call.examples):
            plain = run_alone(self.call, i)
            logits.append(plain.logits.detach())
            rows.append(plain.squared_gradients([c[i : i + 1] for c in cotangents]))
        if not same_logits(self.logits, logits, cotangents):
            raise ValueError(f"{type(self.call.model.model).__name__} {MIXES}")
        return torch.cat(rows, dim=1)


def same_logits(together: Tensor, alone: Sequence[Tensor], cotangents: Sequence[Tensor]) -> bool:
    """Whether the logits of the examples alone are those of the batch, where they count: padding may have any."""
    if {x.shape for x in alone} != {together[:1].shape}:
        return False
    counts = torch.stack([c != 0 for c in cotangents]).any(dim=0).any(dim=-1, keepdim=True)
    nothing = together.new_zeros(())
    return same_up_to_rounding(*(torch.where(counts, x, nothing) for x in (together, torch.cat(list(alone)))))


def same_up_to_rounding(together: Tensor, alone: Tensor) -> bool:
    """Whether what an example gives in a batch is what it gives alone: rounding depends on the size of the batch."""
    if not together.numel():
        return True
    tolerance = 5e-2 if together.dtype in (torch.float16, torch.bfloat16) else 1e-3
    return bool((together - alone).abs().max() <= tolerance * together.abs().max())
