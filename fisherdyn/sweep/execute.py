"""How one run is trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
import xarray as xr

from .. import policies, record, tasks
from ..policies import Policy
from ..tasks.metrics import AnswerMetric
from ..train import Metric, fit
from .runs import Run, Settings


def execute(
    run: Run,
    settings: Settings,
    on_step: Callable[[int, float], None] | None = None,
    known: Mapping[str, Policy] = policies.NAMED,
) -> xr.Dataset:
    """Trains one run from scratch; a pure function of its arguments (on one kind of machine).

    Args:
        on_step: called with the number of updates made and the last one's loss.
        known: the policies that a run may name, by id.
    """
    # One thread whatever the engine: sums in another order would be other numbers.
    torch.set_num_threads(1)
    settings = settings.of(run)
    task = tasks.load(settings.task, **settings.options)
    model = task.build_model(run.seed).to(settings.device)
    # Dropout, where the task has it, draws from the global state.
    torch.manual_seed(run.seed)
    metrics = task.evaluate()
    ds = fit(
        model,
        task.train_loader(run.seed),
        policy=policies.permutation(run.order) if run.order else known[run.policy],
        interval=settings.interval,
        steps=settings.steps,
        lr=settings.lr,
        layers=task.layers(model),
        probe_loader=task.probe_loader(),
        evaluate_source=task.evaluate_source(),
        evaluate=metrics,
        record_every=settings.record_every,
        evaluate_every=settings.evaluate_every,
        seed=run.seed,
        on_step=on_step,
        **settings.fit,
    )
    return _with_distances(_with_exact_match(ds, metrics), task.distances)


def _with_exact_match(ds: xr.Dataset, metrics: Mapping[str, Metric]) -> xr.Dataset:
    """The exact match beside the F1 of extraction, from the calls that gave the F1; the best checkpoint's is the last."""
    if not all(isinstance(metric, AnswerMetric) for metric in metrics.values()):
        return ds
    calls = np.array([metric.exact_matches for metric in metrics.values()]).T  # type: ignore[attr-defined]
    ds["exact_match"] = (("eval_step", "target"), calls[: ds.sizes["eval_step"]])
    if "metric_at_best" in ds:
        ds["exact_match_at_best"] = (("target",), calls[-1])
    return record.describe(ds)


def _with_distances(ds: xr.Dataset, distances: Mapping[str, float]) -> xr.Dataset:
    if not distances:
        return ds
    return record.describe(
        ds.assign_coords(distance=("target", [distances[str(target)] for target in ds["target"].values]))
    )
