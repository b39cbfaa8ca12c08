"""Results of runs: final metrics, transfer, footnote 9's groups, and tables of runs by schedule and seed."""

from __future__ import annotations

import math
from collections import Counter
from typing import TypeVar

import xarray as xr

from .curves import learning_curve
from .shape import shape

LAST_QUARTER = 0.75
"""Evaluations from this share of the run on count as its result: single checkpoints swing too much."""
GROUP_WIDTH = 0.01
"""Footnote 9: runs within one point of the best ungrouped one are a group."""

ALONE = "task_adapter"
"""The tuning that has task adapters but no language adapters."""

Runs = TypeVar("Runs", xr.DataArray, xr.Dataset)


def result(ds: xr.Dataset, variable: str = "metric") -> xr.DataArray:
    """The final value of a metric in each run: (run, ...), without the dimension of evaluations.

    As in the paper, this is the value at the best checkpoint on the source's development set, if every run has kept it
    (`metric_at_best`). Otherwise it is the mean over the evaluations of the run's own last quarter. The attribute "of"
    says which.
    """
    values = ds[variable]
    time = "eval_step" if "eval_step" in values.dims else "step"
    if _has_best_checkpoints(ds):
        best = values.max(time, keep_attrs=True) if variable == "source_metric" else ds[f"{variable}_at_best"]
        return best.assign_attrs(of="of the best checkpoint on the source's development set")
    evaluated = values.notnull().any([name for name in values.dims if name not in (time, "run")])
    is_late = values[time] >= LAST_QUARTER * values[time].where(evaluated).max(time)
    mean = values.where(is_late).mean(time, keep_attrs=True)
    return mean.assign_attrs(of="mean over the evaluations of the last quarter")


def _has_best_checkpoints(ds: xr.Dataset) -> bool:
    """Whether every run that was evaluated has its best checkpoint's metrics."""
    if "metric_at_best" not in ds:
        return False
    kept, evaluated = (ds[name].notnull() for name in ("metric_at_best", "metric"))
    return bool((kept | ~evaluated.any("eval_step")).all())


def transfer(ds: xr.Dataset) -> xr.DataArray:
    """Mean `result` over the targets, without the source: (run,). NaN where a target was not evaluated."""
    return _mean_over_targets(result(ds))


def _mean_over_targets(target_result: xr.DataArray) -> xr.DataArray:
    mean = target_result.mean("target", skipna=False)
    name = "mean transfer over target languages"
    return mean.assign_attrs(long_name=name, units="1", of=target_result.attrs["of"])


def results(ds: xr.Dataset) -> xr.Dataset:
    """The results of each run, 0 to 1.

    Returns:
        source and transfer (run,), target_result (run, target), and for extraction exact_match (run, target).
    """
    target_result = result(ds)
    variables = {
        "source": result(ds, "source_metric"),
        "target_result": target_result,
        "transfer": _mean_over_targets(target_result),
    }
    if "exact_match" in ds:
        variables["exact_match"] = result(ds, "exact_match")
    return xr.Dataset(variables)


def tuned(ds: xr.Dataset) -> str:
    """What runs trained where it is less than the paper's adapters over language adapters, as a sentence; else ""."""
    tunings = ds["tuning"].values.tolist() if "tuning" in ds.coords else [ds.attrs.get("tuning")]
    return "Task adapters alone were trained, without the language adapters of the paper" if ALONE in tunings else ""


def summarise(ds: xr.Dataset) -> xr.Dataset:
    """One row a run: its `results`, and the `shape` of its learning curve."""
    return xr.Dataset({**results(ds), **shape(learning_curve(ds))})


def groups(transfer_of: dict[str, float], within: float = GROUP_WIDTH) -> list[list[str]]:
    """Footnote 9's groups: take the best ungrouped schedule with all that are at most `within` below it, and repeat.

    Args:
        transfer_of: schedule -> its transfer.

    Raises:
        ValueError: a transfer that is NaN.
    """
    if unknown := [name for name, value in transfer_of.items() if math.isnan(value)]:
        raise ValueError(f"expected a transfer for each schedule, got NaN for {', '.join(unknown)}")
    ungrouped = sorted(transfer_of, key=lambda name: -transfer_of[name])
    grouped = []
    while ungrouped:
        best = transfer_of[ungrouped[0]]
        grouped.append([name for name in ungrouped if best - transfer_of[name] <= within + 1e-12])
        ungrouped = ungrouped[len(grouped[-1]) :]
    return grouped


def by_schedule(values: Runs) -> Runs:
    """Arranges runs as a table of schedules (in their order) and seeds (those that every schedule has).

    Args:
        values: (run, ...) with coordinates schedule and seed.

    Returns:
        (schedule, seed, ...).

    Raises:
        ValueError: no run, several runs of one schedule and seed, or no seed that every schedule has.
    """
    runs = list(zip(values["schedule"].values.tolist(), values["seed"].values.tolist(), strict=True))
    _require_one_run_each(runs, values)
    schedules = list(dict.fromkeys(schedule for schedule, _ in runs))
    runs_of_seed = Counter(seed for _, seed in runs)
    seeds = sorted(seed for seed, count in runs_of_seed.items() if count == len(schedules))
    if not seeds:
        raise ValueError("no seed has a run of every schedule: finish the sweep, or select schedules that have one")
    table = values.set_index(run=["schedule", "seed"]).unstack("run")
    return table.reindex(schedule=schedules, seed=seeds).transpose("schedule", "seed", ...)


def _require_one_run_each(runs: list[tuple[str, int]], values: xr.DataArray | xr.Dataset) -> None:
    if not runs:
        raise ValueError("no run is left: select schedules that there are")
    (schedule, seed), count = Counter(runs).most_common(1)[0]
    if count > 1:
        known = ("run", "schedule", "seed")
        differ = ", ".join(str(name) for name, x in values.coords.items() if x.dims == ("run",) and name not in known)
        raise ValueError(
            f"{count} runs of {schedule!r} with seed {seed}, expected one of each schedule and seed: select by what they "
            f"differ in ({differ or 'no coordinate says what'})"
        )
