"""A study of one's own whose trainer does nearly nothing: made-up records, at once. Some seeds fail, or take their time.

Every run that begins adds a line to the file that LOG names, if it does, and takes PAUSE seconds, if that is said.
"""

from __future__ import annotations

import errno
import os
import signal
import time

import numpy as np
import xarray as xr

from fisherdyn import record

schedules = {f"s{i}": {"policy": "standard"} for i in range(4)}
options = {"seeds": 25, "steps": 4}
KILLED, NO_MEMORY, DIVERGED, NO_DISK, SLOW = 901, 902, 903, 904, 905
"""Seeds whose first row's run does not go well, and one that takes its time."""


def train(run, settings, on_step) -> xr.Dataset:
    if log := os.environ.get("LOG"):
        with open(log, "a") as file:
            file.write(f"{run.schedule}:{run.seed}\n")
    if run.schedule == "s0":
        _go_wrong(run.seed)
    time.sleep(float(os.environ.get("PAUSE", "0")))
    on_step(settings.of(run).steps, 0.5)
    return made_up(run.schedule, run.seed)


def _go_wrong(seed: int) -> None:
    if seed == KILLED:
        os.kill(os.getpid(), signal.SIGKILL)
    if seed == NO_MEMORY:
        raise MemoryError("no room for 8 GiB")
    if seed == DIVERGED:
        raise ValueError("the training loss is nan at step 3: lower lr")
    if seed == NO_DISK:
        raise OSError(errno.ENOSPC, "No space left on device")
    if seed == SLOW:
        time.sleep(3600)


def made_up(schedule: str, seed: int) -> xr.Dataset:
    """Rows differ in what they record, as those of a study do."""
    rng = np.random.default_rng([seed, int(schedule[1:])])
    variables = {
        "fisher_trace": (("step", "layer"), rng.uniform(size=(3, 2))),
        "trainable": (("step", "layer"), np.ones((3, 2), dtype=np.int8)),
        "source_metric": (("step",), rng.uniform(size=3)),
        "metric": (("eval_step", "target"), rng.uniform(size=(1, 2))),
        "num_params": (("layer",), np.array([3, 4])),
    }
    if schedule == "s2":
        variables["exact_match"] = (("eval_step", "target"), rng.uniform(size=(1, 2)))
    if schedule == "s3":
        variables["selected"] = (("layer",), rng.integers(9, size=2))
    coords = {"step": [0, 2, 4], "eval_step": [4], "layer": ["0", "1"], "target": ["a", "b"]}
    coords["distance"] = ("target", [0.1, 0.2])
    return record.build(variables, coords, {"estimator": "none", "likelihood": f"of {schedule}", "seed": seed})
