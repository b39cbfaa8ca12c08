"""Stopping: early stopping and the best checkpoint, by the source's development metric and nothing else."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Stopping:
    """What the source says.

    Args:
        weights: what a checkpoint of the model consists of, by name; the tensors themselves.
        patience: records in a row without a better source metric before training stops; None: never.
        restore: keep the weights of the best record (the first, of equals), for the end.

    Attributes:
        best, best_step: the highest source metric so far, and when it was.
    """

    def __init__(self, weights: dict[str, Tensor], patience: int | None, restore: bool) -> None:
        if patience is not None and patience < 1:
            raise ValueError(f"expected patience of at least 1 record, got {patience}")
        self.weights, self.patience, self.restore = weights, patience, restore
        self.best, self.best_step, self.since = float("-inf"), -1, 0
        self.kept: dict[str, Tensor] = {}

    def see(self, step: int, metric: float) -> bool:
        """Notes a source metric; whether to stop."""
        if metric > self.best:
            self.best, self.best_step, self.since = metric, step, 0
            if self.restore:
                self.kept = {name: weight.detach().clone() for name, weight in self.weights.items()}
        else:
            self.since += 1
        return self.patience is not None and self.since >= self.patience

    @torch.no_grad()
    def put_best_back(self) -> None:
        for name, weight in self.kept.items():
            self.weights[name].copy_(weight)

    def state(self) -> dict[str, Any]:
        return {"best": self.best, "best_step": self.best_step, "since": self.since}

    def load(self, state: dict[str, Any], kept: dict[str, Tensor]) -> None:
        self.best, self.best_step, self.since = state["best"], state["best_step"], state["since"]
        self.kept = {name: weight.to(self.weights[name].device) for name, weight in kept.items()}
