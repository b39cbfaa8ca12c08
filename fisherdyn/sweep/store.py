"""Where a sweep's runs are kept: one zarr store while it runs, one NetCDF file when it has ended.

Plain xarray opens the store from the first moment: it lists the runs and the `status` of each. The first run that ends
makes room for its variables, and each run fills its own part. The status is written last, so a run counts as done only
when all of it is on the disk. After a kill at any moment, repeating the command trains what is missing and nothing else.
The content depends on the runs alone, not on the order in which they ended.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from .. import record
from .common_steps import AXES, align, planned_steps
from .folder import RUNS, Lock, claim, dataset, part_of
from .runs import Run, Settings
from .zarr_store import ZarrStore, reasons

FAILED, WAITING, DONE = -1, 0, 1
RUN_COORDINATES = ("steps", "lr", "interval", "train_examples", "tuning")
"""Settings that become a coordinate of `run` where runs differ in them."""
SAME_PARAMETERS = {"steps", "lr", "interval", "train_examples", "record_every", "evaluate_every"}
"""Settings that leave the number of parameters as it is."""
RUN_ATTRIBUTES = ("policy", "seed", "interval", "steps", "lr")
"""Attributes of a run's record that say nothing about the whole sweep."""


class SweepStore:
    """The runs of one sweep, in a folder that no other sweep can use meanwhile: `with SweepStore(...) as store`.

    Args:
        folder: made if it does not exist.
        study: name of the study, and of the NetCDF file.
        runs: the runs of the plan.
        settings: the settings of the plan. A folder that holds another plan is refused, and so is one that was begun
            with other versions, because one dataset carries one stamp of versions.
        trained_by: the trainer, where it is not `execute`; part of the plan.

    Raises:
        ValueError: the folder is a file, cannot be written, is in use, or holds another plan, damaged runs, or files that
            a sweep would replace.
    """

    def __init__(self, folder: Path, study: str, runs: Sequence[Run], settings: Settings, trained_by: str = "") -> None:
        self.folder, self.study, self.runs, self.settings = folder, study, list(runs), settings
        self._versions = record.provenance()
        self._lock = Lock(folder)
        try:
            claim(folder, study, self._plan(trained_by))
            self._zarr = self._open_zarr()
            self._status: np.ndarray = self._zarr.variables["status"].values.copy()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> SweepStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Unlocks the folder."""
        self._lock.release()

    def _plan(self, trained_by: str) -> dict[str, Any]:
        return {
            "study": self.study,
            "settings": self.settings.asdict(),
            "runs": [[run.schedule, list(run.order), run.seed, run.policy, dict(run.changes)] for run in self.runs],
            "trained_by": trained_by,
            "versions": self._versions,
        }

    def _open_zarr(self) -> ZarrStore:
        path = self.folder / RUNS
        if not path.exists():
            reason = record.describe(xr.Dataset({"reason": ((), np.str_(""))}))
            return ZarrStore.create(path, self._template, {"reason": reason["reason"].variable})
        try:
            store = ZarrStore(path)
            store.variables["status"]
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"{path}: damaged ({error}); delete it and repeat the command") from error
        return store

    @cached_property
    def _template(self) -> xr.Dataset:
        """The runs of the plan, none of them done."""
        settings = [self.settings.of(run).asdict() for run in self.runs]
        differing = {key for run in self.runs for key in run.changes}
        coords: dict[str, Any] = {
            "run": np.arange(len(self.runs)),
            "schedule": ("run", [run.schedule for run in self.runs]),
            "policy": ("run", [run.policy for run in self.runs]),
            "label": ("run", [run.label for run in self.runs]),
            "seed": ("run", [run.seed for run in self.runs]),
            **{key: ("run", [each[key] for each in settings]) for key in RUN_COORDINATES if key in differing},
        }
        shared = {key: value for key, value in self.settings.asdict().items() if key not in coords}
        status = {"status": (("run",), np.full(len(self.runs), WAITING, dtype=np.int8))}
        return record.build(status, coords, {"study": self.study, **shared})

    # ---- what is done ------------------------------------------------------------------------------------------------

    def done(self) -> np.ndarray:
        """Which runs are done: bool (runs,)."""
        return self._status == DONE

    def failed(self) -> dict[int, str]:
        """Index of each run that failed when it was last tried -> why."""
        return reasons(self._zarr.path, np.flatnonzero(self._status == FAILED))

    def fail(self, index: int, reason: str) -> None:
        """Marks a run as failed. Repeating the command tries it again."""
        self._zarr.write("reason", index, np.array(reason))
        self._mark(index, FAILED)

    def _mark(self, index: int, status: int) -> None:
        statuses = self._status.copy()
        statuses[index] = status
        self._zarr.write_status(statuses)
        self._status = statuses

    # ---- writing -----------------------------------------------------------------------------------------------------

    def write(self, index: int, ds: xr.Dataset) -> None:
        """Writes one run: its variables, then its status.

        Raises:
            ValueError: the record does not fit beside the others: another model's layers, other versions, a long text.
            OSError: the disk is full, for one.
        """
        self._require_same_versions(ds.attrs)
        for axis in AXES:
            if axis in ds.indexes:
                ds = align(ds, axis, self._steps_of_all(axis, ds))
        self._add_missing_arrays(ds)
        for name, variable in ds.variables.items():
            self._zarr.require_fit(str(name), variable)
        for name in ds.data_vars:
            if name not in self._shared:
                self._zarr.write(str(name), index, ds[name].values)
        self._zarr.write_attributes(self._common_attributes(ds.attrs))
        self._mark(index, DONE)

    def _require_same_versions(self, attrs: Mapping[str, Any]) -> None:
        differing = [key for key, value in self._versions.items() if attrs.get(key, value) != value]
        if differing:
            raise ValueError(f"trained with other versions ({', '.join(differing)}): all workers need the same")

    @cached_property
    def _shared(self) -> tuple[str, ...]:
        """Data variables that are the same in every run."""
        changes = {key for run in self.runs for key in run.changes}
        return ("num_params",) if changes <= SAME_PARAMETERS else ()

    def _steps_of_all(self, axis: str, ds: xr.Dataset) -> list[int]:
        """The axis in the store. The first record adds its own steps to the planned ones."""
        if axis in self._zarr.variables:
            return self._zarr.variables[axis].values.tolist()
        layers = ds.sizes.get("layer", 0)
        planned = (planned_steps(axis, settings, layers) for settings in self._distinct_settings)
        return sorted({*ds[axis].values.tolist()}.union(*planned))

    @cached_property
    def _distinct_settings(self) -> list[Settings]:
        return list({repr(settings): settings for settings in map(self.settings.of, self.runs)}.values())

    def _add_missing_arrays(self, ds: xr.Dataset) -> None:
        """Makes room for the variables that no earlier run had."""
        missing = {str(name): v for name, v in ds.variables.items() if name not in self._zarr.variables}
        if not missing:
            return
        shared = [name for name in (*ds.coords, *self._shared) if name in missing]
        self._zarr.add(
            {str(name): missing[str(name)] for name in shared},
            {name: variable for name, variable in missing.items() if name not in shared},
        )

    def _common_attributes(self, attrs: Mapping[str, Any]) -> dict[str, Any]:
        """What is true of all runs: the first run's attributes, less those in which a later run differs."""
        planned = self._template.attrs
        if not self.done().any():
            return {key: value for key, value in attrs.items() if key not in RUN_ATTRIBUTES} | planned
        return {key: value for key, value in self._zarr.attrs.items() if key in planned or attrs.get(key) == value}

    # ---- reading -----------------------------------------------------------------------------------------------------

    def read(self) -> xr.Dataset:
        """The runs that are done, in memory. The attribute `failed` lists the failed ones."""
        with xr.open_zarr(self._zarr.path, consolidated=False, chunks=None) as opened:
            ds = opened.drop_vars("reason").load()
        ds = ds.isel(run=np.flatnonzero(ds["status"].values == DONE))
        attrs = {key: ds.attrs[key] for key in sorted(ds.attrs)}
        if failed := self.failed():
            attrs["failed"] = "; ".join(f"{self.runs[index]}: {reason}" for index, reason in failed.items())
        # xarray lists arrays in the order of the file system: the order of the schema is the same everywhere.
        schema = [*record.COORDINATES, *record.VARIABLES]
        rank = {name: i for i, name in enumerate(schema)}
        names = sorted(ds.variables, key=lambda name: (rank.get(str(name), len(schema)), str(name)))
        return xr.Dataset(
            {name: ds[name].variable for name in names if name in ds.data_vars},
            {name: ds[name].variable for name in names if name in ds.coords},
            attrs,
        )

    def publish(self) -> Path:
        """Writes the runs that are done as one NetCDF file and returns its path."""
        path = dataset(self.folder, self.study)
        ds = self.read().drop_encoding()
        ds.to_netcdf(part_of(path))
        part_of(path).rename(path)
        return path
