"""Sweeps that are killed at any moment, that meet on one folder, or whose runs fail: nothing is lost or done twice."""

from __future__ import annotations

import os
import random
import shutil
import signal
from pathlib import Path

import lives
import nothing
import numpy as np
import pytest
import xarray as xr

from fisherdyn.sweep import folder as folder_module
from fisherdyn.sweep import zarr_store
from fisherdyn.sweep.__main__ import main
from fisherdyn.sweep.engine import InProcess
from fisherdyn.sweep.failures import RETRIES
from fisherdyn.sweep.running import run
from fisherdyn.sweep.runs import Run, Settings
from fisherdyn.sweep.store import SweepStore

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
        until = len(begun(log)) + chance.randrange(6)
        life = lives.Life(tmp_path / "said", arguments, {"LOG": str(log)})
        # Or it has come to the end: on a slow machine more runs are done before a kill arrives.
        lives.wait_for(lambda n=until, one=life: len(begun(log)) >= n or not one.process.is_alive(), pause=0.001)
        life.process.join(chance.uniform(0, 0.02))  # of a run: about as long as one takes
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
    assert len({len(done) for done, _ in moments} - {0, 100}) > kills / 3  # or the moments show nothing


class Killed(BaseException):
    """At one write: what a process that is killed there leaves on the disk."""


def few(folder: Path, runs: int = 8) -> SweepStore:
    made = [Run(f"s{i % 4}", (), i // 4, "standard") for i in (range(runs) if runs != 2 else (0, 2))]
    return SweepStore(folder, "nothing", made, Settings(steps=4, record_every=2, evaluate_every=4))


def finish(store: SweepStore, order=lambda runs: runs, train=nothing.train) -> xr.Dataset:
    with store:
        wanted = order(list(range(len(store.runs))))
        assert run(store, lambda watch: InProcess(train, watch), wanted, lambda: None) == {}
        return store.read()


def killed_at(write: int, folder: Path, monkeypatch) -> bool:
    """Whether there was such a write."""
    count = 0

    def counted(do):
        def replacement(*arguments):
            nonlocal count
            count += 1
            if count == write:
                (folder / folder_module.UNFINISHED_FILE).write_text("half of a file")
                raise Killed
            return do(*arguments)

        return replacement

    with monkeypatch.context() as patch:
        for module in (folder_module, zarr_store):
            patch.setattr(module, "write_atomically", counted(module.write_atomically))
        patch.setattr(Path, "rename", counted(Path.rename))
        try:
            finish(few(folder, 2))
        except Killed:
            return True
    return False


def test_killed_at_every_single_write(tmp_path, monkeypatch, capsys):
    expected = finish(few(tmp_path / "undisturbed", 2))
    write = 1
    while killed_at(write, folder := tmp_path / str(write), monkeypatch):
        xr.testing.assert_identical(finish(few(folder, 2)), expected)
        shutil.rmtree(folder)
        write += 1
    assert write > 20
    capsys.readouterr()


def test_a_status_that_is_written_first_is_found_out(tmp_path, monkeypatch, capsys):
    """The control of the test above: a store in the wrong order loses a run."""
    expected, mark, write = finish(few(tmp_path / "undisturbed", 2)), SweepStore._mark, SweepStore.write
    monkeypatch.setattr(SweepStore, "write", lambda self, index, ds: (mark(self, index, 1), write(self, index, ds)))
    differing = 0
    for moment in range(5, 25):
        if killed_at(moment, folder := tmp_path / str(moment), monkeypatch):
            differing += not finish(few(folder, 2)).identical(expected)
    assert differing
    capsys.readouterr()


@pytest.mark.parametrize(
    "order", [sorted, lambda runs: runs[::-1], lambda runs: random.Random(3).sample(runs, len(runs))]
)
def test_the_order_in_which_runs_end_leaves_no_trace(tmp_path, capsys, order):
    stores = few(tmp_path / "in order"), few(tmp_path / "another")
    expected, found = finish(stores[0]), finish(stores[1], order)
    xr.testing.assert_identical(found, expected)
    assert stores[0].publish().read_bytes() == stores[1].publish().read_bytes()
    assert "likelihood" not in found.attrs  # it differs from row to row
    assert found["selected"].values[0].tolist() == [-1, -1]
    assert found["exact_match"].isnull().all(["eval_step", "target"]).values.tolist() == [True, True, False, True] * 2
    capsys.readouterr()


def test_two_at_once_on_one_folder(undisturbed, tmp_path):
    """The second is told who is there; the first goes on as if nothing had been."""
    out = tmp_path / "out"
    arguments = [STUDY, *ONE, "--out", str(out)]
    lived = [lives.Life(tmp_path / str(i), arguments) for i in range(2)]
    codes = [life.end() for life in lived]
    assert sorted(codes) == [0, 2]
    told = (tmp_path / str(codes.index(2))).read_text()
    assert f"another sweep (process {lived[codes.index(0)].process.pid} on " in told
    assert told.count("\n") == 1
    assert (out / "nothing.nc").read_bytes() == (undisturbed / "nothing.nc").read_bytes()


def test_a_reader_sees_whole_runs_alone_while_it_runs(undisturbed, tmp_path):
    """Plain xarray, with no lock: what is marked as done is as it will be."""
    out = tmp_path / "out"
    life = lives.Life(tmp_path / "said", [STUDY, *ONE, "--out", str(out)])
    with xr.open_dataset(undisturbed / "nothing.nc") as ds:
        expected = ds.load()
    seen = set()
    while life.process.is_alive():
        if (out / "runs.zarr").exists():
            with xr.open_zarr(out / "runs.zarr", consolidated=False, chunks=None) as live:
                done = np.flatnonzero(live["status"].values == 1)
                # The first run's variables may have come between the look at what there is and that at the status.
                if len(done) and "metric" in live:
                    xr.testing.assert_equal(
                        live["metric"].isel(run=done).drop_vars("distance"),
                        expected["metric"].isel(run=done).drop_vars("distance"),
                    )
                seen.add(len(done))
    assert life.end() == 0
    assert len(seen) > 3


# ---- runs that fail --------------------------------------------------------------------------------------------------


def test_what_failed_is_marked_retried_where_that_helps_and_said(tmp_path):
    """A killed worker, no memory, a loss that is not finite, a full disk: the others are done, exit code 1."""
    out, log = tmp_path / "out", tmp_path / "log"
    arguments = [STUDY, *TWO, "--first-seed", str(nothing.KILLED), "--seeds", "4", "--out", str(out)]
    assert lives.Life(tmp_path / "said", arguments, {"LOG": str(log)}).end() == 1
    said, names = (tmp_path / "said").read_text(), begun(log)
    expected = {
        nothing.KILLED: ("the worker process was killed", 1 + RETRIES),
        nothing.NO_MEMORY: ("out of memory: no room for 8 GiB", 1 + RETRIES),
        nothing.DIVERGED: ("ValueError: the training loss is nan at step 3", 1),
        nothing.NO_DISK: ("the disk is full", 1 + RETRIES),
    }
    for seed, (reason, times) in expected.items():
        assert f"failed: s0, seed {seed}: {reason}" in said
        assert names.count(f"s0:{seed}") == times
    assert [state for name, state in states(out).items() if name.startswith("s0")] == [-1] * 4
    assert [state for name, state in states(out).items() if not name.startswith("s0")] == [1] * 12
    assert "12 of 16 runs are done; the results below are of these" in said
    assert "4 of 16 runs failed; repeat the command to try them again" in said
    assert "| s1 | Ada | all |" in said
    with xr.open_dataset(out / "nothing.nc") as ds:
        assert ds.sizes["run"] == 12
        assert "s0, seed 903: ValueError: the training loss is nan" in ds.attrs["failed"]
    assert "MemoryError: no room for 8 GiB" in (out / "failures.log").read_text()


def test_failed_runs_are_tried_again_by_the_same_command(undisturbed, tmp_path, capsys):
    def failing(run: Run, settings: Settings, on_step) -> xr.Dataset:
        raise ValueError("not today")

    with few(tmp_path) as store:
        assert len(run(store, lambda watch: InProcess(failing, watch), range(8), lambda: None)) == 8
        assert set(store.failed().values()) == {"ValueError: not today"}
    again = few(tmp_path)
    assert not again.done().any()
    assert finish(again).identical(finish(few(tmp_path / "undisturbed")))
    capsys.readouterr()


def test_a_full_disk_costs_no_result_if_there_is_room_again(tmp_path, monkeypatch, capsys):
    real, calls = SweepStore.write, 0

    def full(self, index, ds):
        nonlocal calls
        calls += 1
        if calls < 4:
            raise OSError(28, "No space left on device")
        real(self, index, ds)

    trained = []

    def train(run, settings, on_step):
        trained.append(run)
        return nothing.train(run, settings, on_step)

    monkeypatch.setattr(SweepStore, "write", full)
    found = finish(few(tmp_path / "full"), train=train)
    assert len(trained) == 8
    monkeypatch.setattr(SweepStore, "write", real)
    assert found.identical(finish(few(tmp_path / "undisturbed")))
    assert "cannot be written yet (No space left on device)" in capsys.readouterr().out


def test_a_disk_that_stays_full_is_said(tmp_path, monkeypatch, capsys):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    with few(tmp_path) as store:
        monkeypatch.setattr("fisherdyn.sweep.zarr_store.write_atomically", full)
        failed = run(store, lambda watch: InProcess(nothing.train, watch), range(8), lambda: None)
    assert len(failed) == 8
    assert all("could not be written" in reason for reason in failed.values())
    capsys.readouterr()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ds: ds.assign_coords(layer=["0", "x"]), r"its layer is \['0', 'x'\], the other runs' \['0', '1'\]"),
        (lambda ds: ds.assign_coords(step=[0, 3, 4]), "its record has step 3, which no other run has"),
        (lambda ds: ds.assign_attrs(packages="torch 1.0"), r"trained with other versions \(packages\)"),
        (lambda ds: ds.assign(trainable=("layer", np.zeros(2, np.int8))), "its trainable is"),
        (lambda ds: ds.assign(num_params=("layer", np.array([3, 5]))), "its num_params is"),
    ],
)
def test_a_record_that_does_not_fit_is_refused_by_name(tmp_path, change, message):
    with few(tmp_path) as store:
        store.write(0, nothing.made_up("s0", 0))
        with pytest.raises(ValueError, match=message):
            store.write(1, change(nothing.made_up("s1", 0)))
        assert store.done().tolist() == [True] + [False] * 7


def test_ctrl_c_keeps_what_is_done(tmp_path):
    out = tmp_path / "out"
    for workers in (ONE, TWO):
        seeds = ["--first-seed", str(nothing.SLOW - 1), "--seeds", "2", "--only", "*:905", "--only", "s1:904"]
        life = lives.Life(tmp_path / "said", [STUDY, *workers, *seeds, "--out", str(out)])
        lives.wait_for(lambda: 1 in states(out).values())
        life.process.join(0.5)
        os.kill(life.process.pid, signal.SIGINT)
        assert life.end() == 130
        life.kill()
    said = (tmp_path / "said").read_text()
    assert said.count("stopped; what is finished is kept: repeat the command to go on") == 2
    assert "Traceback" not in said


# ---- what is not the sweep's ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["nothing.nc", "nothing.nc.part", "runs.zarr/notes", ".runs.zarr.making/notes", "report.md", "figure-4.pdf"]
)
def test_a_new_sweep_replaces_no_file_that_it_did_not_make(tmp_path, name):
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("a user's")
    with pytest.raises(
        ValueError, match=f"holds {file.relative_to(tmp_path).parts[0]} but no sweep.json; choose another"
    ):
        few(tmp_path)
    assert file.read_text() == "a user's"
    assert not (tmp_path / "sweep.json").exists()


def test_other_files_in_the_folder_survive(tmp_path, capsys):
    (tmp_path / "thesis").mkdir()
    files = [tmp_path / "notes.txt", tmp_path / "thesis" / "chapter.tex", tmp_path / ".part"]
    for file in files:
        file.write_text("a user's")
    store = few(tmp_path)
    finish(store)
    store.publish()
    assert [file.read_text() for file in files] == ["a user's"] * 3
    capsys.readouterr()
