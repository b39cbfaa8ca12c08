"""What of a sweep is done, has failed and is left, also while it runs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import xarray as xr

from .folder import RUNS, holder
from .store import DONE, FAILED, WAITING, reasons


def status(folder: Path, study: str) -> str:
    """A table with one row a schedule, and why runs failed; reads alone. Says so where the folder is another study's.

    Raises:
        ValueError: there is no sweep in the folder.
    """
    store = folder / RUNS
    try:
        with xr.open_zarr(store, consolidated=False, chunks=None) as ds:
            states, schedules, seeds = ds["status"].values, ds["schedule"].values.tolist(), ds["seed"].values.tolist()
            kept = str(ds.attrs.get("study", study))
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"--out {folder}: holds no sweep ({error})") from error
    counted = Counter(zip(schedules, states.tolist(), strict=True))
    rows = ["| schedule | done | failed | left |", "|---|---|---|---|"]
    for name in dict.fromkeys(schedules):
        rows.append(f"| {name} | {' | '.join(str(counted[name, state]) for state in (DONE, FAILED, WAITING))} |")
    said = [f"{folder}: {int((states == DONE).sum())} of {len(states)} runs are done"]
    who = holder(folder)
    said.append(f"written now by {who}" if who else "nobody writes here now")
    why = [f"failed: {schedules[i]}, seed {seeds[i]}: {reason}" for i, reason in reasons(store, states).items()]
    other = [f"{folder} is of the study {kept}, not of {study}:"] if kept != study else []
    return "\n".join([*other, f"{'; '.join(said)}.", *rows, *why])
