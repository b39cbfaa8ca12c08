"""The arrays of a sweep on disk: a zarr store of format 2, uncompressed, with one chunk a run.

Format 2, because zarr's format 3 has no fixed-length text yet, the only text that every reader of xarray handles.
Uncompressed, because a run's numbers hardly shrink, and because an uncompressed chunk is just the array's bytes: it is
written as a plain file in 0.1 ms, where the library takes 2 ms.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr

from .. import record
from .folder import unfinished, write_atomically

MAX_TEXT = 128
"""Characters that a run's text may have."""


class ZarrStore:
    """A zarr store that plain xarray can open at any moment: an array appears whole or not at all.

    Attributes:
        path: the store's folder.
        variables: name -> the array on disk. Arrays without the dimension `run` are in memory, the others are lazy.
        attrs: attributes of the whole store.

    Raises:
        OSError, ValueError, KeyError: the store is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._open()

    def _open(self) -> None:
        with xr.open_zarr(self.path, consolidated=False, chunks=None) as ds:
            self.attrs: dict[str, Any] = dict(ds.attrs)
            self.variables = {str(name): v if _is_per_run(v) else v.load() for name, v in ds.variables.items()}

    @classmethod
    def create(cls, path: Path, template: xr.Dataset, per_run: Mapping[str, xr.Variable]) -> ZarrStore:
        """Makes a store of the template's arrays, with empty arrays for what each run will write."""
        making = _begin(path)
        for name, variable in template.variables.items():
            _create_filled(making / str(name), variable)
        for name, variable in per_run.items():
            _create_empty(making / name, variable, template.sizes["run"])
        _write_attributes(making, template.attrs)
        making.rename(path)
        return cls(path)

    def add(self, shared: Mapping[str, xr.Variable], per_run: Mapping[str, xr.Variable]) -> None:
        """Adds arrays: those that all runs share, with their values, then an empty one for each variable of a run.

        Coordinates belong to the shared ones, so that a reader never sees an axis without its values.
        """
        making = _begin(self.path)
        for name, variable in shared.items():
            _create_filled(making / name, variable)
            (making / name).rename(self.path / name)
        for name, variable in per_run.items():
            _create_empty(making / name, variable, self.variables["run"].size)
            (making / name).rename(self.path / name)
        shutil.rmtree(making)
        self._open()

    def require_fit(self, name: str, variable: xr.Variable) -> None:
        """Refuses a run's variable that does not fit beside those of the other runs."""
        stored = self.variables[name]
        if not _is_per_run(stored):
            if variable.dims != stored.dims or not np.array_equal(variable.values, stored.values):
                raise ValueError(f"its {name} is {variable.values.tolist()}, the other runs' {stored.values.tolist()}")
        elif (variable.dims, variable.shape) != (stored.dims[1:], stored.shape[1:]):
            raise ValueError(
                f"its {name} is {variable.dims} {variable.shape}, the other runs' {stored.dims[1:]} {stored.shape[1:]}"
            )
        elif variable.dtype.kind == "U" and variable.dtype.itemsize > stored.dtype.itemsize:
            raise ValueError(f"its {name} has texts of more than {MAX_TEXT} characters")

    def write(self, name: str, index: int, values: np.ndarray) -> None:
        """Writes one run's values of an array.

        Raises:
            TypeError: the values are of another kind than the array's.
            OSError: the disk is full, for one.
        """
        chunk = np.ascontiguousarray(values.astype(self.variables[name].dtype, casting="same_kind"))
        self._write_chunk(f"{name}/{_chunk_name(index, values.ndim)}", chunk)

    def write_status(self, status: np.ndarray) -> None:
        """Writes the status of all runs, in one step."""
        self._write_chunk("status/0", status)

    def _write_chunk(self, name: str, values: np.ndarray) -> None:
        write_atomically(self.path.parent, f"{self.path.name}/{name}", values.tobytes())

    def write_attributes(self, attrs: Mapping[str, Any]) -> None:
        """Replaces the attributes of the whole store."""
        if attrs != self.attrs:
            _write_attributes(self.path, attrs)
            self.attrs = dict(attrs)


def missing_value(dtype: np.dtype) -> Any:
    """What stands where a run has no value: NaN, "" or -1."""
    return {"f": np.nan, "U": ""}.get(dtype.kind, -1)


def reasons(path: Path, indices: np.ndarray) -> dict[int, str]:
    """Index of a failed run -> why it failed."""
    array = zarr.open_array(path / "reason", mode="r")
    return {index: str(array[index]) for index in indices.tolist()}


def _is_per_run(variable: xr.Variable) -> bool:
    return variable.dims[:1] == ("run",)


def _begin(path: Path) -> Path:
    """An empty store beside `path`, in the place of an unfinished one."""
    making = unfinished(path)
    shutil.rmtree(making, ignore_errors=True)
    zarr.create_group(making, zarr_format=2)
    return making


def _create_filled(path: Path, variable: xr.Variable) -> None:
    """An array with its values, in one chunk."""
    values = variable.values.astype("U") if variable.dtype.kind in "UO" else variable.values
    _create(path, variable, values.dtype, shape=values.shape, chunks=values.shape)[...] = values


def _create_empty(path: Path, variable: xr.Variable, runs: int) -> None:
    """An array with a chunk for each run, which holds NaN, "" or -1 until that run is written."""
    dtype = np.dtype(f"<U{MAX_TEXT}") if variable.dtype.kind == "U" else variable.dtype
    per_run = variable.set_dims(("run", *variable.dims))
    _create(path, per_run, dtype, shape=(runs, *variable.shape), chunks=per_run.shape)
    if dtype.kind == "i":
        # zarr fills in NaN and "" by itself. A fill value of integers xarray would take as missing, and give floats.
        nothing = np.full(variable.shape, missing_value(dtype), dtype).tobytes()
        for index in range(runs):
            (path / _chunk_name(index, variable.ndim)).write_bytes(nothing)


def _create(
    path: Path, variable: xr.Variable, dtype: np.dtype, shape: tuple[int, ...], chunks: tuple[int, ...]
) -> zarr.Array:
    return zarr.create_array(
        path,
        zarr_format=2,
        shape=shape,
        chunks=chunks,
        dtype=dtype,
        fill_value=np.nan if dtype.kind == "f" else None,
        compressors=None,
        attributes={"_ARRAY_DIMENSIONS": [str(dim) for dim in variable.dims], **variable.attrs},
    )


def _chunk_name(index: int, ndim: int) -> str:
    return ".".join(map(str, [index, *[0] * ndim]))


def _write_attributes(path: Path, attrs: Mapping[str, Any]) -> None:
    """The attribute `coordinates` tells xarray which arrays are coordinates, as soon as they are there."""
    content = {**attrs, "coordinates": " ".join(record.COORDINATES)}
    write_atomically(path.parent, f"{path.name}/.zattrs", json.dumps(content, sort_keys=True))
