"""Small models of many kinds, each with inputs, in float32; `ZOO` names them, `REFUSED` those that hooks must refuse."""

from __future__ import annotations

import torch

from . import adapted, huggingface, networks
from .specimen import REFUSED, WAITING, ZOO, Specimen

__all__ = ["REFUSED", "WAITING", "ZOO", "Specimen", "adapted", "huggingface", "networks", "specimen"]


def specimen(name: str) -> Specimen:
    torch.manual_seed(3)
    made = (ZOO[name] if name in ZOO else REFUSED[name][0])()
    made.model.eval()
    return made
