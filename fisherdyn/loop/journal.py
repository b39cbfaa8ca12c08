"""Journal: what fit() has seen so far, and the record that it becomes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from .. import record
from ..fisher.distributed import rank_generator, shard
from ..fisher.trace import fisher_trace
from ..schedule import Unfreezing
from ..selection import Selection

Metric = Callable[[nn.Module], float]
"""A model to a number, such as accuracy on one set; it leaves the model as it found it."""

PER_LAYER = ("fisher_trace", "fisher_trace_se", "trainable")


class Journal:
    """Rows as they come: tr(F), losses and the source's metric at every record, the targets' at every evaluation."""

    def __init__(
        self,
        probe_loader: Iterable[dict[str, Tensor]],
        labels: str,
        seed: int,
        evaluate_source: Metric | None,
        targets: Mapping[str, Metric],
    ) -> None:
        self.probe_loader, self.labels = probe_loader, labels
        self.generator = torch.Generator().manual_seed(seed)
        self.evaluate_source, self.targets = evaluate_source, targets
        self.losses: list[float] = []
        self.rows: dict[str, list[Any]] = {}
        self.metrics: list[list[float]] = []
        self.steps: list[int] = []
        self.eval_steps: list[int] = []
        self.how: dict[str, Any] = {}

    def record(self, model: nn.Module, unfreezing: Unfreezing, step: int) -> float | None:
        """Measures and notes the state at a step; the source's metric, if there is one."""
        try:
            trace = fisher_trace(
                model,
                shard(self.probe_loader),
                layers=unfreezing.layers,
                labels=self.labels,
                generator=rank_generator(self.generator),
            )
        except ValueError as error:
            raise ValueError(f"tr(F) at step {step}: {error}") from error
        is_open = unfreezing.open_at(step)
        row = {
            "fisher_trace": trace.trace.tolist(),
            "fisher_trace_se": trace.se.tolist(),
            "trainable": [int(layer in is_open) for layer in unfreezing.layers],
            "train_loss": float(np.mean(self.losses)) if self.losses else np.nan,
        }
        source = self.evaluate_source(model) if self.evaluate_source is not None else None
        if source is not None:
            row["source_metric"] = source
        how = {"estimator": trace.estimator, "likelihood": trace.likelihood, "mode": "eval", "examples": trace.examples}
        self.how = {**how, "num_params": list(trace.num_params)}
        self.losses = []
        self.steps.append(step)
        for name, value in row.items():
            self.rows.setdefault(name, []).append(value)
        return source

    def evaluate(self, model: nn.Module, step: int) -> None:
        if self.targets:
            self.eval_steps.append(step)
            self.metrics.append(self._metrics(model))

    def _metrics(self, model: nn.Module) -> list[float]:
        return [metric(model) for metric in self.targets.values()]

    def state(self) -> dict[str, Any]:
        """In types that JSON has, floats to the bit."""
        names = ("losses", "rows", "metrics", "steps", "eval_steps", "how")
        return {name: getattr(self, name) for name in names} | {
            "generator": self.generator.get_state().numpy().tobytes().hex()
        }

    def load(self, state: dict[str, Any]) -> None:
        self.generator.set_state(torch.frombuffer(bytearray.fromhex(state["generator"]), dtype=torch.uint8))
        for name in state.keys() - {"generator"}:
            setattr(self, name, state[name])

    def dataset(
        self, unfreezing: Unfreezing, configuration: Mapping[str, Any], best_step: int | None, model: nn.Module
    ) -> xr.Dataset:
        """The record; `best_step` is when the weights that the model now has, its best, were taken."""
        layers = list(unfreezing.layers)
        variables: dict[str, tuple[tuple[str, ...], Any]] = {
            name: (("step", "layer") if name in PER_LAYER else ("step",), np.array(rows))
            for name, rows in self.rows.items()
        }
        variables["trainable"] = (("step", "layer"), record.flags(self.rows["trainable"]))
        opened = {layer: step for step, chosen in unfreezing.decisions for layer in chosen}
        variables["num_params"] = (("layer",), np.array(self.how["num_params"]))
        variables["selected"] = (("layer",), np.array([opened.get(layer, -1) for layer in layers]))
        coords: dict[str, Any] = {"layer": layers, "step": self.steps}
        if self.targets:
            variables["metric"] = (("eval_step", "target"), np.array(self.metrics))
            coords |= {"eval_step": self.eval_steps, "target": list(self.targets)}
        if best_step is not None:
            variables["best_step"] = ((), best_step)
            if self.targets:
                variables["metric_at_best"] = (("target",), np.array(self._metrics(model)))
        if unfreezing.selections:
            variables |= _selections(unfreezing.selections, layers, unfreezing.decisions)
            coords["selection_step"] = [selection.step for selection in unfreezing.selections]
        how = {name: value for name, value in self.how.items() if name != "num_params"}
        return record.build(variables, coords, {**how, **configuration})


def _selections(
    selections: list[Selection], layers: list[str], decisions: list[tuple[int, tuple[str, ...]]]
) -> dict[str, tuple[tuple[str, ...], Any]]:
    """What each choice rested on; nan for layers that were no candidates."""
    scores = np.array([[s.scores.get(layer, (np.nan, np.nan)) for layer in layers] for s in selections])
    chosen = {step: "+".join(opened) for step, opened in decisions if step or opened}
    return {
        "selection_trace": (("selection_step", "layer"), scores[..., 0]),
        "selection_trace_se": (("selection_step", "layer"), scores[..., 1]),
        "selection_layer": (("selection_step",), np.array([chosen.get(s.step, "") for s in selections])),
        "selection_examples": (("selection_step",), np.array([s.examples for s in selections])),
        "selection_confidence": (("selection_step",), np.array([s.confidence for s in selections])),
        "selection_tie": (("selection_step",), record.flags([s.tie for s in selections])),
    }
