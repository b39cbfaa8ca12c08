"""Small models of many kinds, each with inputs, in float32; `ZOO` names them."""

from __future__ import annotations

import torch

from . import adapted, huggingface, networks
from .huggingface import SMALL
from .specimen import ZOO, Specimen, tokens

__all__ = ["SMALL", "ZOO", "Specimen", "adapted", "huggingface", "networks", "specimen", "tokens"]


def specimen(name: str) -> Specimen:
    torch.manual_seed(3)
    made = ZOO[name]()
    made.model.eval()
    return made
