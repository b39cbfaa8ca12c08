"""What a run reached and decided, as variables beside its record: the targets' metrics, and the schedule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import nn

from .. import record
from ..recording.logged import as_number
from ..schedule import Unfreezing
from ..settings import Metric

Variables = dict[str, tuple[tuple[str, ...], Any]]
"""Name -> (dimensions, values)."""


class TargetMetrics:
    """The targets' metrics, along `eval_step`."""

    def __init__(self, model: nn.Module, targets: Mapping[str, Metric]) -> None:
        self.model, self.targets = model, targets
        self._steps: list[int] = []
        self._metrics: list[list[float]] = []

    def evaluate(self, step: int) -> None:
        if self.targets:
            self._steps.append(step)
            self._metrics.append(self.now())

    def now(self) -> list[float]:
        """Of the model as it is."""
        return [float(as_number(name, metric(self.model))) for name, metric in self.targets.items()]

    def variables(self) -> tuple[Variables, dict[str, Any]]:
        """Variables and coordinates."""
        if not self.targets:
            return {}, {}
        return (
            {"metric": (("eval_step", "target"), np.array(self._metrics))},
            {"eval_step": self._steps, "target": list(self.targets)},
        )

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self._steps, "metrics": self._metrics}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._steps, self._metrics = state["steps"], state["metrics"]


def schedule_variables(unfreezing: Unfreezing) -> tuple[Variables, dict[str, Any]]:
    """When each layer opened, and what each choice rested on, as variables and coordinates."""
    layers, selections = list(unfreezing.layers), unfreezing.selections
    opened = {layer: step for step, chosen in unfreezing.decisions for layer in chosen}
    variables: Variables = {"selected": (("layer",), np.array([opened.get(layer, -1) for layer in layers]))}
    if not selections:
        return variables, {}
    # NaN for layers that were no candidates.
    scores = np.array([[s.scores.get(layer, (np.nan, np.nan)) for layer in layers] for s in selections])
    # A policy that opens nothing at the start has an empty decision of step 0.
    chosen = {step: "+".join(opened) for step, opened in unfreezing.decisions if step or opened}
    variables |= {
        "selection_trace": (("selection_step", "layer"), scores[..., 0]),
        "selection_trace_se": (("selection_step", "layer"), scores[..., 1]),
        "selection_layer": (("selection_step",), np.array([chosen.get(s.step, "") for s in selections])),
        "selection_examples": (("selection_step",), np.array([s.examples for s in selections])),
        "selection_confidence": (("selection_step",), np.array([s.confidence for s in selections])),
        "selection_tie": (("selection_step",), record.flags([s.tie for s in selections])),
    }
    return variables, {"selection_step": [selection.step for selection in selections]}
