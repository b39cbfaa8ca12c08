"""What a zoo is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass
class Specimen:
    model: nn.Module
    inputs: dict[str, Tensor] | Tensor
    layers: str | None = None
    """A regular expression, where the default choice would take a module that hooks refuse."""

    mappable: bool = True
    """Whether torch.func can vmap it."""
    single_inside: bool = False
    """Whether it computes in float32 whatever it is given (as Llama's norm does): 1e-9 is out of reach."""
    likelihood: str | None = None
    slowly: str | None = None
    """What the warning of hooks says, where they go on example by example."""

    @property
    def loader(self) -> list[dict[str, Tensor] | Tensor]:
        return [self.inputs]


ZOO: dict[str, Callable[[], Specimen]] = {}


def keep(make: Callable[[], Specimen]) -> Callable[[], Specimen]:
    ZOO[make.__name__] = make
    return make


def tokens(batch: int = 5, length: int = 7, vocabulary: int = 30) -> dict[str, Tensor]:
    """Of three lengths."""
    ids = torch.randint(5, vocabulary, (batch, length))
    mask = torch.ones_like(ids)
    for i in range(batch):
        mask[i, length - i % 3 :] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}
