"""How one run is trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import xarray as xr

from .. import policies, record, tasks
from ..policies import Policy
from ..settings import Evaluation, Execution, Measurement, Metric, Optimization
from ..tasks.metrics import AnswerMetric
from ..train import fit
from ..validation import fields_of
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
        optimization=Optimization(steps=settings.steps, lr=settings.lr, **_of(Optimization, settings)),
        measurement=Measurement(loader=task.probe_loader(), every=settings.record_every, **_of(Measurement, settings)),
        evaluation=Evaluation(
            source=task.evaluate_source(), targets=metrics, every=settings.evaluate_every, **_of(Evaluation, settings)
        ),
        execution=Execution(**_of(Execution, settings)),
        layers=task.layers(model),
        seed=run.seed,
        on_step=on_step,
    )
    return _with_coordinates(_with_exact_match(ds, metrics), task.coordinates)


def _of(kind: type, settings: Settings) -> dict[str, Any]:
    """The fields of one of fit()'s settings that the study gives."""
    return {name: value for name, value in settings.fit.items() if name in fields_of(kind)}


def _with_exact_match(ds: xr.Dataset, metrics: Mapping[str, Metric]) -> xr.Dataset:
    """The exact match beside the F1 of extraction, from the calls that gave the F1; the best checkpoint's is the last."""
    if not all(isinstance(metric, AnswerMetric) for metric in metrics.values()):
        return ds
    calls = np.array([metric.exact_matches for metric in metrics.values()]).T  # type: ignore[attr-defined]
    ds["exact_match"] = (("eval_step", "target"), calls[: ds.sizes["eval_step"]])
    if "metric_at_best" in ds:
        ds["exact_match_at_best"] = (("target",), calls[-1])
    return record.describe(ds)


def _with_coordinates(ds: xr.Dataset, coordinates: Mapping[str, Mapping[str, str | float]]) -> xr.Dataset:
    targets = ds["target"].values.tolist()
    return record.describe(
        ds.assign_coords({name: ("target", [of[target] for target in targets]) for name, of in coordinates.items()})
    )
