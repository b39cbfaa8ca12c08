"""fit(): Algorithm 1 as one visible loop, recorded as it goes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
import xarray as xr
from torch import Tensor, nn

from . import record
from .fisher.batches import length_of
from .layers import LayerChoice, Layers, resolve_layers
from .loop.checkpoint import Checkpointer
from .loop.executor import Executor
from .loop.feed import Feed
from .loop.results import TargetMetrics, schedule_variables
from .loop.stopping import EarlyStopping
from .loop.weights import TrainedWeights
from .policies import Policy, Scoring
from .recording.recorder import Recorder
from .schedule import Unfreezing
from .settings import Checkpoints, Evaluation, Execution, Measurement, Optimization
from .validation import Whole, check

__all__ = ["fit"]

LR_SCHEDULES: dict[str, Callable[[int, int], float]] = {
    "constant": lambda step, steps: 1.0,
    "linear": lambda step, steps: (steps - step) / steps,
}
"""Share of the learning rate at an update; neither warms up."""


def fit(
    model: nn.Module,
    train_loader: Iterable[dict[str, Tensor]],
    *,
    policy: Policy,
    interval: int | Sequence[int],
    optimization: Optimization,
    measurement: Measurement,
    evaluation: Evaluation = Evaluation(),
    execution: Execution = Execution(),
    checkpoints: Checkpoints | None = None,
    layers: LayerChoice = None,
    seed: int = 0,
    on_step: Callable[[int, float], None] | None = None,
) -> xr.Dataset:
    """Generalised scheduled unfreezing (Algorithm 1 of the paper): trains in place and returns the record.

    The layers that the policy starts with, and everything trainable that belongs to no layer (the classifier), are open
    at step 0; SELECT is asked before the forward pass of steps k, 2k, ... AdamW holds every layer from the start, so the
    state of a layer begins when it opens.

    Args:
        model: returns an output with .loss for a batch with labels, and with .logits.
        train_loader: batches as dicts; read again and again, in its own order.
        policy, interval: SELECT, and k or the steps at which it is asked; see `Unfreezing`.
        optimization: steps, learning rate, ...
        measurement: what tr(F) is recorded on, and what FUN measures on.
        evaluation: metrics of source and targets, early stopping, and whether to keep the best weights.
        execution: precision, memory, compilation, processes. Several processes with `accumulate` batches each read what
            one process with so many times more reads.
        checkpoints: where to save the run; None: it is not saved.
        layers: see `resolve_layers`.
        seed: of tr(F)'s label noise and of a random policy. The global random state is used by dropout alone.
        on_step: called after every update with the number of updates made and the loss; for progress.

    Returns:
        Dataset over (step, layer), as `Recorder` makes it: the state at step t is recorded at update t. Beside it:
        source_metric (step); metric (eval_step, target); selected (layer). Of FUN's choices (selection_step): what was
        measured, on how many examples, how sure it was and what was chosen; see `Selection`. With keep_best: best_step,
        metric_at_best (target).

    Raises:
        ValueError: a policy that names unknown layers; a loss or tr(F) that is not finite (with the step); a checkpoint of
            another run. The settings refuse wrong values when they are made.

    Example:
        >>> ds = fit(model, loader, policy=policies.fun(), interval=50, optimization=Optimization(steps=1000, lr=1e-3),
        ...          measurement=Measurement(loader=probe_loader))
    """
    _validate_types(optimization, measurement, evaluation, execution, checkpoints)
    seed = check("seed", seed, Whole)
    executor = Executor(model, execution)
    unfreezing = Unfreezing(policy, resolve_layers(model, layers), interval, seed=seed)
    parameters = _trained_parameters(model, unfreezing.layers)
    trained = list(parameters.values())
    optimizer = torch.optim.AdamW(trained, lr=optimization.lr, weight_decay=optimization.weight_decay, fused=True)
    selection_loader = train_loader if measurement.selection_loader is None else measurement.selection_loader
    unfreezing.attach(model, optimizer, selection_loader, labels=measurement.labels, together=executor.processes > 1)
    feed = Feed(train_loader, executor)
    weights = TrainedWeights({**parameters, **dict(model.named_buffers())})
    stopping = EarlyStopping(weights, evaluation.patience, evaluation.keep_best)
    targets = TargetMetrics(model, evaluation.targets)
    run = {
        "policy": policy.id,
        "interval": unfreezing.interval,
        "seed": seed,
        **asdict(optimization),
        "precision": execution.precision,
        "processes": executor.processes,
    }
    recorder = Recorder(
        model,
        measurement.loader,
        every=measurement.every,
        layers=unfreezing.layers,
        labels=measurement.labels,
        generator=torch.Generator().manual_seed(seed),
        attrs=run,
    ).attach(optimizer)
    checkpointer = Checkpointer(
        checkpoints,
        {name: str(value) for name, value in run.items()}
        | {"train_loader": _describe(train_loader), "scoring": _describe(policy.scoring)}
        | _identity("measurement", {**vars(measurement), "selection_loader": selection_loader})
        | _identity("evaluation", vars(evaluation)),
        {
            "weights": weights,
            "optimizer": optimizer,
            "unfreezing": unfreezing,
            "recorder": recorder,
            "stopping": stopping,
            "targets": targets,
            "feed": feed,
        },
        executor,
    )

    with executor.running(len(unfreezing.layers)):
        for step in range(checkpointer.resume(), optimization.steps + 1):
            checkpointer.save(step)
            unfreezing.step(step)
            last = step == optimization.steps
            if evaluation.source is not None and (last or step % measurement.every == 0):
                metric = evaluation.source(model)
                recorder.log(source_metric=metric)
                last |= stopping.should_stop(step, metric)
            if last or (evaluation.every and step and step % evaluation.every == 0):
                targets.evaluate(step)
            if last:
                break
            model.train()
            optimizer.zero_grad()
            batches = feed.take(optimization.accumulate)
            losses = [executor.backward(batch, optimization.accumulate) for batch in batches]
            loss = executor.average(trained, torch.stack(losses).sum())
            if not torch.isfinite(loss):
                raise ValueError(
                    f"the training loss is {loss.item()} at step {step}: lower lr ({optimization.lr}) or look at the batch"
                )
            nn.utils.clip_grad_norm_(trained, optimization.max_grad_norm)
            for group in optimizer.param_groups:
                group["lr"] = optimization.lr * LR_SCHEDULES[optimization.lr_schedule](step, optimization.steps)
            optimizer.step()  # which the recorder records, where a record is due
            recorder.log(train_loss=loss)
            if on_step is not None:
                on_step(step + 1, loss.item())

    recorder.close()
    variables, coords = (a | b for a, b in zip(schedule_variables(unfreezing), targets.variables(), strict=True))
    if evaluation.keep_best:
        stopping.restore_best()
        variables["best_step"] = ((), stopping.best_step)
        if evaluation.targets:
            variables["metric_at_best"] = (("target",), targets.now())
    return record.describe(recorder.dataset.assign_coords(coords).assign(variables))


def _validate_types(*given: Any) -> None:
    kinds = (Optimization, Measurement, Evaluation, Execution, Checkpoints)
    for value, kind in zip(given, kinds, strict=True):
        if not isinstance(value, kind) and not (kind is Checkpoints and value is None):
            name = kind.__name__
            raise TypeError(f"expected {name.lower()} as {name}(...) of fisherdyn.settings, got {type(value).__name__}")


def _trained_parameters(model: nn.Module, layers: Layers) -> dict[str, nn.Parameter]:
    """Those of every layer, open or frozen, and those that belong to no layer and are trainable."""
    in_layers = {name for names in layers.values() for name in names}
    return {name: p for name, p in model.named_parameters() if name in in_layers or p.requires_grad}


def _identity(section: str, values: Mapping[str, Any]) -> dict[str, str]:
    """What must be the same for a run to go on from a checkpoint, by the names that a user writes."""
    return {f"{section}.{name}": _describe(value) for name, value in values.items()}


def _describe(value: Any) -> str:
    """A setting in words that are the same in another process: functions and loaders have no other identity."""
    if value is None or isinstance(value, str | int | float | Scoring):
        return str(value)
    if isinstance(value, Mapping):
        return f"of {', '.join(value)}"
    return "a function" if callable(value) else f"of {length_of(value)} batches"
