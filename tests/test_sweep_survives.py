"""Sweeps that are killed at any moment, that meet on one folder, or whose runs fail: nothing is lost, nothing is done twice."""

from __future__ import annotations

import os
import random
import shutil
import signal
from pathlib import Path

import lives
import numpy as np
import nothing
import pytest
import xarray as xr

from fisherdyn.sweep.__main__ import main
from fisherdyn.sweep.engine import InProcess
from fisherdyn.sweep.failures import RETRIES
from fisherdyn.sweep.running import run
from fisherdyn.sweep.store import SweepStore
from fisherdyn.sweep.studies import Run, Settings

STUDY = str(Path(nothing.__file__))
ONE, TWO = ["--workers", "1"], ["--workers", "2"]


def states(folder: Path) -> dict[str, int]:
    """What a reader sees, at any moment, with plain xarray."""
    if not (folder / "runs.zarr").exists():
        return {}
    with xr.open_zarr(folder / "runs.zarr", consolidated=False, chunks=None) as ds:
        names = [f"{a}:{b}" for a, b in zip(ds["schedule"].values, ds["seed"].values, strict=True)]
        return dict(zip(names, ds["status"].values.tolist(), strict=True))


def begun(log: Path) -> list[str]:
    return log.read_text().split() if log.exists() else []


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    assert main([STUDY, *ONE, "--out", str(folder)]) == 0
    return folder


@pytest.mark.parametrize(("workers", "kills"), [(ONE, 30), (TWO, 8)])
def test_killed_at_random_moments_and_gone_on_with(undisturbed, tmp_path, workers, kills):
    """The whole process group by SIGKILL; between the lives what a reader sees is whole, and in the end nothing differs."""
    chance, out, log = random.Random(kills), tmp_path / "out", tmp_path / "log"
    arguments = [STUDY, *workers, "--out", str(out)]
    moments = []
    for _ in range(kills):
        life = lives.Life(tmp_path / "said", arguments, {"LOG": str(log)})
        life.process.join(chance.uniform(0, 0.7))
        life.kill()
        done = {name for name, state in states(out).items() if state == 1}
        moments.append((done, len(begun(log))))
    last = lives.Life(tmp_path / "said", arguments, {"LOG": str(log)})
    assert last.end() == 0, (tmp_path / "said").read_text()
    assert (out / "nothing.nc").read_bytes() == (undisturbed / "nothing.nc").read_bytes()
    everything = begun(log)
    assert set(everything) == set(states(undisturbed))
    for done, so_far in moments:
        assert not done & set(everything[so_far:])
    assert any(0 < len(done) < 200 for done, _ in moments)  # or the moments show nothing
