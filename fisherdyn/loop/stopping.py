"""EarlyStopping: when to stop, and which weights were best, by the source's development metric and nothing else."""

from __future__ import annotations

from typing import Any

from .weights import TrainedWeights


class EarlyStopping:
    """Follows the source metric from record to record.

    Args:
        weights: what is kept of the best record.
        patience: records in a row without a better source metric before training stops; None: never.
        keep_best: keep the weights of the best record (the first, of equals).

    Attributes:
        best, best_step: the highest source metric so far, and its step.
    """

    def __init__(self, weights: TrainedWeights, patience: int | None, keep_best: bool) -> None:
        self.weights, self.patience, self.keep_best = weights, patience, keep_best
        self.best, self.best_step = float("-inf"), -1
        self._since = 0
        self._kept: dict[str, Any] = {}

    def should_stop(self, step: int, metric: float) -> bool:
        """Notes a source metric; whether to stop."""
        if metric > self.best:
            self.best, self.best_step, self._since = metric, step, 0
            if self.keep_best:
                self._kept = self.weights.state_dict()
        else:
            self._since += 1
        return self.patience is not None and self._since >= self.patience

    def restore_best(self) -> None:
        """Puts the weights of the best record back, where they were kept."""
        if self._kept:
            self.weights.load_state_dict(self._kept)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "best_step": self.best_step, "since": self._since, "kept": self._kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, self.best_step, self._since = state["best"], state["best_step"], state["since"]
        self._kept = state["kept"]
