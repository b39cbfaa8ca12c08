"""Where a run led: its result, transfer, and footnote 9's groups; and runs as a table of schedules and seeds."""

from __future__ import annotations

import math
from collections import Counter

import xarray as xr

from .curves import learning_curve
from .shape import shape

FINAL = 0.75
"""Evaluations from this share of the run on count as its result: single checkpoints swing too much."""
GROUP_WIDTH = 0.01
"""Footnote 9: runs within one point of the best ungrouped one are a group."""


def result(ds: xr.Dataset, variable: str = "metric") -> xr.DataArray:
    """Where each run led in a metric: (run, ...) without the axis of evaluations.

    As the paper has it, that of the best checkpoint on the source's development set, where fit() kept it in all runs
    (`metric_at_best`); else the mean over the evaluations of the run's own last quarter (`FINAL`). Its attribute "of" says
    which, in words.
    """
    values = ds[variable]
    axis = "eval_step" if "eval_step" in values.dims else "step"
    if _best_is_kept(ds):
        found = values.max(axis, keep_attrs=True) if variable == "source_metric" else ds[f"{variable}_at_best"]
        return found.assign_attrs(of="of the best checkpoint on the source's development set")
    there = values.notnull().any([name for name in values.dims if name not in (axis, "run")])
    late = values[axis] >= FINAL * values[axis].where(there).max(axis)
    return (
        values.where(late).mean(axis, keep_attrs=True).assign_attrs(of="mean over the evaluations of the last quarter")
    )


def _best_is_kept(ds: xr.Dataset) -> bool:
    if "metric_at_best" not in ds:
        return False
    kept, evaluated = (ds[name].notnull() for name in ("metric_at_best", "metric"))
    return bool((kept | ~evaluated.any("eval_step")).all())


def transfer(ds: xr.Dataset) -> xr.DataArray:
    """Mean `result` over the targets (the source is not among them): (run,). NaN where a target was not evaluated."""
    found = result(ds)
    said = {"long_name": "mean transfer over target languages", "units": "1", "of": found.attrs["of"]}
    return found.mean("target", skipna=False).assign_attrs(said)


def results(ds: xr.Dataset) -> xr.Dataset:
    """What each run led to, 0 to 1: source, transfer (run), target_result and, of extraction, exact_match (run, target)."""
    found = {"source": result(ds, "source_metric"), "target_result": result(ds), "transfer": transfer(ds)}
    if "exact_match" in ds:
        found["exact_match"] = result(ds, "exact_match")
    return xr.Dataset(found)


def summarise(ds: xr.Dataset) -> xr.Dataset:
    """What a run comes to, over run: source, transfer, each target, and all of `shape`."""
    return xr.Dataset({**results(ds), **shape(learning_curve(ds))})


def groups(transfer_of: dict[str, float], within: float = GROUP_WIDTH) -> list[list[str]]:
    """Footnote 9: sort by transfer, take the best ungrouped one, and group with it all that are at most `within` below.

    Raises:
        ValueError: a transfer that is NaN.
    """
    if unknown := [name for name, value in transfer_of.items() if math.isnan(value)]:
        raise ValueError(f"expected a transfer for each schedule, got NaN for {', '.join(unknown)}")
    left = sorted(transfer_of, key=lambda name: -transfer_of[name])
    found = []
    while left:
        best = transfer_of[left[0]]
        found.append([name for name in left if best - transfer_of[name] <= within + 1e-12])
        left = left[len(found[-1]) :]
    return found


def by_schedule(values: xr.DataArray) -> xr.DataArray:
    """(run, ...) with coordinates schedule and seed -> (schedule, seed, ...), of the seeds that every schedule has.

    Raises:
        ValueError: no run, no seed that is complete, or several runs of one schedule and seed.
    """
    runs = Counter(zip(values["schedule"].values.tolist(), values["seed"].values.tolist(), strict=True))
    if not runs:
        raise ValueError("no run is left: select schedules that there are")
    if several := [run for run, times in runs.items() if times > 1]:
        (schedule, seed), known = several[0], ("run", "schedule", "seed")
        differ = ", ".join(str(name) for name, x in values.coords.items() if x.dims == ("run",) and name not in known)
        raise ValueError(
            f"{runs[several[0]]} runs of {schedule!r} with seed {seed}, expected one of each schedule and seed: select by "
            f"what they differ in ({differ or 'no coordinate says what'})"
        )
    order = list(dict.fromkeys(values["schedule"].values.tolist()))
    present = xr.ones_like(values["seed"], dtype=int).set_index(run=["schedule", "seed"]).unstack("run", fill_value=0)
    complete = present["seed"].values[present.all("schedule").values]
    if not len(complete):
        raise ValueError("no seed has a run of every schedule: finish the sweep, or select schedules that have one")
    table = values.set_index(run=["schedule", "seed"]).unstack("run")
    return table.reindex(schedule=order, seed=complete).transpose("schedule", "seed", ...)
