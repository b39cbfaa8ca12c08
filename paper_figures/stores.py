"""Reading sweeps: a NetCDF file, a sweep's folder, finished or not, or its zarr store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xarray as xr

NEEDED = ("fisher_trace", "trainable", "selected", "source_metric", "metric", "schedule", "seed")
"""Variables and coordinates of a sweep's record that the figures use."""


def read(path: Path) -> xr.Dataset:
    """Reads a sweep's finished runs into memory.

    Raises:
        ValueError: the file does not exist, cannot be read, or holds no sweep; or no run is finished.
    """
    if not path.exists():
        raise ValueError(f"{path}: there is no such file")
    try:
        with _open(path) as opened:
            ds = opened.load()
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{path}: not a record that can be read ({str(error).splitlines()[0]})") from error
    if missing := [name for name in NEEDED if name not in ds.variables]:
        raise ValueError(f"{path}: not the record of a sweep: it has no {', '.join(missing)}")
    if "status" in ds:
        ds = ds.isel(run=np.flatnonzero(ds["status"].values == 1))
    if not ds.sizes["run"]:
        raise ValueError(f"{path}: no run is finished yet")
    return ds


def _open(path: Path) -> xr.Dataset:
    if not path.is_dir():
        return xr.open_dataset(path)
    return xr.open_zarr(path / "runs.zarr" if (path / "runs.zarr").exists() else path, consolidated=False)


def sizes(ds: xr.Dataset) -> list[int]:
    """The numbers of training examples in a low-resource sweep, in its order; [] for any other sweep."""
    varies = "train_examples" in ds.coords and "run" in ds["train_examples"].dims
    return list(dict.fromkeys(ds["train_examples"].values.tolist())) if varies else []


def refuse_several_sizes(ds: xr.Dataset) -> None:
    """Refuses a low-resource sweep, for pictures that would mix runs with few and with many training examples."""
    if len(examples := sizes(ds)) > 1:
        raise ValueError(
            f"runs with {', '.join(map(str, examples))} training examples, which table1 and table12 alone tell apart"
        )


def schedules(ds: xr.Dataset) -> list[str]:
    """The schedules of a sweep, in its order."""
    return list(dict.fromkeys(ds["schedule"].values.tolist()))


PAPERS = ("standard", "random", "top_down", "linear_probing", "fun", "bottom_up", "full")
"""Ids of the policies that the paper compares, in the order of its Table 2."""
ORDER = "permutation"
"""Id of the policy of fixed orders."""


def schedules_of(ds: xr.Dataset, policy: str) -> list[str]:
    """The schedules of one policy, by its id."""
    return [name for name in schedules(ds) if policies(ds)[name] == policy]


def compared(ds: xr.Dataset, among: Sequence[str] = PAPERS) -> list[str]:
    """The schedules of these policies, in their order, and after them those of the sweep's own policies."""
    known = policies(ds)
    own = [policy for policy in dict.fromkeys(known.values()) if policy not in (*PAPERS, ORDER)]
    return [name for policy in (*among, *own) for name in schedules_of(ds, policy)]


def policies(ds: xr.Dataset) -> dict[str, str]:
    """Schedule -> the id of its policy.

    Raises:
        ValueError: the record does not say.
    """
    if "policy" not in ds.coords:
        raise ValueError("no policies of its schedules: assign a coordinate policy over run, such as top_down")
    return dict(zip(ds["schedule"].values.tolist(), ds["policy"].values.tolist(), strict=True))


def count(seeds: int) -> str:
    """ "1 seed", "3 seeds" """
    return f"{seeds} seed{'s' if seeds > 1 else ''}"


def only(ds: xr.Dataset, names: Sequence[str]) -> xr.Dataset:
    """The runs of these schedules."""
    return ds.isel(run=np.flatnonzero(np.isin(ds["schedule"].values, names)))
