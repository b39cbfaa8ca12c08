"""The command line, as its users meet it: a study from end to end, stopped and gone on with, and every wrong argument."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from fisherdyn.sweep import report, studies
from fisherdyn.sweep.__main__ import main, plan
from fisherdyn.sweep.engine import run_all
from fisherdyn.sweep.store import SweepStore
from fisherdyn.sweep.studies import FIGURE_4, Run, Settings

COMMAND = [sys.executable, "-m", "fisherdyn.sweep"]
SMALL = ["permutations", "--steps", "12", "--seeds", "1", "--schedules", "2"]


def call(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False, **options
    )


def stored(folder: Path) -> xr.Dataset:
    with xr.open_dataset(folder / "permutations.nc") as ds:
        return ds.load()


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, str]:
    """A sweep that nothing disturbed, in one process."""
    folder = tmp_path_factory.mktemp("sweep")
    done = call(*SMALL, "--workers", "1", "--out", str(folder))
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_says_what_it_found(finished):
    folder, out = finished
    assert "| schedule | source % | transfer % (95 %)" in out
    assert "3 runs, 1 seed, 12 steps, k = 1" in out
    assert "Not answered with one seed: whether top-down transfers better than standard" in out
    assert "Spearman" in out
    for name in ("permutations.nc", "report.md", "figure-4.png", "figure-4.pdf", "runs.zarr"):
        assert (folder / name).exists(), name
        assert name == "runs.zarr" or str(folder / name) in out


def test_is_a_dataset_that_plain_xarray_opens(finished):
    folder, _ = finished
    ds = stored(folder)
    assert dict(ds.sizes) == {"run": 3, "step": 13, "layer": 12, "eval_step": 4, "target": 9}
    assert ds["schedule"].values.tolist() == ["standard", "top-down", "figure-4/1"]
    assert (ds["status"] == 1).all()
    assert (ds["fisher_trace"] > 0).all()
    opened = ds["selected"].sel(run=2).values
    assert [int(np.flatnonzero(opened == k)[0]) for k in range(1, 12)] == list(FIGURE_4[1])
    assert all({"long_name", "units"} <= set(v.attrs) for v in ds.variables.values())
    assert {"study", "task", "lr", "estimator", "packages", "revision"} <= set(ds.attrs)
    with xr.open_zarr(folder / "runs.zarr", consolidated=False) as live:
        np.testing.assert_array_equal(live["fisher_trace"].values, ds["fisher_trace"].values)


def test_two_workers_give_the_same_dataset(finished, tmp_path):
    done = call(*SMALL, "--workers", "2", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    xr.testing.assert_identical(stored(tmp_path), stored(finished[0]))


def _wait_for(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return
        time.sleep(0.05)
    raise TimeoutError


@pytest.mark.parametrize(("how", "workers"), [(signal.SIGKILL, "2"), (signal.SIGINT, "2"), (signal.SIGINT, "1")])
def test_stopped_and_gone_on_with(finished, tmp_path, how, workers):
    """Stopped once some runs are there, and again at another moment: the third command ends with the same dataset."""
    arguments = [*SMALL, "--workers", workers, "--out", str(tmp_path)]
    for begun in (False, True):
        process = subprocess.Popen(
            [*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        if begun:
            assert process.stdout is not None
            assert any(
                "are there already" in line for line in process.stdout
            )  # printed as the runs that are left begin
        else:
            _wait_for(lambda: _runs_done(tmp_path) >= 1)
        process.send_signal(how)
        _, err = process.communicate(timeout=60)
        if how == signal.SIGINT:
            assert process.returncode == 130
            assert "repeat the command to go on" in err
            assert "Traceback" not in err
        _wait_for(lambda group=process.pid: not _group_lives(group), 30)
    done = call(*arguments)
    assert done.returncode == 0, done.stderr
    assert "of 3 runs are there already" in done.stdout
    xr.testing.assert_identical(stored(tmp_path), stored(finished[0]))


def _runs_done(folder: Path) -> int:
    """Files do not tell: a chunk of `status` may be there before its run is."""
    if not (folder / "runs.zarr").exists():
        return 0
    with xr.open_zarr(folder / "runs.zarr", consolidated=False) as ds:
        return int(ds["status"].sum())


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_repeating_a_finished_sweep_trains_nothing(finished, capsys):
    before = stored(finished[0])
    assert main([*SMALL, "--workers", "1", "--out", str(finished[0])]) == 0
    assert "3 of 3 runs are there already" in capsys.readouterr().out
    xr.testing.assert_identical(stored(finished[0]), before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--order", "10,10,9"], "missing 0, 1, 2, 3, 4, 5, 6, 7, 8; repeated 10"),
        (["--order", "11,9,8,7,6,5,4,3,2,1,0"], "missing 10; unknown 11"),
        (["--order", "a,b"], "expected layer numbers separated by commas"),
        (["--order", "10,9,8,7,6,5,4,3,2,1,0"], "is there already"),
        (["--schedules", "11"], "Figure 4 has 10; choose 0 to 10"),
        (["--schedules", "-1"], "choose 0 to 10"),
        (["--steps", "0"], "--steps 0: expected at least 1"),
        (["--steps", "many"], "invalid int value: 'many'"),
        (["--seeds", "0"], "--seeds 0: expected at least 1"),
        (["--workers", "0"], "--workers 0: expected at least 1"),
        (["--first-seed", "-1"], "--first-seed -1: expected at least 0"),
        (["--interval", "0"], "--interval 0: expected at least 1"),
        (["--lr", "0"], "--lr 0.0: expected a positive number"),
        (["--lr", "nan"], "--lr nan: expected a positive number"),
        (["--task", "moon"], "unknown task 'moon': choose one of world, "),
        (["--speed", "9"], "unrecognized arguments: --speed 9"),
        (["--out", "FILE"], "expected a folder, found a file"),
        (["--out", "FILE/sub"], "cannot be written"),
        (["--out", "OTHER"], "holds a sweep with other settings and runs and versions"),
        (["--out", "BROKEN"], "sweep.json is damaged"),
    ],
)
def test_wrong_arguments_end_with_one_line_and_2(arguments, message, tmp_path, capsys):
    (tmp_path / "FILE").write_text("kept")
    (tmp_path / "OTHER").mkdir()
    (tmp_path / "OTHER" / "sweep.json").write_text(
        '{"study": "permutations", "settings": {}, "runs": [], "versions": {}}'
    )
    (tmp_path / "BROKEN").mkdir()
    (tmp_path / "BROKEN" / "sweep.json").write_text("{")
    places = [str(tmp_path / a) if a.isupper() or a == "FILE/sub" else a for a in arguments]
    out = [] if "--out" in places else ["--out", str(tmp_path / "new")]
    with pytest.raises(SystemExit) as stop:
        main(["permutations", *places, *out])
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert (tmp_path / "FILE").read_text() == "kept"


def test_no_study_and_an_unknown_one(capsys):
    for arguments in ([], ["sunrise"]):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_damaged_weights_end_before_training(tmp_path):
    """A copy of the package with a cut checkpoint: one line and exit code 2, from a fresh process."""
    import shutil

    import fisherdyn

    shutil.copytree(Path(fisherdyn.__file__).parent, tmp_path / "fisherdyn")
    weights = tmp_path / "fisherdyn" / "tasks" / "world" / "weights" / "encoder.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    done = call("permutations", "--out", "x", cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert done.returncode == 2
    assert "encoder.safetensors: damaged checkpoint" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "x").exists()


def test_a_damaged_store_is_named(finished, tmp_path):
    import shutil

    shutil.copytree(finished[0], tmp_path / "copy")
    (tmp_path / "copy" / "runs.zarr" / "status" / ".zarray").write_text("{")
    done = call(*SMALL, "--out", str(tmp_path / "copy"))
    assert done.returncode == 2
    assert "runs.zarr: damaged" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_second_sweep_on_the_folder_is_told(tmp_path):
    runs, settings = studies.permutations([0], 0), Settings()
    command = ["permutations", "--schedules", "0", "--seeds", "1", "--out", str(tmp_path)]
    with SweepStore(tmp_path, "permutations", runs, settings):
        done = call(*command)
        assert done.returncode == 2
        assert f"another sweep (process {os.getpid()}) is writing here" in done.stderr
    with SweepStore(tmp_path, "permutations", runs, settings) as second:
        assert not second.done().any()


def _fails_for_seed_1(run: Run, settings: Settings) -> xr.Dataset:
    if run.seed == 1:
        raise ValueError("the training loss is nan")
    return xr.Dataset({"x": run.seed})


@pytest.mark.parametrize("workers", [1, 2])
def test_one_failing_run_does_not_stop_the_others(workers):
    runs = {i: Run("standard", (), seed) for i, seed in enumerate((0, 1, 2))}
    found = dict(run_all(runs, Settings(), workers, _fails_for_seed_1))
    assert sorted(found) == [0, 1, 2]
    assert isinstance(found[1], ValueError)
    assert found[2]["x"] == 2


def test_plan_shares_seeds_and_leaves_time_with_all_open():
    from fisherdyn.sweep.__main__ import parse

    runs, settings = plan(parse(["permutations", "--first-seed", "5", "--seeds", "3"])[1])
    assert len(runs) == 33
    assert {run.seed for run in runs} == {5, 6, 7}
    assert settings.interval * 11 <= 0.6 * settings.steps


def test_figure_4_is_the_papers():
    assert len(FIGURE_4) == 10
    assert all(sorted(order) == list(range(11)) for order in FIGURE_4)
    assert FIGURE_4[0] == tuple(range(10, -1, -1))
    assert FIGURE_4[7] == (10, 1, 0, 3, 9, 6, 8, 2, 5, 7, 4)  # footnote 8's example


def sweep_record(effect: float, seeds: int = 8) -> xr.Dataset:
    """A made-up sweep where top-down is better than standard by `effect`, and a higher peak goes with transfer."""
    rng = np.random.default_rng(0)
    names = ["standard", "top-down", *(f"figure-4/{i}" for i in range(1, 10))]
    runs = [(name, seed) for seed in range(seeds) for name in names]
    steps = np.arange(0, 101, 5)
    base = {name: 0.6 + 0.01 * i for i, name in enumerate(names)} | {"standard": 0.6, "top-down": 0.6 + effect}
    transfer = np.array([base[name] + 0.002 * rng.normal() for name, _ in runs])
    bump = np.exp(-((steps - 50.0) ** 2) / 200)
    trace = transfer[:, None, None] * bump[None, :, None] * np.ones((1, 1, 12))
    distance = np.linspace(0.1, 0.9, 9)
    metric = transfer[:, None, None] - (distance - distance.mean())[None, None] * np.ones((1, 4, 1)) * 0.2
    return xr.Dataset(
        {
            "fisher_trace": (("run", "step", "layer"), trace),
            "trainable": (("run", "step", "layer"), np.ones_like(trace)),
            "source_metric": (("run", "step"), np.tile(transfer[:, None], (1, len(steps)))),
            "metric": (("run", "eval_step", "target"), metric),
        },
        {
            "step": steps,
            "eval_step": [25, 50, 75, 100],
            "layer": [str(i) for i in range(12)],
            "target": list("abcdefghi"),
            "distance": ("target", distance),
            "schedule": ("run", [name for name, _ in runs]),
            "seed": ("run", [seed for _, seed in runs]),
        },
        {"steps": 100, "interval": 5, "lr": 0.002},
    )


def test_findings_say_found_only_where_it_is():
    said = report.findings(sweep_record(0.05))
    assert "Found: top-down transfers better than standard, paired over seeds: +4.9 points" in said
    assert "Found: the order matters" in said
    assert "Found: the height of tr(F)'s peak goes with transfer" in said
    assert "Found: transfer falls with a language's distance" in said
    assert "transfers worse" in report.findings(sweep_record(-0.05))
    assert "Not found: a difference in transfer" in report.findings(sweep_record(0.0))


def test_one_seed_has_no_interval():
    ds = sweep_record(0.05, seeds=1)
    assert "(one seed)" in report.table(ds)
    assert "inf" not in report.table(ds)
    said = report.findings(ds)
    assert said.count("Not answered with one seed") == 5
    assert "Found: top-down" not in said


def _kills_its_worker(run: Run, settings: Settings) -> xr.Dataset:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def test_a_killed_worker_is_reported():
    runs = {i: Run("standard", (), i) for i in range(2)}
    found = dict(run_all(runs, Settings(), 2, _kills_its_worker))
    assert all("worker process was killed" in str(error) for error in found.values())


def test_a_sweep_begun_with_other_versions_is_not_gone_on_with(tmp_path):
    runs = studies.permutations([0], 0)
    SweepStore(tmp_path, "permutations", runs, Settings()).close()
    plan_file = tmp_path / "sweep.json"
    plan_file.write_text(plan_file.read_text().replace('"revision": "', '"revision": "another-'))
    with pytest.raises(ValueError, match="holds a sweep with other versions"):
        SweepStore(tmp_path, "permutations", runs, Settings())
