"""Where a sweep is kept: one zarr store, one region a run, `status` written last; then one NetCDF file.

A run counts as done when its status is 1, which is written after all else of it: whatever moment a sweep is killed at,
repeating the command does again what was not finished, and nothing that was.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import xarray as xr

from .. import record
from .studies import Run, Settings

PLAN, RUNS, LOCK = "sweep.json", "runs.zarr", ".lock"


class SweepStore:
    """One sweep's folder, its own while it is open: `with SweepStore(...) as store`.

    Args:
        folder: made if it is not there.
        study: name of the study, and of the NetCDF file.
        runs, settings: the plan. A folder that holds another plan is refused, and so is one begun with other versions:
            one dataset has one stamp.

    Raises:
        ValueError: the folder is a file, holds something else, another plan or damaged runs, cannot be written, or is in
            use.
    """

    def __init__(self, folder: Path, study: str, runs: Sequence[Run], settings: Settings) -> None:
        self.folder, self.study, self.runs, self.settings = folder, study, list(runs), settings
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"--out {folder}: expected a folder, found a file")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = _lock(folder)
        except OSError as error:
            raise ValueError(f"--out {folder}: cannot be written ({error.strerror})") from error
        try:
            self._check_plan()
            self.done()
        except ValueError:
            self.close()
            raise

    def __enter__(self) -> SweepStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets another sweep have the folder."""
        self._lock.close()

    @property
    def _zarr(self) -> Path:
        return self.folder / RUNS

    @property
    def _shared(self) -> tuple[str, ...]:
        """Variables that are the same in every run."""
        return () if any("tuning" in run.changes for run in self.runs) else ("num_params",)

    def _check_plan(self) -> None:
        plan = {
            "study": self.study,
            "settings": self.settings.asdict(),
            "runs": [_plain(run) for run in self.runs],
            "versions": record.provenance(),
        }
        path = self.folder / PLAN
        if not path.exists():
            if self._zarr.exists():
                raise ValueError(f"--out {self.folder}: holds {RUNS} but no {PLAN}; choose another folder")
            _write_whole(path, json.dumps(plan, indent=1) + "\n")
            return
        try:
            kept = json.loads(path.read_text())
            differing = [key for key in plan if kept[key] != plan[key]]
        except (ValueError, KeyError, TypeError):
            raise ValueError(
                f"--out {self.folder}: {PLAN} is damaged; choose another folder or delete this one"
            ) from None
        if differing:
            raise ValueError(
                f"--out {self.folder}: holds a sweep with other {' and '.join(differing)} (see {PLAN}); repeat that "
                "command, with the versions that it was begun with, or choose another folder"
            )

    def done(self) -> np.ndarray:
        """Which runs are finished: bool (runs,)."""
        if not self._zarr.exists():
            return np.zeros(len(self.runs), dtype=bool)
        try:
            with xr.open_zarr(self._zarr, consolidated=False) as ds:
                return ds["status"].values == 1
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"{self._zarr}: damaged ({error}); delete it and repeat the command") from error

    def write(self, index: int, ds: xr.Dataset) -> None:
        """Keeps one run: its variables first, then its status."""
        ds = self._on_common_steps(ds)
        if self._zarr.exists():
            self._add_missing(ds)
        else:
            self._create(ds)
        region = {"run": slice(index, index + 1)}
        by_run = [name for name in ds.data_vars if name not in self._shared]
        one = ds[by_run].drop_vars(ds.coords).expand_dims("run")
        one.to_zarr(self._zarr, region=region, consolidated=False)
        status = xr.Dataset({"status": ("run", np.ones(1, dtype=np.int8))})
        status.to_zarr(self._zarr, region=region, consolidated=False)

    def _on_common_steps(self, ds: xr.Dataset) -> xr.Dataset:
        """Runs may differ in length and k: each is put on the steps of all, and has nothing where it had no record."""
        each = [self.settings.of(run) for run in self.runs]
        layers = ds.sizes.get("layer", 0)
        common = {
            "step": {step for one in each for step in one.record_steps()},
            "eval_step": {step for one in each for step in one.evaluation_steps()},
            "selection_step": {step for one in each for step in one.selection_steps(layers)},
        }
        axes = {axis: sorted(steps | {*ds[axis].values.tolist()}) for axis, steps in common.items() if axis in ds.dims}
        if all(steps == ds[axis].values.tolist() for axis, steps in axes.items()):
            return ds
        return ds.reindex(axes, fill_value={str(name): _fill(v) for name, v in ds.data_vars.items()})

    def _add_missing(self, ds: xr.Dataset) -> None:
        """Room for variables that this run is the first to have, such as what FUN's choices rested on."""
        with xr.open_zarr(self._zarr, consolidated=False) as kept:
            missing = [name for name in ds.data_vars if name not in kept]
            if not missing:
                return
            known, attrs = [name for name in ds.coords if name in kept.coords], kept.attrs
        variables, encoding = self._empty(ds[missing])
        added = xr.Dataset(variables, ds[missing].drop_vars(known, errors="ignore").coords, attrs)
        record.describe(added).to_zarr(self._zarr, mode="a", encoding=encoding, consolidated=False)

    def _empty(self, ds: xr.Dataset) -> tuple[dict[str, Any], dict[str, Any]]:
        """A run's variables for all runs, without values, and how they are cut: one chunk a run."""
        variables: dict[str, Any] = {}
        encoding: dict[str, Any] = {}
        for name, values in ds.data_vars.items():
            if name in self._shared:
                variables[str(name)] = (values.dims, values.values)
                continue
            shape = (len(self.runs), *values.shape)
            variables[str(name)] = (("run", *values.dims), np.full(shape, _fill(values), dtype=values.dtype))
            encoding[str(name)] = {"chunks": (1, *values.shape)}
        return variables, encoding

    def _own_coordinates(self) -> dict[str, Any]:
        """What differs between runs, over run; what they share is an attribute."""
        each = [self.settings.of(run).asdict() for run in self.runs]
        changed = {key for run in self.runs for key in run.changes}
        return {key: ("run", [one[key] for one in each]) for key in _OWN if key in changed}

    def _create(self, first: xr.Dataset) -> None:
        """The empty store, shaped as the first finished run, one chunk a run; it appears whole or not at all."""
        n = len(self.runs)
        variables, encoding = self._empty(first)
        variables = {"status": (("run",), np.zeros(n, dtype=np.int8)), **variables}
        encoding["status"] = {"chunks": (1,)}
        coords = {
            **{str(name): (coord.dims, coord.values) for name, coord in first.coords.items()},
            "run": np.arange(n),
            "schedule": ("run", [run.schedule for run in self.runs]),
            "seed": ("run", [run.seed for run in self.runs]),
            **self._own_coordinates(),
        }
        own = ("policy", "seed", "interval", "steps", "lr")
        attrs = {key: value for key, value in first.attrs.items() if key not in own}
        shared = {key: value for key, value in self.settings.asdict().items() if key not in coords}
        template = record.build(variables, coords, {**attrs, "study": self.study, **shared})
        making = self.folder / f".{RUNS}.making"
        shutil.rmtree(making, ignore_errors=True)
        # Format 2: zarr's third has no text of fixed length yet, which is what every reader of xarray handles.
        template.to_zarr(making, encoding=encoding, consolidated=False, zarr_format=2)
        making.rename(self._zarr)

    def read(self) -> xr.Dataset:
        """The runs that are finished, in memory."""
        with xr.open_zarr(self._zarr, consolidated=False) as ds:
            return ds.isel(run=np.flatnonzero(ds["status"].values == 1)).load()

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


_OWN = ("steps", "lr", "interval", "train_examples", "tuning")
"""What runs may differ in, beside schedule and seed."""


def _fill(values: xr.DataArray) -> Any:
    """What stands where a run has no value."""
    return {"f": np.nan, "U": ""}.get(values.dtype.kind, -1)


def _plain(run: Run) -> list[Any]:
    """A run as JSON gives it back."""
    return [run.schedule, list(run.order), run.seed, run.policy, dict(run.changes)]


def _write_whole(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    part.rename(path)


def _lock(folder: Path) -> TextIO:
    """Held until the process ends, however it ends; a second sweep on the folder is told."""
    handle = (folder / LOCK).open("a+")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.seek(0)
        holder = handle.read().strip() or "unknown"
        handle.close()
        raise ValueError(f"--out {folder}: another sweep (process {holder}) is writing here; wait or stop it") from None
    handle.truncate(0)
    handle.write(str(os.getpid()))
    handle.flush()
    return handle
