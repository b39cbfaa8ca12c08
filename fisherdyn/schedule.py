"""Unfreezing: policy x interval -> which layers are open at step t (Algorithm 1's S, lines 5 to 8).

The classifier and what the policy starts with are open at step 0; every k steps SELECT is asked for more, before that
step's forward pass, until no layer is frozen or the policy has been asked as often as there are layers.
"""

from __future__ import annotations

import torch
from torch import nn

from .layers import Layers
from .policies import Policy, Scores


class Unfreezing:
    """The schedule of one run, and the decisions made so far.

    Attributes:
        decisions: (step, layers opened), in order. Which layers are open at any step up to now follows from it alone.
    """

    def __init__(self, policy: Policy, layers: Layers, interval: int) -> None:
        if interval < 1:
            raise ValueError(f"expected an interval of at least 1 step, got {interval}")
        self.policy = policy
        self.layers = layers
        self.interval = interval
        self.decisions: list[tuple[int, tuple[str, ...]]] = [(0, policy.start(tuple(layers)))]

    def open_at(self, step: int) -> tuple[str, ...]:
        """Layers open at a step, in the order in which they opened."""
        return tuple(layer for when, opened in self.decisions if when <= step for layer in opened)

    def due(self, step: int) -> bool:
        """Whether SELECT is to be asked before this step's forward pass."""
        asked = 0 < step <= self.interval * len(self.layers) and step % self.interval == 0
        return asked and len(self.open_at(step)) < len(self.layers)

    def select(self, step: int, scores: Scores, generator: torch.Generator) -> tuple[str, ...]:
        """Asks SELECT and keeps its answer.

        Raises:
            ValueError: the policy answered with a layer that is open or unknown.
        """
        before = self.open_at(step)
        opened = self.policy.select(tuple(self.layers), before, scores, generator)
        if wrong := [layer for layer in opened if layer in before or layer not in self.layers]:
            raise ValueError(f"policy {self.policy.name!r} chose {wrong}, which are open already or unknown")
        if opened:
            self.decisions.append((step, opened))
        return opened

    def apply(self, model: nn.Module, step: int) -> None:
        """Sets requires_grad of every layer's parameters to whether it is open, and drops gradients of frozen ones.

        A gradient of None (not zero) is what keeps AdamW from decaying or moving a frozen weight, and from counting its
        steps before it opens.
        """
        is_open = set(self.open_at(step))
        for layer, names in self.layers.items():
            for name in names:
                parameter = model.get_parameter(name)
                parameter.requires_grad_(layer in is_open)
                if layer not in is_open:
                    parameter.grad = None
