"""A record that grows on disk along `step`: a zarr store that any moment's kill leaves readable.

What a reader of the store sees is what its consolidated metadata, one file, says. A record's numbers are written first,
beyond the length that this file gives, where no reader looks; then the file is replaced by one with the new length, which
is one atomic rename. A process that is killed in between leaves the store as it was before the record. (A machine that
loses power may lose more: nothing is forced to the disk.)

Rows are written here and not through zarr, whose append makes each array's new length visible on its own: a kill between
two of them would leave arrays of different lengths, which xarray does not open. Uncompressed, a chunk is the array's bytes,
and a row of it some of them.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

ROWS = 64
"""Records in a chunk."""
CONSOLIDATED = ".zmetadata"

Row = Mapping[str, np.ndarray]
"""What one record has along `step`, by variable, the step itself included."""


class Stream:
    """The store of one record, written by one process.

    Args:
        path: where it is or will be.
        resume: go on with the store that is there, from its first `length` records on.

    Raises:
        ValueError: the path is a file, is there already (without `resume`), or holds no record (with it).
    """

    def __init__(self, path: Path, *, resume: bool = False) -> None:
        self.path = path
        self.length = 0
        self._consolidated: dict[str, Any] | None = None
        if path.exists() and not path.is_dir():
            raise ValueError(f"{path}: expected a folder for a zarr store, found a file")
        if resume:
            try:
                self._consolidated = json.loads((path / CONSOLIDATED).read_text())
            except (OSError, ValueError) as error:
                raise ValueError(f"{path}: no record to go on from ({error}); begin one with path=") from None
            self.length = self._arrays["step"]["shape"][0]
        elif path.exists():
            raise ValueError(f"{path}: there is something already; go on from it with resume=, or choose another path")

    @property
    def _arrays(self) -> dict[str, dict[str, Any]]:
        """Array metadata by variable."""
        assert self._consolidated is not None
        ending = "/.zarray"
        return {k.removesuffix(ending): v for k, v in self._consolidated["metadata"].items() if k.endswith(ending)}

    def _growing(self) -> list[str]:
        assert self._consolidated is not None
        attributes = self._consolidated["metadata"]
        return [name for name in self._arrays if "step" in attributes[f"{name}/.zattrs"]["_ARRAY_DIMENSIONS"]]

    def read(self) -> xr.Dataset:
        """The records that are there, in memory."""
        with xr.open_zarr(self.path) as ds:
            return ds.load()

    def cut(self, length: int) -> None:
        """Forgets all records from this one on."""
        if length < self.length:
            self._commit(length)

    def write(self, rows: Sequence[Row], whole: Callable[[], xr.Dataset]) -> None:
        """Makes the store hold `rows`, of which it has the first `length`.

        Args:
            rows: all records, from the first.
            whole: gives them as a dataset: needed for the first one, and where a variable comes that was not there.

        Raises:
            OSError: the store cannot be written; it stays as it was.
        """
        if self._consolidated is None:
            self._create(whole())
            return
        if new := [name for name in rows[-1] if name not in self._arrays]:
            self._add(new, whole())
        for index in range(self.length, len(rows)):
            for name in self._growing():
                self._write_row(name, index, rows[index])
        self._commit(len(rows))

    def close(self) -> None:
        """Tells those readers too that look at arrays one by one, without the consolidated metadata."""
        if self._consolidated is not None:
            for name in self._growing():
                _replace(self.path / name / ".zarray", json.dumps(self._arrays[name]).encode())

    def _create(self, ds: xr.Dataset) -> None:
        """It appears whole or not at all."""
        making = self.path.with_name(f".{self.path.name}.making")
        shutil.rmtree(making, ignore_errors=True)
        making.parent.mkdir(parents=True, exist_ok=True)
        # Format 2: zarr's third has no text of fixed length yet, and no consolidated metadata in its specification.
        ds.to_zarr(making, zarr_format=2, consolidated=True, encoding=_encoding(ds))
        making.rename(self.path)
        self._consolidated = json.loads((self.path / CONSOLIDATED).read_text())
        self.length = ds.sizes["step"]

    def _add(self, names: Sequence[str], ds: xr.Dataset) -> None:
        """New variables, which nobody sees before the commit that follows."""
        assert self._consolidated is not None
        self.close()
        for name in names:
            shutil.rmtree(self.path / name, ignore_errors=True)
        added = ds[list(names)]
        added = added.drop_vars(added.coords)
        added.to_zarr(self.path, mode="a", zarr_format=2, consolidated=False, encoding=_encoding(added))
        for name in names:
            for part in (".zarray", ".zattrs"):
                self._consolidated["metadata"][f"{name}/{part}"] = json.loads((self.path / name / part).read_text())

    def _write_row(self, name: str, index: int, row: Row) -> None:
        array = self._arrays[name]
        dtype, shape = np.dtype(array["dtype"]), array["chunks"]
        missing = np.nan if dtype.kind == "f" else 0
        chunk = self.path / name / ".".join([str(index // ROWS)] + ["0"] * (len(shape) - 1))
        if not chunk.exists():  # xarray leaves out chunks in which there is nothing
            _replace(chunk, np.full(shape, missing, dtype=dtype).tobytes())
        values = np.broadcast_to(np.asarray(row.get(name, missing), dtype=dtype), shape[1:]).tobytes()
        with chunk.open("r+b") as file:
            file.seek(index % ROWS * len(values))
            file.write(values)

    def _commit(self, length: int) -> None:
        """From here on the store has `length` records."""
        for name in self._growing():
            self._arrays[name]["shape"][0] = length
        _replace(self.path / CONSOLIDATED, json.dumps(self._consolidated).encode())
        self.length = length


def _encoding(ds: xr.Dataset) -> dict[str, dict[str, Any]]:
    growing = [name for name in ds.variables if "step" in ds[name].dims]
    return {str(n): {"chunks": (ROWS, *ds[n].shape[1:]), "compressors": None} for n in growing}


def _replace(path: Path, content: bytes) -> None:
    part = path.with_name(path.name + ".part")
    part.write_bytes(content)
    os.replace(part, path)
