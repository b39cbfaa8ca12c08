"""fit(): Algorithm 1 as one visible loop, recorded as it goes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from . import record
from .fisher.forward import device_of
from .fisher.trace import FisherTrace, fisher_trace
from .layers import LayerChoice, resolve_layers
from .policies import Policy
from .schedule import Unfreezing

Metric = Callable[[nn.Module], float]
"""A model to a number, such as accuracy on one set; it leaves the model as it found it."""


def fit(
    model: nn.Module,
    train_loader: Iterable[dict[str, Tensor]],
    *,
    policy: Policy,
    interval: int,
    steps: int,
    lr: float,
    probe_loader: Iterable[dict[str, Tensor]],
    layers: LayerChoice = None,
    evaluate_source: Metric | None = None,
    evaluate: Mapping[str, Metric] | None = None,
    record_every: int = 25,
    evaluate_every: int | None = None,
    labels: str = "class_mix",
    weight_decay: float = 0.01,
    max_grad_norm: float = 1.0,
    seed: int = 0,
    on_step: Callable[[int, float], None] | None = None,
) -> xr.Dataset:
    """Generalised scheduled unfreezing (Algorithm 1 of the paper): trains in place and returns the record.

    The layers that the policy starts with, and everything trainable that belongs to no layer (the classifier), are open
    at step 0; SELECT is asked before the forward pass of steps k, 2k, ... AdamW holds every layer from the start, so the
    state of a layer begins when it opens. Constant learning rate, no warm-up, gradient norm clipped.

    Args:
        model: returns an output with .loss for a batch with labels, and with .logits.
        train_loader: batches as dicts; read again and again, in its own order.
        policy, interval: SELECT and k.
        steps: optimizer updates.
        lr: AdamW's.
        probe_loader: what tr(F) is measured on, the same at every record, for all layers, open or frozen.
        layers: see `resolve_layers`.
        evaluate_source: the source's development metric, taken at every record.
        evaluate: target -> metric, taken every `evaluate_every` steps (default: at the end only).
        record_every: steps between records; step 0 and the last step are always recorded.
        labels: of tr(F): "class_mix", "exact" or "sampled".
        weight_decay, max_grad_norm: AdamW's, and the clipping threshold.
        seed: of tr(F)'s label noise and of a random policy. The global random state is used by dropout alone.
        on_step: called after every update with the number of updates made and the loss; for progress.

    Returns:
        Dataset over (step, layer): fisher_trace and its standard error, trainable, train_loss; source_metric (step);
        metric (eval_step, target); selected (layer). The state at step t is recorded before update t.

    Raises:
        ValueError: steps, interval or record_every below 1; a policy that names unknown layers; a loss or tr(F) that is not
            finite (with the step).
    """
    for name, value in {"steps": steps, "record_every": record_every, "evaluate_every": evaluate_every}.items():
        if value is not None and value < 1:
            raise ValueError(f"expected {name} of at least 1, got {value}")
    if not isinstance(policy, Policy):
        raise ValueError(f"expected a policy such as fisherdyn.policies.fun(), got {policy!r}")
    unfreezing = Unfreezing(policy, resolve_layers(model, layers), interval)
    # Three generators: how often tr(F) is recorded must change neither what a policy draws nor what it measures.
    chance, selecting, recording = (torch.Generator().manual_seed(seed) for _ in range(3))
    log = _Log(probe_loader, labels, recording, evaluate_source, evaluate or {})
    grouped = {name for names in unfreezing.layers.values() for name in names}
    parameters = [p for name, p in model.named_parameters() if name in grouped or p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay, fused=True)
    batches = _forever(train_loader, device_of(model))

    for step in range(steps + 1):
        if unfreezing.due(step):
            scores = log.measure(model, unfreezing, step, selecting).scores() if policy.needs_scores else {}
            unfreezing.select(step, scores, chance)
        unfreezing.apply(model, step)
        if step % record_every == 0 or step == steps:
            log.record(model, unfreezing, step)
        if step == steps or (evaluate_every and step and step % evaluate_every == 0):
            log.evaluate(model, step)
        if step == steps:
            break
        model.train()
        loss = _loss(model, next(batches))
        if not torch.isfinite(loss):
            raise ValueError(f"the training loss is {loss.item()} at step {step}: lower lr ({lr}) or look at the batch")
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, max_grad_norm)
        optimizer.step()
        log.losses.append(loss.item())
        if on_step is not None:
            on_step(step + 1, log.losses[-1])

    configuration = {"policy": policy.name, "interval": interval, "steps": steps, "lr": lr, "seed": seed}
    return log.dataset(unfreezing, {**configuration, "weight_decay": weight_decay, "device": str(device_of(model))})


def _loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    loss = getattr(model(**batch), "loss", None)
    if loss is None:
        raise ValueError(f"expected an output with .loss: the batch has {', '.join(batch)}; add labels to it")
    return loss


def _forever(loader: Iterable[dict[str, Tensor]], device: torch.device) -> Iterator[dict[str, Tensor]]:
    while True:
        empty = True
        for batch in loader:
            empty = False
            if not isinstance(batch, Mapping):
                raise ValueError(f"expected batches that are dicts by argument name, got {type(batch).__name__}")
            yield {name: value.to(device) for name, value in batch.items()}
        if empty:
            raise ValueError(
                "train_loader gave no batch: expected one that can be read again and again (not a generator)"
            )


class _Log:
    """What fit() has seen so far."""

    def __init__(
        self,
        probe_loader: Iterable[dict[str, Tensor]],
        labels: str,
        generator: torch.Generator,
        evaluate_source: Metric | None,
        evaluate: Mapping[str, Metric],
    ) -> None:
        self.probe_loader, self.labels, self.generator = probe_loader, labels, generator
        self.evaluate_source, self.targets = evaluate_source, evaluate
        self.losses: list[float] = []
        self.steps: list[int] = []
        self.rows: dict[str, list[Any]] = {}
        self.eval_steps: list[int] = []
        self.metrics: list[list[float]] = []
        self.last: FisherTrace | None = None

    def measure(self, model: nn.Module, unfreezing: Unfreezing, step: int, generator: torch.Generator) -> FisherTrace:
        try:
            return fisher_trace(
                model, self.probe_loader, layers=unfreezing.layers, labels=self.labels, generator=generator
            )
        except ValueError as error:
            raise ValueError(f"tr(F) at step {step}: {error}") from error

    def record(self, model: nn.Module, unfreezing: Unfreezing, step: int) -> None:
        self.last = trace = self.measure(model, unfreezing, step, self.generator)
        is_open = unfreezing.open_at(step)
        row = {
            "fisher_trace": trace.trace.numpy(),
            "fisher_trace_se": trace.se.numpy(),
            "trainable": record.flags([layer in is_open for layer in unfreezing.layers]),
            "train_loss": float(np.mean(self.losses)) if self.losses else np.nan,
        }
        if self.evaluate_source is not None:
            row["source_metric"] = self.evaluate_source(model)
        self.losses = []
        self.steps.append(step)
        for name, value in row.items():
            self.rows.setdefault(name, []).append(value)

    def evaluate(self, model: nn.Module, step: int) -> None:
        if self.targets:
            self.eval_steps.append(step)
            self.metrics.append([metric(model) for metric in self.targets.values()])

    def dataset(self, unfreezing: Unfreezing, attrs: dict[str, Any]) -> xr.Dataset:
        assert self.last is not None
        opened = {layer: step for step, layers in unfreezing.decisions for layer in layers}
        over = dict.fromkeys(("fisher_trace", "fisher_trace_se", "trainable"), ("step", "layer"))
        variables: dict[str, tuple[tuple[str, ...], Any]] = {
            name: (over.get(name, ("step",)), np.array(rows)) for name, rows in self.rows.items()
        }
        variables["num_params"] = (("layer",), np.array(self.last.num_params))
        variables["selected"] = (("layer",), np.array([opened.get(layer, -1) for layer in unfreezing.layers]))
        coords: dict[str, Any] = {"layer": list(unfreezing.layers), "step": self.steps}
        if self.targets:
            variables["metric"] = (("eval_step", "target"), np.array(self.metrics))
            coords |= {"eval_step": self.eval_steps, "target": list(self.targets)}
        how = {"estimator": self.last.estimator, "likelihood": self.last.likelihood, "mode": "eval"}
        return record.build(variables, coords, {**how, "examples": self.last.examples, **attrs})
