"""The paper's studies by the command line, from local files, with the network gone; the recipes; the world's other tasks."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import xarray as xr

from fisherdyn import analysis, policies, record, tasks
from fisherdyn.sweep import recipes, tables
from fisherdyn.sweep.__main__ import main, parse, plan
from fisherdyn.sweep.execute import _with_exact_match, execute
from fisherdyn.sweep.options import FIT, Options
from fisherdyn.sweep.runs import Run, Settings
from fisherdyn.sweep.store import SweepStore
from fisherdyn.sweep.studies import STUDIES
from fisherdyn.tasks.metrics import AnswerMetric

shared = pytest.mark.skipif(not tiny.SHARED.is_dir(), reason="the shared data are not beside the project")
TASKS = {
    "xnli": ("ar", "th", "zh"),
    "xcopa": ("et", "th", "zh"),
    "xquad": ("ar", "th", "zh"),
    "mlqa": ("ar", "zh"),
}


METHODS = [row.schedule for row in STUDIES["compare"].rows]
LOW_RESOURCE_METHODS = [row.schedule for row in STUDIES["low-resource"].rows]
WITHOUT_ADAPTER = {"xnli": "es,tr", "xcopa": "it,tr", "xquad": "es,tr", "mlqa": "es,vi"}


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("the network was asked for")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


def folders(hub: Path, model: str) -> list[str]:
    own = hub / model
    return ["--model", str(own / "model"), "--adapters", str(own / "adapters"), "--data", str(hub / "data")]


def stored(path: Path) -> xr.Dataset:
    with xr.open_dataset(path) as ds:
        return ds.load()


# ---- from end to end -------------------------------------------------------------------------------------------------


OF_UPDATES = ["learning_rate", "gradient_norm", "total_gradient_norm", "update_norm"]
"""Variables that say what an update did."""


@shared
@pytest.mark.parametrize("model", ["xlmr", "mbert"])
@pytest.mark.parametrize("task", TASKS)
def test_a_study_trains_swaps_and_evaluates(hub, tmp_path, no_network, capsys, task, model):
    """Standard, random, GU, LPFT, FUN, reverse and full fine-tuning, each 3 steps with k = 1."""
    small = ["--seeds", "1", "--steps", "3", "--interval", "1", "--workers", "1", "--train-examples", "16"]
    assert main(["compare", "--task", task, *folders(hub, model), *small, "--out", str(tmp_path)]) == 0
    ds = stored(tmp_path / "compare.nc")
    assert ds["schedule"].values.tolist() == METHODS
    assert tuple(ds["target"].values) == TASKS[task]
    assert "no language adapter" in ds.attrs["skipped"]
    before_the_end = ds.isel(step=slice(None, -1))
    for name in ("learning_rate", "total_gradient_norm", "update_norm"):  # no update follows the last record
        assert not before_the_end[name].isnull().any(), name
        assert ds[name].isel(step=-1).isnull().all(), name
    assert before_the_end["gradient_norm"].where(before_the_end["trainable"] == 1, 0).notnull().all()
    for name, values in ds.drop_vars(OF_UPDATES).data_vars.items():
        if values.dtype.kind == "f" and not str(name).startswith("selection"):  # which FUN alone has
            missing = int(np.isnan(values.values).sum())
            assert missing == (7 if name == "train_loss" else 0), name  # none before the first step
    assert ((ds["metric"] >= 0) & (ds["metric"] <= 1)).all()
    assert ("exact_match" in ds) == (task in ("xquad", "mlqa"))
    by = ds.assign_coords(run=ds["schedule"])
    opened = by["selected"]
    assert opened.sel(run="standard").values.tolist() == [0, 0, 0]
    assert opened.sel(run="top-down").values.tolist() == [2, 1, 0]
    assert opened.sel(run="reverse").values.tolist() == [1, 2, 0]
    assert opened.sel(run="LPFT").values.tolist() == [1, 1, 1]
    assert (
        sorted(opened.sel(run="FUN").values.tolist()) == sorted(opened.sel(run="random").values.tolist()) == [0, 1, 2]
    )
    assert by["selection_examples"].sel(run="FUN").max() == 16  # the training set, not what tr(F) is recorded on
    assert by["tuning"].sel(run="full") == "full"
    assert (by["num_params"].sel(run="full") > 5 * by["num_params"].sel(run="FUN")).all()
    out = capsys.readouterr().out
    assert "| FUN | Ada+FUN | 16 |" in out
    assert "Skipped: " in out


@shared
def test_low_resource_runs_differ_in_length(hub, tmp_path, no_network, capsys, monkeypatch):
    """8, 16 and 48 training examples in batches of 8, an epoch: 1, 2 and 6 updates; every method at each size."""
    small = {"sizes": (8, 16, 48), "epochs": 1, "batch": 8, "interval": (1, 1, 1), "policies": {}}
    theirs = recipes.every()
    ours = tuple(replace(one, **small) if one.study == recipes.LOW_RESOURCE else one for one in theirs)
    monkeypatch.setattr(recipes, "every", lambda: ours)
    out = ["--seeds", "2", "--workers", "1", "--out", str(tmp_path)]
    assert main(["low-resource", "--task", "xnli", *folders(hub, "xlmr"), *out]) == 0
    ds = stored(tmp_path / "low-resource.nc")
    rows = list(zip(ds["train_examples"].values.tolist(), ds["schedule"].values.tolist(), strict=True))
    assert rows == 2 * [(size, name) for size in (8, 16, 48) for name in LOW_RESOURCE_METHODS]
    last = ds["step"].where(ds["source_metric"].notnull()).max("step").values.tolist()
    assert last == 2 * [1, 1, 1, 2, 2, 2, 6, 6, 6]
    summary = analysis.summarise(ds)
    assert not summary["transfer"].isnull().any()
    np.testing.assert_allclose(summary["transfer"], ds["metric_at_best"].mean("target"))
    said = capsys.readouterr().out
    assert [f"| FUN | Ada+FUN | {size} |" in said for size in (8, 16, 48)] == [True] * 3
    assert said.count("training examples: ") == 6


@shared
@pytest.mark.parametrize("model", ["xlmr", "mbert"])
@pytest.mark.parametrize("task", TASKS)
def test_lora_instead_of_adapters(hub, tmp_path, no_network, capsys, task, model):
    """No language adapter is used, so that no language is skipped; the rows of Table 11."""
    small = ["--seeds", "1", "--steps", "3", "--interval", "1", "--workers", "1", "--train-examples", "16"]
    small += ["--languages", WITHOUT_ADAPTER[task]]
    arguments = ["reverse", "--task", task, *folders(hub, model), *small, "--tuning", "lora", "--out", str(tmp_path)]
    assert main(arguments) == 0
    ds = stored(tmp_path / "reverse.nc")
    assert ds["schedule"].values.tolist() == ["top-down", "reverse"]
    assert ds.attrs["tuning"] == "lora"
    assert "skipped" not in ds.attrs
    assert (ds["num_params"] == 2 * 2 * 8 * 16).all()  # query and value, A and B, rank 8 x width 16
    assert ds["selected"].values.tolist() == [[2, 1, 0], [1, 2, 0]]
    capsys.readouterr()


@shared
def test_the_hub_switched_off_in_a_process_of_its_own(hub, tmp_path):
    """low-resource from folders; and a data set of the hub that is not in the cache: one line, before anything trains."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "fisherdyn.sweep", "compare", "--task", "xquad", *folders(hub, "xlmr")[:4]]
    out = ["--out", str(tmp_path / "new")]
    done = subprocess.run([*command, *out], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "data set rajpurkar/squad (plain_text): cannot be loaded" in done.stderr
    assert "give a folder with --data DIR" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "new").exists()


@shared
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "xquad", "--languages", "xx"], "unknown language xx of task xquad"),
        (
            ["--task", "xquad", "--train-examples", "0"],
            "expected train_examples as a whole number of at least 1, got 0",
        ),
        (["--task", "xquad", "--train-examples", "4000"], "train-v1.1: 4000 examples: expected 1 to 48"),
        (["--task", "xquad", "--tuning", "prompt"], "unknown tuning 'prompt'"),
        (["--task", "world"], "task 'world' has no option model, data, adapters"),
    ],
)
def test_wrong_arguments_end_before_training(hub, tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        main(["compare", *folders(hub, "xlmr"), *arguments, "--out", str(tmp_path / "new")])
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "new").exists()


# ---- recipes ---------------------------------------------------------------------------------------------------------

MBERT, XLMR = "bert-base-multilingual-cased", "xlm-roberta-base"


def find(task: str, model: str | None, study: str = recipes.MAIN) -> recipes.Recipe:
    return recipes.find(study, Options(task=task, model=model))


@pytest.mark.parametrize(
    ("task", "model", "policy", "lr", "steps", "k"),
    [
        ("xquad", MBERT, "standard", 5e-4, 5 * 2738, 800),
        ("mlqa", MBERT, "fun", 5e-4, 5 * 2738, 800),
        ("xquad", XLMR, "standard", 2e-4, 15 * 2738, 800),
        ("xquad", XLMR, "top_down", 5e-4, 15 * 2738, 800),
        ("xquad", XLMR, "fun", 5e-4, 15 * 2738, 100),
        ("xcopa", MBERT, "standard", 1e-4, 500 * 7, 50),
        ("xcopa", MBERT, "linear_probing", 1e-5, 5000 * 7, 800),
        ("xcopa", XLMR, "fun", 1e-5, 5000 * 7, 1000),
        ("xnli", MBERT, "linear_probing", 5e-4, 15 * 3068, 25),
        ("xnli", MBERT, "fun", 5e-4, 15 * 3068, 50),
        ("xnli", XLMR, "bottom_up", 5e-4, 15 * 3068, 800),
    ],
)
def test_table_3(task, model, policy, lr, steps, k):
    assert find(task, model).of(policy) == {"lr": lr, "steps": steps, "interval": k}


@pytest.mark.parametrize(
    ("task", "model", "top_down", "fun"),
    [
        ("xquad", MBERT, [10, 50, 50], [10, 50, 50]),
        ("xquad", XLMR, [10, 50, 50], [10, 50, 25]),
        ("xnli", MBERT, [1, 25, 25], [10, 50, 25]),
        ("xnli", XLMR, [1, 25, 10], [1, 25, 10]),
    ],
)
def test_table_4_and_appendix_f2(task, model, top_down, fun):
    recipe = find(task, model, recipes.LOW_RESOURCE)
    assert recipe.sizes == (1000, 5000, 10000)
    for method, expected in (("top_down", top_down), ("fun", fun)):
        rows = [recipe.of(method, size) for size in recipe.sizes]
        assert [row["interval"] for row in rows] == expected
        assert {row["lr"] for row in rows} == {5e-4}
        epochs, batch = {"xquad": (20, 32), "xnli": (50, 128)}[task]
        assert [row["steps"] for row in rows] == [epochs * -(-size // batch) for size in recipe.sizes]


def test_recipes_are_whole_and_go_to_what_is_there():
    for recipe in recipes.every():
        assert set(recipe.tasks) <= set(tasks.REGISTRY)
        assert set(recipe.policies) <= set(policies.NAMED)
        assert all(set(row) <= {"lr", "epochs", "interval"} for row in recipe.policies.values())
    assert {row.policy for row in STUDIES["compare"].rows} <= set(policies.NAMED)


def test_the_best_checkpoint_is_kept_as_in_the_paper():
    """Selection on English development data alone: the paper's recipes ask for it."""
    assert "keep_best" in FIT
    assert all(recipe.keep_best for recipe in recipes.every() if recipe.model)


@shared
def test_a_folder_has_the_recipe_of_the_model_that_it_is_like(hub):
    assert find("xquad", str(hub / "mbert" / "model")).model == MBERT
    assert find("xquad", str(hub / "xlmr" / "model")).model == XLMR
    assert find("xquad", "microsoft/mdeberta-v3-base").model == XLMR
    assert find("xquad", None).model == XLMR


def test_what_the_user_wants_goes_before_the_recipe():
    runs, settings = plan(parse(["compare", "--task", "xquad", "--steps", "100", "--lr", "1e-3", "--seeds", "1"]))
    by = {run.schedule: settings.of(run) for run in runs}
    assert {own.steps for own in by.values()} == {100}
    assert {own.lr for name, own in by.items() if name != "full"} == {1e-3}
    assert by["full"].lr == 3e-5  # a rate for adapters would ruin the encoder
    assert by["full"].options["tuning"] == "full"
    assert by["FUN"].interval == 100


def test_epochs_are_counted_over_the_examples_that_are_trained_on():
    arguments = ["compare", "--task", "xquad", "--model", MBERT, "--seeds", "1"]
    all_of_them, few = (plan(parse([*arguments, *more]))[1].steps for more in ([], ["--train-examples", "1000"]))
    assert (all_of_them, few) == (5 * 2738, 5 * 32)


def test_settings_are_said_flat_and_plain():
    settings = Settings(
        "xquad", options={"languages": ["ar", "zh"], "model": "m", "data": None}, fit={"keep_best": True}
    )
    said = settings.asdict()
    assert (said["languages"], said["model"], said["keep_best"]) == ("ar, zh", "m", 1)
    assert not {"data", "skipped", "options", "fit"} & set(said)
    xr.Dataset(attrs=said).to_netcdf(format="NETCDF4", engine="netcdf4")


def test_no_such_study_of_a_task():
    with pytest.raises(ValueError, match="no recipe for low-resource of task 'xcopa': choose one of sib200, world, "):
        find("xcopa", XLMR, recipes.LOW_RESOURCE)


def test_a_dry_run_lists_runs_and_steps(capsys):
    assert main(["compare", "--task", "xquad", "--model", MBERT, "--seeds", "4", "--dry-run"]) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert len([line for line in lines if line.split()[0] in METHODS]) == 28
    assert "28 runs, " in out
    assert "Skipped: th (no language adapter)." in out
    steps = 4 * (6 * 13690 + 3 * 2738)
    assert f"{steps} steps" in out


# ---- runs of different length in one store ---------------------------------------------------------------------------


def _record(steps: int, every: int, value: float) -> xr.Dataset:
    axis, late = [*range(0, steps, every), steps], [steps]
    variables = {
        "source_metric": (("step",), np.full(len(axis), value)),
        "trainable": (("step", "layer"), np.ones((len(axis), 1), dtype=np.int8)),
        "metric": (("eval_step", "target"), np.full((1, 2), value)),
        "exact_match": (("eval_step", "target"), np.full((1, 2), value / 2)),
        "num_params": (("layer",), np.array([3])),
    }
    return record.build(variables, {"step": axis, "eval_step": late, "layer": ["0"], "target": ["a", "b"]}, {})


VALUES = [0.5, 0.6, 0.7, 0.801]


def test_runs_of_different_length_share_a_store(tmp_path):
    changes = ({}, {"steps": 4, "lr": 0.1, "record_every": 4, "evaluate_every": 4, "tuning": "full"})
    runs = [Run(name, (), seed, "mine", own) for seed in (0, 1) for name, own in zip(("x", "y"), changes, strict=True)]
    settings = Settings(
        steps=10, record_every=5, evaluate_every=10, lr=0.2, options={"tuning": "adapter"}, skipped="th (no)"
    )
    with SweepStore(tmp_path, "compare", runs, settings) as store:
        for i in (1, 0, 3, 2):
            own = settings.of(runs[i])
            store.write(i, _record(own.steps, own.record_every, VALUES[i]))
        ds = store.read()
        assert stored(store.publish()).attrs["skipped"] == "th (no)"
    assert ds["step"].values.tolist() == [0, 4, 5, 10]
    assert ds["source_metric"].isel(run=1).notnull().values.tolist() == [True, True, False, False]
    assert ds["trainable"].isel(run=0).values.ravel().tolist() == [1, -1, 1, 1]
    assert ds["lr"].values.tolist() == [0.2, 0.1] * 2
    assert ds["tuning"].values.tolist() == ["adapter", "full"] * 2
    assert "lr" not in ds.attrs
    np.testing.assert_allclose(analysis.result(ds, "source_metric"), VALUES)  # of runs that differ in length, too
    np.testing.assert_allclose(analysis.transfer(ds), VALUES)
    np.testing.assert_allclose(2 * analysis.result(ds, "exact_match").mean("target"), VALUES)
    text = tables.table(ds)
    assert "| x |  | all | 60.00 | a 60.00 | 60.00 ± 127.1 | 30.00 |" in text
    assert "4 runs, 2 seeds" in text
    assert "Skipped: th (no)." in text
    assert "Found: y transfers better than x, paired over seeds: +10.1 points" in tables.findings(ds)


def test_methods_are_compared_with_standard_and_corrected_for_their_number():
    """One p of .03 among five that are not small: found by itself, not among six."""
    rng = np.random.default_rng(0)
    t = np.array([-1.5, -0.5, 0.5, 1.5])
    shift = {"standard": 0.0, "full": 0.02, **{f"m{i}": 0.0001 for i in range(5)}}
    rows = []
    for name, by in shift.items():
        for seed in range(4):
            own = 0.5 + 0.01 * seed + by + (0.0 if name == "standard" else 0.0075 * t[seed])
            rows.append(_record(10, 5, own).assign_coords(schedule=name, seed=seed))
    ds = xr.concat(rows, "run").isel(run=rng.permutation(len(rows)))
    said = {line.split(",")[0]: line for line in tables.findings(ds).splitlines()}
    alone = tables.findings(ds.isel(run=np.isin(ds["schedule"].values, ["standard", "full"])))
    p = analysis.paired_difference(analysis.by_schedule(analysis.transfer(ds)), "full", "standard").p
    assert 0.01 < p < 0.05
    assert alone.startswith("- Found: full transfers better than standard")
    assert "corrected" not in alone
    assert (
        f"({6 * p:.2g} corrected for 6 comparisons)"
        in said["- Not found: a difference in transfer between full and standard"]
    )
    assert len(said) == 6


def _study(rows):
    """Runs of (schedule, seed, source, targets a and b, training examples): everything differs from everything."""
    made = []
    for schedule, seed, source, targets, _ in rows:
        one = _record(10, 5, 0.0).assign_coords(schedule=schedule, seed=seed)
        one["source_metric"][:] = source
        one["metric"][:] = np.array(targets)
        made.append(one.assign(exact_match=one["metric"] / 4))
    known = {"standard": "standard", "FUN": "fun", "top-down": "top_down", "reverse": "bottom_up"}
    ids = [known[row[0]] for row in rows]
    return xr.concat(made, "run").assign_coords(
        train_examples=("run", [row[-1] for row in rows]), policy=("run", ids), label=("run", [row[0] for row in rows])
    )


def test_rows_and_sentences_rest_on_the_same_runs():
    """Source, targets and exact matches apart; FUN lacks a seed, so that nobody's counts."""
    rows = [("standard", i, 0.80 + 0.01 * i, (0.6 + 0.02 * i, 0.4 + 0.02 * i), 200) for i in range(3)]
    rows += [("FUN", i, 0.90 + 0.03 * i, (0.7 + 0.02 * i, 0.45 + 0.03 * i), 200) for i in range(2)]
    ds = _study(rows)
    lines = tables.table(ds).splitlines()
    assert "source F1 %" in lines[0]
    assert lines[2] == "| standard | Ada | 200 | 80.50 | b 41.00 | 51.00 ± 12.7 | 12.75 |"
    assert lines[3].startswith("| FUN | Ada+FUN | 200 | 91.50 | b 46.50 | 58.75 ± ")
    assert "3 seeds (those that all rows have: 2)" in lines[-1]
    (said,) = tables.findings(ds).splitlines()
    assert "FUN and standard, paired over seeds: +7.7 points" in said or "FUN transfers better than standard" in said
    assert "On the source: +11.0 points" in said
    with pytest.raises(ValueError, match="2 runs of 'standard' with seed 0"):
        tables.table(_study(rows + rows))


def test_all_comparisons_of_a_report_are_corrected_together():
    rng = np.random.default_rng(0)
    rows = [
        (name, seed, 0.9, tuple(0.5 + 0.02 * rng.standard_normal(2)), size)
        for size in (200, 1000, 4000)
        for name in ("standard", "top-down", "FUN")
        for seed in range(4)
    ]
    said = tables.findings(_study(rows)).splitlines()
    assert [line.count("corrected for 6 comparisons") for line in said] == [1] * 6
    assert said[0].startswith("- Not found: ") or said[0].startswith("- 200 training examples: ")
    found = analysis.results(_study(rows))
    p = []
    for size in (200, 1000, 4000):
        some = found.isel(run=np.flatnonzero(found["train_examples"].values == size))
        table = analysis.by_schedule(some["transfer"])
        p += [analysis.paired_difference(table, name, "standard").p for name in ("top-down", "FUN")]
    corrected = [
        f"({one:.2g} corrected" in line for one, line in zip(analysis.adjusted(np.array(p)), said, strict=True)
    ]
    assert corrected == [True] * 6


def test_a_run_without_a_result_is_no_finding():
    rows = [
        (name, seed, 0.9, (0.5 + 0.01 * seed, 0.5), 200) for name in ("standard", "FUN", "reverse") for seed in range(3)
    ]
    ds = _study(rows)
    ds["metric"][4] = np.nan
    said = tables.findings(ds).splitlines()
    assert said[0].startswith("- 200 training examples: Not answered, as a run has no result: whether FUN")
    assert "corrected" not in said[1]  # one comparison is left


def test_the_best_checkpoints_results_are_used_where_they_are():
    ds = _record(10, 5, 0.5).expand_dims(run=2).assign_coords(schedule=("run", ["x", "y"]), seed=("run", [0, 0]))
    ds["source_metric"] = (("run", "step"), np.array([[0.1, 0.9, 0.2], [0.3, 0.2, 0.1]]))
    ds["metric_at_best"] = (("run", "target"), np.array([[0.7, 0.8], [0.2, 0.4]]))
    ds["exact_match_at_best"] = ds["metric_at_best"] / 2
    assert analysis.result(ds, "source_metric").values.tolist() == [0.9, 0.3]
    np.testing.assert_allclose(analysis.transfer(ds), [0.75, 0.3])
    np.testing.assert_allclose(analysis.result(ds, "exact_match").mean("target"), [0.375, 0.15])
    assert "best checkpoint" in tables.table(ds)
    ds["metric_at_best"][1] = np.nan  # kept in one run alone: no table of two meanings
    np.testing.assert_allclose(analysis.transfer(ds), [0.5, 0.5])
    assert "last quarter" in tables.table(ds)


def test_the_exact_match_is_kept_from_the_same_calls():
    metrics = {name: AnswerMetric(lambda model: (model, model)) for name in ("a", "b")}
    for metric in metrics.values():
        metric.exact_matches.extend([0.1, 0.2])
    ds = xr.Dataset({"metric": (("eval_step", "target"), np.zeros((2, 2)))}, {"target": ["a", "b"]})
    assert _with_exact_match(ds.copy(), metrics)["exact_match"].values.tolist() == [[0.1, 0.1], [0.2, 0.2]]
    assert "exact_match" not in _with_exact_match(ds.copy(), {"a": len, "b": len})
    if "metric_at_best" in record.VARIABLES:
        for metric in metrics.values():
            metric.exact_matches.append(0.15)
        kept = _with_exact_match(ds.assign(metric_at_best=("target", [0.3, 0.3])), metrics)
        assert kept["exact_match"].values.tolist() == [[0.1, 0.1], [0.2, 0.2]]
        assert kept["exact_match_at_best"].values.tolist() == [0.15, 0.15]


def test_a_variable_that_only_some_runs_have_gets_its_room(tmp_path):
    runs = [Run(name, (), 0, "standard") for name in ("x", "y", "z")]
    with SweepStore(tmp_path, "compare", runs, Settings(steps=10, record_every=5, evaluate_every=10)) as store:
        for i in range(3):
            one = _record(10, 5, 0.1 * i)
            store.write(i, one if i == 1 else one.drop_vars("exact_match"))
        ds = store.read()
    assert ds.attrs["study"] == "compare"
    assert ds["exact_match"].attrs["units"] == "1"
    assert ds["exact_match"].isnull().all(["eval_step", "target"]).values.tolist() == [True, False, True]
    np.testing.assert_allclose(ds["exact_match"].isel(run=1), 0.05)
    np.testing.assert_allclose(ds["metric"].max(["eval_step", "target"]), [0, 0.1, 0.2])


def test_rows_by_number_of_training_examples():
    runs, settings = plan(parse(["low-resource", "--seeds", "1"]))
    assert [(run.schedule, settings.of(run).options["train_examples"]) for run in runs] == [
        (name, size) for size in (200, 1000, 4000) for name in LOW_RESOURCE_METHODS
    ]
    ds = xr.concat([_record(10, 5, 0.1 * i) for i in range(9)], "run").assign_coords(
        schedule=("run", [run.schedule for run in runs]),
        seed=("run", [0] * 9),
        train_examples=("run", [settings.of(run).options["train_examples"] for run in runs]),
    )
    rows = [line for line in tables.table(ds).splitlines() if line.startswith("| ")][1:]
    assert [row.split("|")[3].strip() for row in rows] == ["200"] * 3 + ["1000"] * 3 + ["4000"] * 3
    assert tables.findings(ds).count("training examples: ") == 6


# ---- the world's choice and span tasks -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["world-choice", "world-span"])
@pytest.mark.parametrize("method", ["FUN", "full"])
def test_the_worlds_other_tasks_run_as_a_study_does(name, method):
    small = {"train_examples": 64, "dev_examples": 16, "test_examples": 16, "probe_examples": 8}
    runs, settings = plan(parse(["compare", "--task", name, "--steps", "3", "--interval", "1", "--seeds", "1"]))
    run = next(run for run in runs if run.schedule == method)
    ds = execute(run, replace(settings, options={**settings.options, **small}))
    assert ds.sizes["target"] == 9
    assert ds.sizes["layer"] == 12
    assert ("exact_match" in ds) == (name == "world-span")
    assert (ds["distance"] > 0).all()
    assert np.isfinite(ds["fisher_trace"]).all()
    assert ds.attrs["likelihood"] == {"world-choice": "choice", "world-span": "span"}[name]


def test_exact_match_is_never_above_f1():
    task = tasks.load("world-span", train_examples=64, dev_examples=50, test_examples=50)
    metric = task.evaluate()["ka"]
    f1 = metric(task.build_model(0))
    assert 0 <= metric.exact_matches[0] <= f1 <= 1
    assert torch.is_grad_enabled()
