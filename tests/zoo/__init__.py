"""Small models of many kinds, each with inputs, in float32; `ZOO` names them."""

from __future__ import annotations

import contextlib

import torch

from . import huggingface, networks
from .huggingface import SMALL
from .specimen import ZOO, Specimen, tokens

with contextlib.suppress(ModuleNotFoundError):  # no adapters library beside transformers 5
    from . import adapted  # noqa: F401

__all__ = ["SMALL", "ZOO", "Specimen", "huggingface", "networks", "specimen", "tokens"]


def specimen(name: str) -> Specimen:
    torch.manual_seed(3)
    made = ZOO[name]()
    made.model.eval()
    return made
