"""The records of one run as they come: in memory and, where a path is given, in a store on disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from .. import record
from .stream import Row, Stream

_BY_LAYER = (
    "trainable",
    "weight_norm",
    "learning_rate",
    "gradient_norm",
    "update_norm",
    "empirical_trace",
    "empirical_trace_se",
)
_BY_LOADER = ("fisher_trace", "fisher_trace_se")


class RecordBuffer:
    """Rows along `step`, and the dataset that they make.

    Args:
        num_params: of each layer.
        loaders: names of the dimension `loader`; none, where there is one loader only.
        attrs: what made the run, as far as it is known before the first record.
        path, resume: of a store to begin, or to go on with.
        writes: whether this process is the one that writes it.

    Raises:
        ValueError: as `Stream`; a record to resume that has other layers, loaders or attributes.
    """

    def __init__(
        self,
        num_params: Mapping[str, int],
        loaders: list[str],
        attrs: Mapping[str, Any],
        path: Path | None,
        resume: Path | None,
        writes: bool,
    ) -> None:
        if path is not None and resume is not None:
            raise ValueError("expected path= for a new record or resume= to go on with one, got both")
        self.num_params, self.loaders = dict(num_params), loaders
        self.attrs = {key: value for key, value in attrs.items() if value is not None}
        self.rows: list[Row] = []
        self.resumed = resume is not None
        self._stream: Stream | None = None
        self._kept: dict[str, Any] = {}
        if path is not None and writes:
            self._stream = Stream(path)
        elif resume is not None:
            self._stream = Stream(resume, resume=True)
            self._go_on_from(self._stream)
            self._stream = self._stream if writes else None

    @property
    def last_step(self) -> int:
        """Of the last record; -1 where there is none."""
        return int(self.rows[-1]["step"]) if self.rows else -1

    def _go_on_from(self, stream: Stream) -> None:
        ds = stream.read()
        layers = dict(zip(ds["layer"].values.tolist(), ds["num_params"].values.tolist(), strict=True))
        if layers != self.num_params:
            raise ValueError(
                f"{stream.path}: holds a record of other layers ({_some(layers)}; here {_some(self.num_params)}): give the "
                "same layers= as then, or begin a new one with path="
            )
        if (loaders := ds["loader"].values.tolist() if "loader" in ds.coords else []) != self.loaders:
            raise ValueError(f"{stream.path}: holds a record of loaders {loaders}, here they are {self.loaders}")
        self._kept = ds.attrs
        self._check()
        columns = {str(name): ds[name].values for name in ds.variables if "step" in ds[name].dims}
        self.rows = [{name: column[i] for name, column in columns.items()} for i in range(ds.sizes["step"])]

    def _check(self) -> None:
        """One dataset has one stamp."""
        now = {**record.provenance(), **self.attrs}
        if differing := [key for key, value in now.items() if self.resumed and self._kept.get(key) != value]:
            said = "; ".join(f"{key}: {self._kept.get(key)!r} then, {now[key]!r} now" for key in differing)
            raise ValueError(
                f"the record to resume was made otherwise ({said}): repeat it as it was, or begin a new one with path= and "
                "join them with xarray.concat"
            )

    def cut(self, step: int) -> None:
        """Forgets the records from this step on, which will be made again."""
        self.rows = [row for row in self.rows if row["step"] < step]
        if self._stream is not None:
            self._stream.cut(len(self.rows))

    def add(self, row: Row, attrs: Mapping[str, Any]) -> None:
        """One more record, and what the first one tells of how it was measured.

        Raises:
            OSError: the store cannot be written; the record is in memory, and the next one tries again.
        """
        if new := {key: value for key, value in attrs.items() if value is not None and key not in self.attrs}:
            self.attrs |= new
            self._check()
        self.rows.append(row)
        if self._stream is None:
            return
        try:
            self._stream.write(self.rows, lambda: self.dataset)
        except OSError as error:
            raise OSError(
                error.errno,
                f"the record at step {self.last_step} could not be saved ({error.strerror or error}); all {len(self.rows)} "
                "records are in memory, in .dataset, and those before it are on disk: make room, and the next record saves "
                "this one too",
                str(self._stream.path),
            ) from error

    def close(self) -> None:
        """Nothing more comes, as far as is known."""
        if self._stream is not None:
            self._stream.close()

    @property
    def dataset(self) -> xr.Dataset:
        """All records, over step.

        Raises:
            ValueError: there is none.
        """
        if not self.rows:
            raise ValueError("nothing is recorded yet: the first record is taken at the first update")
        by_loader = ("step", "loader", "layer") if self.loaders else ("step", "layer")
        over = {**dict.fromkeys(_BY_LAYER, ("step", "layer")), **dict.fromkeys(_BY_LOADER, by_loader)}
        columns = {name: self._column(name) for row in self.rows for name in row if name != "step"}
        variables: dict[str, tuple[tuple[str, ...], Any]] = {
            name: (over.get(name, ("step",)), column) for name, column in columns.items()
        }
        variables["num_params"] = (("layer",), np.array(list(self.num_params.values())))
        coords: dict[str, Any] = {"step": [int(row["step"]) for row in self.rows], "layer": list(self.num_params)}
        if self.loaders:
            coords["loader"] = self.loaders
        own = {name: (f"{name}, mean since the last record", "as logged") for name in columns if name not in over}
        return record.build(variables, coords, self.attrs, own)

    def _column(self, name: str) -> np.ndarray:
        """A variable along step; NaN where a record lacks it."""
        some = next(row[name] for row in self.rows if name in row)
        return np.stack([row[name] if name in row else np.full(some.shape, np.nan) for row in self.rows])


def _some(layers: Mapping[str, int], most: int = 4) -> str:
    said = [f"{name} of {count}" for name, count in layers.items()]
    return ", ".join(said[:most]) + (f", ... {len(said)} in all" if len(said) > most else "")
