"""The command line, as its users meet it: a study from end to end, stopped and gone on with, and every wrong argument."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from fisherdyn.sweep import report
from fisherdyn.sweep.__main__ import main, parse, plan, sweep
from fisherdyn.sweep.engine import InProcess
from fisherdyn.sweep.execute import execute
from fisherdyn.sweep.folder import claim
from fisherdyn.sweep.orders import FIGURE_4, random_orders
from fisherdyn.sweep.planning import selected
from fisherdyn.sweep.runs import Run, Settings
from fisherdyn.sweep.store import SweepStore

COMMAND = [sys.executable, "-m", "fisherdyn.sweep"]
SIZES = {"train_examples": 64, "dev_examples": 20, "test_examples": 20, "probe_examples": 8}
SMALL = Settings(steps=12, interval=1, record_every=6, evaluate_every=12, options=SIZES)


def call(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False, **options
    )


def stored(folder: Path) -> xr.Dataset:
    with xr.open_dataset(folder / "permutations.nc") as ds:
        return ds.load()


def small_sweep(folder: Path) -> int:
    """The first three rows of `permutations`, small."""
    runs, _ = planned("permutations", "--seeds", "1", "--schedules", "2")
    with SweepStore(folder, "permutations", runs, SMALL) as store:
        return sweep(store, range(3), lambda watch: InProcess(execute, watch), lambda: None)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    assert small_sweep(folder) == 0
    return folder


def test_says_what_it_found(finished, capsys):
    """Repeated, it trains nothing and says the same."""
    before = stored(finished)
    assert small_sweep(finished) == 0
    out = capsys.readouterr().out
    assert "3 of 3 runs are there already" in out
    assert "| schedule | source % | transfer % (95 %)" in out
    assert "3 runs, 1 seed, 12 steps, k = 1" in out
    assert "Not answered with one seed: whether top-down transfers better than standard" in out
    assert "Spearman" in out
    for name in ("permutations.nc", "report.md", "figure-4.png", "figure-4.pdf"):
        assert (finished / name).exists(), name
        assert str(finished / name) in out
    xr.testing.assert_identical(stored(finished), before)


def test_is_a_dataset_that_plain_xarray_opens(finished):
    ds = stored(finished)
    assert dict(ds.sizes) == {"run": 3, "step": 3, "layer": 12, "eval_step": 1, "target": 9}
    assert ds["schedule"].values.tolist() == ["standard", "top-down", "figure-4/1"]
    assert (ds["status"] == 1).all()
    assert (ds["fisher_trace"] > 0).all()
    opened = ds["selected"].sel(run=2).values
    assert [int(np.flatnonzero(opened == k)[0]) for k in range(1, 12)] == list(FIGURE_4[1])
    assert all({"long_name", "units"} <= set(v.attrs) for v in ds.variables.values())
    assert {"study", "task", "lr", "estimator", "packages", "revision"} <= set(ds.attrs)
    with xr.open_zarr(finished / "runs.zarr", consolidated=False) as live:
        np.testing.assert_array_equal(live["fisher_trace"].values, ds["fisher_trace"].values)
        assert set(live.coords) == set(ds.coords)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--order", "10,10,9"], "missing 0, 1, 2, 3, 4, 5, 6, 7, 8; repeated 10"),
        (["--order", "11,9,8,7,6,5,4,3,2,1,0"], "missing 10; unknown 11"),
        (["--order", "a,b"], "expected layer numbers separated by commas"),
        (["--order", "10,9,8,7,6,5,4,3,2,1,0"], "is there already"),
        (["--schedules", "11"], "Figure 4 has 10; choose 0 to 10"),
        (["--schedules", "-1"], "expected schedules as a whole number of at least 0, got -1"),
        (["--steps", "0"], "expected steps as a whole number of at least 1, got 0"),
        (["--steps", "many"], "Invalid value for --steps: expected a whole number, got 'many'"),
        (["--steps", "2.5"], "Invalid value for --steps: expected a whole number, got '2.5'"),
        (["--seeds", "0"], "expected seeds as a whole number of at least 1, got 0"),
        (["--workers", "0"], "expected workers as a whole number of at least 1, got 0"),
        (["--first-seed", "-1"], "expected first_seed as a whole number of at least 0, got -1"),
        (["--interval", "0"], "expected interval as a whole number of at least 1, got 0"),
        (["--record-every", "0"], "expected record_every as a whole number of at least 1, got 0"),
        (["--lr", "0"], "expected lr as a number above 0, got 0.0"),
        (["--lr", "nan"], "expected lr as a number above 0, got nan"),
        (["--precision", "int4"], 'Invalid value "int4" for --precision. Choose from: "float32", "bf16"'),
        (["--patience", "0"], "expected patience as a whole number of at least 1, got 0"),
        (["--dry-run", "--status"], "expected --dry-run or --status, got both"),
        (["--task", "moon"], "unknown task 'moon': choose one of world, "),
        (["--only", "moon"], "--only moon: no such run; schedules: standard, top-down, figure-4/1"),
        (["--random-orders", "0"], "expected random_orders as a whole number of at least 1, got 0"),
        (["--random-orders", "3", "--schedules", "2"], "expected --schedules or --random-orders, got both"),
        (["--device", "abacus"], "device abacus: torch knows no such device"),
        (["--status"], "holds no sweep"),
        (["--no-resume", "--out", "OTHER"], "holds a sweep; choose another folder or delete it"),
        (["--speed", "9"], "Unknown option: --speed"),
        (["--out", "FILE"], "expected a folder, found a file"),
        (["--out", "FILE/sub"], "cannot be written"),
        (["--out", "OTHER"], "holds a sweep with other settings ("),
        (["--out", "BROKEN"], "sweep.json is damaged"),
    ],
)
def test_wrong_arguments_end_with_one_line_and_2(arguments, message, tmp_path, capsys):
    (tmp_path / "FILE").write_text("kept")
    (tmp_path / "OTHER").mkdir()
    (tmp_path / "OTHER" / "sweep.json").write_text(
        '{"study": "permutations", "settings": {}, "runs": [], "trained_by": "", "versions": {}}'
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

    shutil.copytree(finished, tmp_path / "copy")
    (tmp_path / "copy" / "runs.zarr" / "status" / ".zarray").write_text("{")
    with pytest.raises(ValueError, match=r"runs.zarr: damaged .* delete it and repeat the command"):
        small_sweep(tmp_path / "copy")


def test_plan_shares_seeds_and_leaves_time_with_all_open():
    runs, settings = planned("permutations", "--first-seed", "5", "--seeds", "3")
    assert len(runs) == 33
    assert {run.seed for run in runs} == {5, 6, 7}
    assert settings.interval * 11 <= 0.6 * settings.steps


def planned(*arguments: str):
    return plan(parse(arguments))


def test_sampled_orders_keep_to_footnote_8():
    """Layer 10 or 9 first; top-down is the paper's own addition; a larger sample begins with the smaller one."""
    orders = random_orders(400)
    assert len(set(orders)) == 400
    assert all(sorted(order) == list(range(11)) for order in orders)
    first = [order[0] for order in orders]
    assert set(first) == {9, 10}
    assert abs(first.count(9) - 200) < 3 * 10  # three standard deviations of a fair coin
    assert FIGURE_4[0] not in orders
    assert random_orders(5) == orders[:5]
    runs, _ = planned("permutations", "--random-orders", "9", "--seeds", "2")
    rows = list(dict.fromkeys(run.schedule for run in runs))
    assert rows == ["standard", "top-down", *(f"random-order/{i}" for i in range(1, 10))]
    assert len(runs) == 22


def test_figure_4_keeps_to_it_too():
    assert all(order[0] in (9, 10) for order in FIGURE_4)


def test_intervals_are_the_recipes_or_ones_own():
    runs, settings = planned("interval", "--seeds", "1")
    assert [run.schedule for run in runs][:2] == ["standard", "top-down, k = 2"]
    assert [settings.of(run).interval for run in runs if run.policy == "fun"] == [2, 4, 7, 10]
    runs, settings = planned("interval", "--seeds", "2", "--intervals", "3,5")
    assert len(runs) == 2 * 5
    assert {settings.of(run).interval for run in runs if run.policy != "standard"} == {3, 5}
    for wrong in ("3,x", "0", "3,3"):
        with pytest.raises(ValueError, match="expected intervals"):
            planned("interval", "--intervals", wrong)


def test_only_names_runs():
    runs, _ = planned("permutations", "--seeds", "3")
    assert [str(runs[i]) for i in selected(runs, ["top-down:1", "standard"])] == [
        "standard, seed 0",
        "standard, seed 1",
        "top-down, seed 1",
        "standard, seed 2",
    ]
    assert len(selected(runs, ["figure-4/*"])) == 27
    assert selected(runs, []) == list(range(33))


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
    assert "tr(F) per open adapter peaks higher under top-down" in said  # peak and transfer are one in this record
    assert "transfers worse" in report.findings(sweep_record(-0.05))
    other_way = sweep_record(0.05).assign_coords(distance=("target", np.linspace(0.9, 0.1, 9)))
    assert "Not found: that transfer falls with a language's distance" in report.findings(other_way)
    assert "Not found: a difference in transfer" in report.findings(sweep_record(0.0))


def test_a_study_with_several_learning_rates_has_a_table():
    with xr.open_dataset(Path(__file__).resolve().parent.parent / "data" / "compare-lr8e-3.nc") as ds:
        said = report.table(ds.load())
    assert "| full | 97.4 | 91.1 ± 2.3 |" in said
    assert "k = 20. Results" in said


def test_one_seed_has_no_interval():
    ds = sweep_record(0.05, seeds=1)
    assert "(one seed)" in report.table(ds)
    assert "inf" not in report.table(ds)
    said = report.findings(ds)
    assert said.count("Not answered with one seed") == 5
    assert "Found: top-down" not in said


def test_a_sweep_begun_with_other_versions_is_not_gone_on_with(tmp_path):
    runs = [Run("standard", (), 0)]
    SweepStore(tmp_path, "permutations", runs, Settings()).close()
    plan_file = tmp_path / "sweep.json"
    plan_file.write_text(plan_file.read_text().replace('"revision": "', '"revision": "another-'))
    with pytest.raises(ValueError, match="holds a sweep with other versions"):
        SweepStore(tmp_path, "permutations", runs, Settings())


def test_other_settings_of_a_folder_are_named(tmp_path):
    claim(tmp_path, "mine", {"study": "mine", "settings": {"lr": 1.0, "steps": 2}})
    claim(tmp_path, "mine", {"study": "mine", "settings": {"lr": 1.0, "steps": 2}})
    with pytest.raises(ValueError, match=r"holds a sweep with other settings \(lr\) \(see sweep.json\)"):
        claim(tmp_path, "mine", {"study": "mine", "settings": {"lr": 2.0, "steps": 2}})
