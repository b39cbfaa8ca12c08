"""Where a sweep is kept: one zarr store, one region a run, `status` written last; then one NetCDF file.

The store opens with plain xarray from the first moment: what runs there are, and the `status` of each. The first run that
ends makes room for its variables, and each run fills its own region. A run is done when its status says so, which is written
after all else of it: whatever moment a sweep is killed at, repeating the command does again what was not finished, and no
more. What is in the store depends on the runs alone, not on the order in which they ended.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr

from .. import record
from . import arrays
from .folder import PLAN, RUNS, Lock, write_whole
from .runs import Run, Settings

FAILED, WAITING, DONE = -1, 0, 1
_OWN = ("steps", "lr", "interval", "train_examples", "tuning")
"""What runs may differ in, beside schedule and seed."""
_NO_PARAMETERS = {"steps", "lr", "interval", "train_examples", "record_every", "evaluate_every"}
"""What runs may differ in with the same number of parameters."""
_OF_A_RUN = ("policy", "seed", "interval", "steps", "lr")
"""Attributes of one run's record that are no attributes of a sweep."""


class SweepStore:
    """One sweep's folder, its own while it is open: `with SweepStore(...) as store`.

    Args:
        folder: made if it is not there.
        study: name of the study, and of the NetCDF file.
        runs, settings: the plan. A folder that holds another plan is refused, and so is one begun with other versions:
            one dataset has one stamp.
        trained_by: what trains, where that is not `execute`; part of the plan.

    Raises:
        ValueError: the folder is a file, holds something else, another plan or damaged runs, cannot be written, or is in
            use.
    """

    def __init__(self, folder: Path, study: str, runs: Sequence[Run], settings: Settings, trained_by: str = "") -> None:
        self.folder, self.study, self.runs, self.settings = folder, study, list(runs), settings
        self._plan: dict[str, Any] = {
            "study": study,
            "settings": settings.asdict(),
            "runs": [[run.schedule, list(run.order), run.seed, run.policy, dict(run.changes)] for run in runs],
            "trained_by": trained_by,
            "versions": record.provenance(),
        }
        self._lock = Lock(folder)
        try:
            self._check_plan()
            if not self._zarr.exists():
                self._create()
            self._open()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> SweepStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets another sweep have the folder."""
        self._lock.release()

    @property
    def _zarr(self) -> Path:
        return self.folder / RUNS

    def _check_plan(self) -> None:
        path = self.folder / PLAN
        if not path.exists():
            if self._zarr.exists():
                raise ValueError(f"--out {self.folder}: holds {RUNS} but no {PLAN}; choose another folder")
            write_whole(self.folder, PLAN, json.dumps(self._plan) + "\n")
            return
        try:
            kept = json.loads(path.read_text())
            differing = [key for key, value in self._plan.items() if kept.get(key) != value]
        except (ValueError, AttributeError):
            raise ValueError(
                f"--out {self.folder}: {PLAN} is damaged; choose another folder or delete this one"
            ) from None
        if differing:
            raise ValueError(
                f"--out {self.folder}: holds a sweep with other {' and '.join(differing)} (see {PLAN}); repeat that "
                "command, with the versions that it was begun with, or choose another folder"
            )

    # ---- the template --------------------------------------------------------------------------------------------------

    @cached_property
    def _template(self) -> xr.Dataset:
        """Which runs there are, none of them done."""
        n = len(self.runs)
        each = [self.settings.of(run).asdict() for run in self.runs]
        own = {key for run in self.runs for key in run.changes if key in _OWN}
        coords: dict[str, Any] = {
            "run": np.arange(n),
            "schedule": ("run", arrays.text([run.schedule for run in self.runs])),
            "policy": ("run", arrays.text([run.policy for run in self.runs])),
            "label": ("run", arrays.text([run.label for run in self.runs])),
            "seed": ("run", [run.seed for run in self.runs]),
            **{key: ("run", [one[key] for one in each]) for key in _OWN if key in own},
        }
        shared = {key: value for key, value in self.settings.asdict().items() if key not in coords}
        status = {"status": (("run",), np.zeros(n, dtype=np.int8))}
        return record.build(status, coords, {"study": self.study, **shared})

    def _create(self) -> None:
        making = self.folder / f".{RUNS}.making"
        arrays.begin(making)
        for name, variable in self._template.variables.items():
            arrays.add(making, str(name), variable)
        reason = record.describe(xr.Dataset({"reason": ((), np.str_(""))}))
        arrays.add_empty(making, "reason", reason["reason"].variable, len(self.runs))
        arrays.write_attributes(making, self._template.attrs, list(record.COORDINATES))
        making.rename(self._zarr)

    def _open(self) -> None:
        try:
            with xr.open_zarr(self._zarr, consolidated=False, chunks=None) as ds:
                self._status: np.ndarray = ds["status"].values.copy()
                self._kept = {name: v if v.dims[:1] == ("run",) else v.load() for name, v in ds.variables.items()}
                self._attrs: dict[str, Any] = dict(ds.attrs)
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"{self._zarr}: damaged ({error}); delete it and repeat the command") from error

    # ---- what is done --------------------------------------------------------------------------------------------------

    def done(self) -> np.ndarray:
        """Which runs are finished: bool (runs,)."""
        return self._status == DONE

    def failed(self) -> dict[int, str]:
        """Number of each run that failed when it was last tried -> why."""
        return reasons(self._zarr, self._status)

    def fail(self, index: int, reason: str) -> None:
        """Marks a run as failed. It is tried again when the command is repeated."""
        arrays.write(self._zarr, "reason", index, np.array(reason), self._kept["reason"].dtype)
        self._mark(index, FAILED)

    def _mark(self, index: int, status: int) -> None:
        now = self._status.copy()
        now[index] = status
        write_whole(self.folder, f"{RUNS}/status/0", now.tobytes())
        self._status = now

    # ---- writing -------------------------------------------------------------------------------------------------------

    def write(self, index: int, ds: xr.Dataset) -> None:
        """Keeps one run: its variables first, then its status.

        Raises:
            ValueError: the record does not fit beside the others: another model's layers, other versions, a long text.
            OSError: no room on the disk, for one.
        """
        self._check_versions(ds.attrs)
        ds = self._on_common_steps(ds)
        if any(name not in self._kept for name in ds.variables):
            self._make_room(ds)
        for name, variable in ds.variables.items():
            self._check_fits(str(name), variable)
        for name in ds.data_vars:
            if name not in self._shared:
                arrays.write(self._zarr, str(name), index, ds[name].values, self._kept[name].dtype)
        self._keep_attributes(ds.attrs)
        self._mark(index, DONE)

    def _check_versions(self, attrs: Mapping[str, Any]) -> None:
        other = [key for key, value in self._plan["versions"].items() if attrs.get(key, value) != value]
        if other:
            raise ValueError(f"trained with other versions ({', '.join(other)}): all workers need the same")

    @cached_property
    def _shared(self) -> tuple[str, ...]:
        """Variables that are the same in every run."""
        changed = {key for run in self.runs for key in run.changes}
        return () if changed - _NO_PARAMETERS else ("num_params",)

    @cached_property
    def _different(self) -> list[Settings]:
        """The settings that there are."""
        return list({repr(own): own for own in map(self.settings.of, self.runs)}.values())

    def _on_common_steps(self, ds: xr.Dataset) -> xr.Dataset:
        """Runs may differ in length and k: each is put on the steps of all, and has nothing where it had no record."""
        axes = {}
        for axis in ("step", "eval_step", "selection_step"):
            if axis in ds.indexes:
                kept = self._kept.get(axis)
                axes[axis] = self._steps_of_all(axis, ds) if kept is None else kept.values.tolist()
        if all(steps == ds[axis].values.tolist() for axis, steps in axes.items()):
            return ds
        for axis, steps in axes.items():
            if unplanned := sorted(set(ds[axis].values.tolist()) - set(steps)):
                raise ValueError(f"its record has {axis} {', '.join(map(str, unplanned))}, which no other run has")
        return ds.reindex(axes, fill_value={str(name): arrays.fill(v.dtype) for name, v in ds.data_vars.items()})

    def _steps_of_all(self, axis: str, ds: xr.Dataset) -> list[int]:
        planned = {
            "step": lambda one: one.record_steps(),
            "eval_step": lambda one: one.evaluation_steps(),
            "selection_step": lambda one: one.selection_steps(ds.sizes.get("layer", 0)),
        }[axis]
        return sorted({step for one in self._different for step in planned(one)} | {*ds[axis].values.tolist()})

    def _make_room(self, ds: xr.Dataset) -> None:
        """Arrays for what this run is the first to have, as long as the plan. Each appears whole or not at all."""
        making = self.folder / f".{RUNS}.making"
        arrays.begin(making)
        # Coordinates first: no reader sees an axis without its values.
        for name in (*ds.coords, *ds.data_vars):
            if name in self._kept:
                continue
            if name in ds.coords or name in self._shared:
                arrays.add(making, str(name), ds[name].variable)
            else:
                arrays.add_empty(making, str(name), ds[name].variable, len(self.runs))
            (making / str(name)).rename(self._zarr / str(name))
        shutil.rmtree(making)
        self._open()

    def _check_fits(self, name: str, own: xr.Variable) -> None:
        kept = self._kept[name]
        if kept.dims[:1] != ("run",):
            if own.dims != kept.dims or not np.array_equal(own.values, kept.values):
                raise ValueError(f"its {name} is {own.values.tolist()}, the other runs' {kept.values.tolist()}")
        elif (own.dims, own.shape) != (kept.dims[1:], kept.shape[1:]):
            raise ValueError(f"its {name} is {own.dims} {own.shape}, the other runs' {kept.dims[1:]} {kept.shape[1:]}")
        elif own.dtype.kind == "U" and own.dtype.itemsize > kept.dtype.itemsize:
            raise ValueError(f"its {name} has texts of more than {arrays.TEXT} characters")

    def _keep_attributes(self, attrs: Mapping[str, Any]) -> None:
        """Written with the first run; what a later one says otherwise is taken out, so that the rest is true of all."""
        if self.done().any():
            fixed = self._template.attrs
            now = {key: value for key, value in self._attrs.items() if key in fixed or attrs.get(key) == value}
        else:
            now = {key: value for key, value in attrs.items() if key not in _OF_A_RUN} | self._template.attrs
        if now != self._attrs:
            arrays.write_attributes(self._zarr, now, list(record.COORDINATES))
            self._attrs = now

    # ---- reading -------------------------------------------------------------------------------------------------------

    def read(self) -> xr.Dataset:
        """The runs that are finished, in memory; what failed is said in the attribute `failed`."""
        with xr.open_zarr(self._zarr, consolidated=False, chunks=None) as ds:
            ds = ds.drop_vars("reason").load()
        ds = ds.isel(run=np.flatnonzero(ds["status"].values == DONE))
        ds.attrs = {key: ds.attrs[key] for key in sorted(ds.attrs)}
        if failed := self.failed():
            ds.attrs["failed"] = "; ".join(f"{self.runs[index]}: {reason}" for index, reason in failed.items())
        # Arrays come as the file system lists them.
        known = [*record.COORDINATES, *record.VARIABLES]
        ordered = sorted(ds.variables, key=lambda name: (known.index(name) if name in known else len(known), str(name)))
        return xr.Dataset(
            {name: ds[name].variable for name in ordered if name in ds.data_vars},
            {name: ds[name].variable for name in ordered if name in ds.coords},
            ds.attrs,
        )

    def publish(self) -> Path:
        """Writes the whole dataset as one NetCDF file and returns its path."""
        path = self.folder / f"{self.study}.nc"
        part = path.with_suffix(".nc.part")
        ds = self.read()
        for variable in ds.variables.values():
            variable.encoding = {}
        ds.to_netcdf(part)
        part.rename(path)
        return path


def reasons(store: Path, status: np.ndarray) -> dict[int, str]:
    """Number of each run that failed -> why."""
    kept = zarr.open_array(store / "reason", mode="r")
    return {int(index): str(kept[int(index)]) for index in np.flatnonzero(status == FAILED)}
