"""zarr as a sweep needs it: arrays of format 2, not compressed, one chunk a run.

Format 2 because zarr's third has no text of fixed length yet, which is what every reader of xarray handles. Not compressed
because the numbers of a run hardly shrink, and because such a chunk is the array's bytes: it is written as a file in 0.1 ms,
where the library takes 2.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr

from .folder import write_whole

TEXT = 128
"""Characters that a text of a run may have."""


def begin(store: Path) -> None:
    """An empty store in the place of what is left of one that was not finished."""
    shutil.rmtree(store, ignore_errors=True)
    zarr.create_group(store, zarr_format=2)


def text(values: Sequence[Any]) -> np.ndarray:
    """Text as an array of fixed length."""
    return np.array([str(value) for value in values], dtype="U")


def add(store: Path, name: str, variable: xr.Variable) -> None:
    """An array with its values, in one chunk."""
    values = text(variable.values.tolist()) if variable.dtype.kind in "UO" else variable.values
    _create(store, name, variable, values.dtype, values.shape)[...] = values


def add_empty(store: Path, name: str, variable: xr.Variable, runs: int) -> None:
    """Room for such a variable of each run: NaN, -1 or "" until it is written."""
    dtype = np.dtype(f"<U{TEXT}") if variable.dtype.kind == "U" else variable.dtype
    _create(store, name, variable, dtype, (1, *variable.shape), runs)
    if dtype.kind == "i":
        nothing = np.full(variable.shape, -1, dtype).tobytes()
        for index in range(runs):
            (store / name / _chunk(index, variable.ndim)).write_bytes(nothing)


def _create(
    store: Path, name: str, variable: xr.Variable, dtype: np.dtype, chunk: tuple[int, ...], runs: int | None = None
) -> zarr.Array:
    """An array of one chunk, or of one a run."""
    dims = variable.dims if runs is None else ("run", *variable.dims)
    return zarr.create_array(
        store / name,
        zarr_format=2,
        shape=chunk if runs is None else (runs, *chunk[1:]),
        chunks=chunk,
        dtype=dtype,
        # Of integers and text too xarray would take what is filled in as missing, and give floats and objects.
        fill_value=np.nan if dtype.kind == "f" else None,
        compressors=None,
        attributes={"_ARRAY_DIMENSIONS": [str(dim) for dim in dims], **variable.attrs},
    )


def write(store: Path, name: str, index: int, values: np.ndarray, dtype: np.dtype) -> None:
    """One run's chunk.

    Raises:
        TypeError: the values are of another kind than the array's.
    """
    chunk = np.ascontiguousarray(values.astype(dtype, casting="same_kind"))
    write_whole(store.parent, f"{store.name}/{name}/{_chunk(index, values.ndim)}", chunk.tobytes())


def _chunk(index: int, ndim: int) -> str:
    return ".".join(map(str, [index, *[0] * ndim]))


def write_attributes(store: Path, attrs: Mapping[str, Any], coordinates: Sequence[str]) -> None:
    """The group's attributes; `coordinates` tells xarray which arrays are no data, where they are there."""
    described = {**attrs, "coordinates": " ".join(coordinates)}
    write_whole(store.parent, f"{store.name}/.zattrs", json.dumps(described, sort_keys=True))


def fill(dtype: np.dtype) -> Any:
    """What stands where a run has no value."""
    return {"f": np.nan, "U": ""}.get(dtype.kind, -1)
