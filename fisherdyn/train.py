"""fit(): Algorithm 1 as one visible loop, recorded as it goes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import xarray as xr
from torch import Tensor, nn

from .fisher.batches import length_of
from .fisher.model_state import device_of
from .layers import LayerChoice, resolve_layers
from .likelihoods import TRUE_LABELS
from .loop.execution import Execution
from .loop.feed import Feed
from .loop.journal import Journal, Metric
from .loop.resume import Resumable
from .loop.stopping import Stopping
from .policies import Policy
from .schedule import Unfreezing
from .validation import Count, Rate, Whole, check

__all__ = ["Metric", "fit"]

LR_SCHEDULES = {"constant": lambda step, steps: 1.0, "linear": lambda step, steps: (steps - step) / steps}
"""Share of the learning rate at an update; neither warms up."""


def fit(
    model: nn.Module,
    train_loader: Iterable[dict[str, Tensor]],
    *,
    policy: Policy,
    interval: int | Sequence[int],
    steps: int,
    lr: float,
    probe_loader: Iterable[dict[str, Tensor]],
    selection_loader: Iterable[dict[str, Tensor]] | None = None,
    timing: str = "prose",
    layers: LayerChoice = None,
    evaluate_source: Metric | None = None,
    evaluate: Mapping[str, Metric] | None = None,
    record_every: int = 25,
    evaluate_every: int | None = None,
    labels: str = "rademacher",
    lr_schedule: str = "constant",
    weight_decay: float = 0.01,
    max_grad_norm: float = 1.0,
    accumulate: int = 1,
    patience: int | None = None,
    keep_best: bool = False,
    precision: str = "float32",
    gradient_checkpointing: bool = False,
    compile: bool | str = False,
    accelerator: Any = None,
    checkpoints: str | Path | None = None,
    checkpoint_every: int = 100,
    seed: int = 0,
    on_step: Callable[[int, float], None] | None = None,
) -> xr.Dataset:
    """Generalised scheduled unfreezing (Algorithm 1 of the paper): trains in place and returns the record.

    The layers that the policy starts with, and everything trainable that belongs to no layer (the classifier), are open
    at step 0; SELECT is asked before the forward pass of steps k, 2k, ... AdamW holds every layer from the start, so the
    state of a layer begins when it opens. No warm-up, gradient norm clipped.

    Args:
        model: returns an output with .loss for a batch with labels, and with .logits.
        train_loader: batches as dicts; read again and again, in its own order.
        policy, interval, timing: SELECT, k (or the steps at which it is asked), and whose reading of "every k steps": see
            `Unfreezing`.
        steps: optimizer updates.
        lr, lr_schedule: AdamW's; "constant", or "linear" to 0.
        probe_loader: what tr(F) is measured on, the same at every record, for all layers, open or frozen.
        selection_loader: what FUN measures on; None: train_loader, as in the paper. Reading it moves no order of training
            that torch generators draw; a loader that counts its readings itself needs another one here.
        layers: see `resolve_layers`.
        evaluate_source: the source's development metric, taken at every record.
        evaluate: target -> metric, taken every `evaluate_every` steps (default: at the end only).
        record_every: steps between records; step 0 and the last step are always recorded.
        labels: of tr(F): "rademacher", "exact" or "mc".
        weight_decay, max_grad_norm: AdamW's, and the clipping threshold.
        accumulate: batches an update, of equal weight.
        patience: stop after so many records without a better source metric.
        keep_best: end with the weights of the record with the best source metric. Like `patience` it sees no target.
        precision, gradient_checkpointing, compile, accelerator: see `Execution`. Several processes with `accumulate` batches
            each read what one process with so many times more reads.
        checkpoints: a folder; a run that was cut off goes on from its newest checkpoint, bit for bit as if it had not been.
        checkpoint_every: steps between checkpoints.
        seed: of tr(F)'s label noise and of a random policy. The global random state is used by dropout alone.
        on_step: called after every update with the number of updates made and the loss; for progress.

    Returns:
        Dataset over (step, layer): fisher_trace and its standard error, trainable, train_loss; source_metric (step);
        metric (eval_step, target); selected (layer). The state at step t is recorded before update t. Of FUN's choices
        (selection_step): what was measured, on how many examples, how sure it was and what was chosen: see `Selection`.
        With keep_best: best_step, metric_at_best (target).

    Raises:
        ValueError: counts that are no whole numbers or below 1, an lr that is no number, labels of another Fisher; a policy
            that names unknown layers; a loss or tr(F) that is not finite (with the step); a checkpoint of another run;
            patience or keep_best without evaluate_source.
    """
    steps, record_every = check("steps", steps, Count), check("record_every", record_every, Count)
    accumulate, checkpoint_every = (
        check("accumulate", accumulate, Count),
        check("checkpoint_every", checkpoint_every, Count),
    )
    evaluate_every = check("evaluate_every", evaluate_every, Count | None)
    seed, lr = check("seed", seed, Whole), check("lr", lr, Rate)
    _refuse(labels, lr_schedule, by_source=patience is not None or keep_best, evaluate_source=evaluate_source)
    execution = Execution(model, precision, gradient_checkpointing, compile, accelerator)
    unfreezing = Unfreezing(policy, resolve_layers(model, layers), interval, timing=timing, seed=seed)
    grouped = {name for names in unfreezing.layers.values() for name in names}
    trained = {name: p for name, p in model.named_parameters() if name in grouped or p.requires_grad}
    parameters = list(trained.values())
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay, fused=True)
    measured_on = train_loader if selection_loader is None else selection_loader
    unfreezing.attach(model, optimizer, measured_on, labels=labels, together=execution.processes > 1)
    feed = Feed(train_loader, device_of(model), execution.process, execution.processes)
    journal = Journal(probe_loader, labels, seed, evaluate_source, evaluate or {})
    weights = {**trained, **dict(model.named_buffers())}
    stopping = Stopping(weights, patience, keep_best)
    configuration: dict[str, Any] = {
        "policy": policy.id,
        "interval": unfreezing.interval,
        "steps": steps,
        "lr": lr,
        "seed": seed,
        "weight_decay": weight_decay,
        "timing": timing,
        "lr_schedule": lr_schedule,
        "accumulate": accumulate,
        "precision": precision,
        "processes": execution.processes,
    }
    loaders = {"train_loader": train_loader, "probe_loader": probe_loader, "selection_loader": measured_on}
    identity: dict[str, Any] = {
        **configuration,
        "record_every": record_every,
        "evaluate_every": evaluate_every,
        "max_grad_norm": max_grad_norm,
        "labels": labels,
        "patience": patience,
        "keep_best": keep_best,
        "scoring": policy.scoring and asdict(policy.scoring),
        "evaluate_source": evaluate_source is not None,
        "targets": list(evaluate or {}),
        **{f"batches of {name}": length_of(loader) for name, loader in loaders.items()},
    }
    run = Resumable(
        checkpoints,
        checkpoint_every,
        identity,
        trained,
        weights,
        optimizer,
        unfreezing,
        feed,
        journal,
        stopping,
        execution,
    )

    with execution.set_up(len(unfreezing.layers)):
        for step in range(run.resume(), steps + 1):
            run.save(step)
            unfreezing.step(step)
            last = step == steps
            if last or step % record_every == 0:
                source = journal.record(model, unfreezing, step)
                last |= source is not None and stopping.see(step, source)
            if last or (evaluate_every and step and step % evaluate_every == 0):
                journal.evaluate(model, step)
            if last:
                break
            model.train()
            optimizer.zero_grad()
            loss = torch.stack([execution.backward(batch, accumulate) for batch in feed.take(accumulate)]).sum()
            loss = execution.average(parameters, loss)
            if not torch.isfinite(loss):
                raise ValueError(
                    f"the training loss is {loss.item()} at step {step}: lower lr ({lr}) or look at the batch"
                )
            nn.utils.clip_grad_norm_(parameters, max_grad_norm)
            for group in optimizer.param_groups:
                group["lr"] = lr * LR_SCHEDULES[lr_schedule](step, steps)
            optimizer.step()
            journal.losses.append(loss.item())
            if on_step is not None:
                on_step(step + 1, journal.losses[-1])

    if keep_best:
        stopping.put_best_back()
    best_step = stopping.best_step if keep_best else None
    return journal.dataset(unfreezing, {**configuration, "device": str(device_of(model))}, best_step, model)


def _refuse(labels: str, lr_schedule: str, by_source: bool, evaluate_source: Metric | None) -> None:
    """Refuses options that name nothing, or that do not go together."""
    if labels not in TRUE_LABELS:
        raise ValueError(
            f"the record is of the true Fisher: expected labels of {' or '.join(TRUE_LABELS)}, got {labels!r} (others are "
            "for fisher_trace)"
        )
    if lr_schedule not in LR_SCHEDULES:
        raise ValueError(f"unknown lr_schedule={lr_schedule!r}: choose one of {', '.join(LR_SCHEDULES)}")
    if by_source and evaluate_source is None:
        raise ValueError("patience and keep_best go by the source's metric: pass evaluate_source")
