"""The records of one run as they come: in memory and, where a file is given, on disk."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from .. import record
from .file import RecordFile
from .logged import STANDARD

Row = Mapping[str, np.ndarray]
"""What one record has along `step`, by variable, the step itself included."""

BY_LAYER = (
    "trainable",
    "weight_norm",
    "learning_rate",
    "gradient_norm",
    "update_norm",
    "empirical_trace",
    "empirical_trace_se",
)
BY_LOADER = ("fisher_trace", "fisher_trace_se", "fisher_trace_skewness")
BY_STEP = ("total_gradient_norm", *STANDARD)


class RecordBuffer:
    """Rows along `step`, and the dataset that they make.

    Args:
        num_params: of each layer.
        loaders: names of the dimension `loader`; empty where there is one loader only.
        attrs: what made the run, as far as it is known before the first record.
        file: what every record is saved to.
        resume: whether to go on with the records that the file has.

    Raises:
        ValueError: an attribute that a file cannot hold; a record to resume that has other layers, loaders or attributes.
    """

    def __init__(
        self,
        num_params: Mapping[str, int],
        loaders: list[str],
        attrs: Mapping[str, Any],
        file: RecordFile | None = None,
        *,
        resume: bool = False,
    ) -> None:
        self.num_params, self.loaders = dict(num_params), loaders
        self.attrs = record.attributes(attrs)
        self.rows: list[Row] = []
        self._file = file
        self._saved = True
        self._resumed_attrs: dict[str, Any] | None = None
        if file is not None and resume:
            self._go_on_from(file)

    @property
    def last_step(self) -> int:
        """Of the last record; -1 where there is none."""
        return int(self.rows[-1]["step"]) if self.rows else -1

    def _go_on_from(self, file: RecordFile) -> None:
        ds = file.read()
        layers = dict(zip(ds["layer"].values.tolist(), ds["num_params"].values.tolist(), strict=True))
        if layers != self.num_params:
            raise ValueError(
                f"{file.path}: holds a record of other layers ({_some(layers)}; here {_some(self.num_params)}): give the "
                "same layers= as then, or begin a new one with path="
            )
        if (loaders := ds["loader"].values.tolist() if "loader" in ds.coords else []) != self.loaders:
            raise ValueError(f"{file.path}: holds a record of loaders {loaders}, here they are {self.loaders}")
        self._resumed_attrs = ds.attrs
        self._require_same_attrs()
        columns = {str(name): ds[name].values for name in ds.variables if "step" in ds[name].dims}
        self.rows = [{name: column[i] for name, column in columns.items()} for i in range(ds.sizes["step"])]

    def _require_same_attrs(self) -> None:
        """One dataset has one stamp: what is resumed was made as what follows."""
        if self._resumed_attrs is None:
            return
        then, now = self._resumed_attrs, {**record.provenance(), **self.attrs}
        if differing := [key for key, value in now.items() if key not in then or not np.array_equal(then[key], value)]:
            changes = "; ".join(f"{key}: {then.get(key)!r} then, {now[key]!r} now" for key in differing)
            raise ValueError(
                f"the record to resume was made otherwise ({changes}): repeat it as it was, or begin a new one with path= "
                "and join them with xarray.concat"
            )

    def cut(self, step: int) -> None:
        """Forgets the records from this step on, which will be made again."""
        kept = [row for row in self.rows if row["step"] < step]
        self._saved &= len(kept) == len(self.rows)
        self.rows = kept

    def add(self, row: Row, attrs: Mapping[str, Any]) -> None:
        """One more record, and what the first one tells of how it was measured.

        Raises:
            OSError: the file cannot be written; the record is in memory, and the next one tries again.
        """
        if new := {key: value for key, value in record.attributes(attrs).items() if key not in self.attrs}:
            self.attrs |= new
            self._require_same_attrs()
        self.rows.append(row)
        self._saved = False
        self.save()

    def save(self) -> None:
        """Writes the file, unless it has everything."""
        if self._file is None or self._saved or not self.rows:
            return
        try:
            self._file.write(self.dataset)
        except OSError as error:
            raise OSError(
                error.errno,
                f"the record at step {self.last_step} could not be saved ({error.strerror or error}); all {len(self.rows)} "
                "records are in memory, in .dataset, and those before it are on disk: once the disk can be written to, the "
                "next record saves this one too",
                str(self._file.path),
            ) from error
        self._saved = True

    @property
    def dataset(self) -> xr.Dataset:
        """All records, over step.

        Raises:
            ValueError: there is none.
        """
        if not self.rows:
            raise ValueError("nothing is recorded yet: the first record is taken at the first update")
        by_loader = ("step", "loader", "layer") if self.loaders else ("step", "layer")
        dims = {**dict.fromkeys(BY_LAYER, ("step", "layer")), **dict.fromkeys(BY_LOADER, by_loader)}
        names = dict.fromkeys(name for row in self.rows for name in row if name != "step")
        columns = {name: self._column(name) for name in names}
        variables: dict[str, tuple[tuple[str, ...], Any]] = {
            name: (dims.get(name, ("step",)), column) for name, column in columns.items()
        }
        variables["num_params"] = (("layer",), np.array(list(self.num_params.values())))
        coords: dict[str, Any] = {"step": [int(row["step"]) for row in self.rows], "layer": list(self.num_params)}
        if self.loaders:
            coords["loader"] = self.loaders
        logged = columns.keys() - {*BY_LAYER, *BY_LOADER, *BY_STEP}
        described = {name: (f"{name}, mean since the last record", "as logged") for name in logged}
        return record.build(variables, coords, self.attrs, described)

    def _column(self, name: str) -> np.ndarray:
        """A variable along step; NaN where a record lacks it."""
        shape = next(row[name] for row in self.rows if name in row).shape
        column = np.stack([row[name] if name in row else np.full(shape, np.nan) for row in self.rows])
        return record.flags(column) if name == "trainable" else column

    def state_dict(self) -> dict[str, Any]:
        """The records, in plain Python values."""
        rows = [{name: value.tolist() for name, value in row.items()} for row in self.rows]
        return {"rows": rows, "attrs": dict(self.attrs)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rows = [{name: np.asarray(value) for name, value in row.items()} for row in state["rows"]]
        self.attrs = {**state["attrs"], **self.attrs}
        self._saved = False


def _some(layers: Mapping[str, int], most: int = 4) -> str:
    texts = [f"{name} of {count}" for name, count in layers.items()]
    return ", ".join(texts[:most]) + (f", ... {len(texts)} in all" if len(texts) > most else "")
