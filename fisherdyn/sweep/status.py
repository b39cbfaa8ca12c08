"""What of a sweep is done, has failed and is left, also while it runs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import xarray as xr

from .folder import RUNS, holder
from .store import DONE, FAILED, WAITING
from .zarr_store import reasons


def status(folder: Path, study: str) -> str:
    """A table with a row for each schedule, and why runs failed; only reads.

    Args:
        folder: the sweep's folder.
        study: the study that was asked for. If the folder belongs to another one, the first line says so.

    Raises:
        ValueError: there is no sweep in the folder.
    """
    path = folder / RUNS
    try:
        with xr.open_zarr(path, consolidated=False, chunks=None) as ds:
            states, schedules, seeds = ds["status"].values, ds["schedule"].values.tolist(), ds["seed"].values.tolist()
            stored_study = str(ds.attrs.get("study", study))
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"--out {folder}: holds no sweep ({error})") from error
    counts = Counter(zip(schedules, states.tolist(), strict=True))
    writer = holder(folder)
    return "\n".join(
        [
            *([f"{folder} is of the study {stored_study}, not of {study}:"] if stored_study != study else []),
            f"{folder}: {int((states == DONE).sum())} of {len(states)} runs are done; "
            f"{f'written now by {writer}' if writer else 'nobody writes here now'}.",
            "| schedule | done | failed | left |",
            "|---|---|---|---|",
            *(
                f"| {name} | {' | '.join(str(counts[name, state]) for state in (DONE, FAILED, WAITING))} |"
                for name in dict.fromkeys(schedules)
            ),
            *(
                f"failed: {schedules[index]}, seed {seeds[index]}: {reason}"
                for index, reason in reasons(path, np.flatnonzero(states == FAILED)).items()
            ),
        ]
    )
