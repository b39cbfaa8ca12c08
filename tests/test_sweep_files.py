"""Studies from files of one's own, status, partial runs of a study, and what is said while it goes on."""

from __future__ import annotations

import io
from pathlib import Path

import nothing
import pytest
import xarray as xr

from fisherdyn import tasks
from fisherdyn.sweep import progress
from fisherdyn.sweep.__main__ import main, parse, plan
from paper_figures import __main__ as paper_figures

STUDY = str(Path(nothing.__file__))
MINE = """
task: world
steps: 40
seeds: 2
lr: 1.0e-3
schedules:
  standard: {policy: standard}
  odd first: {order: [9, 7, 5, 3, 1, 10, 8, 6, 4, 2, 0]}
  gentle: {policy: top_down, lr: 2.0e-3, interval: 3}
"""


def written(folder: Path, text: str, name: str = "mine.yaml") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def test_yaml_is_options_and_rows(tmp_path):
    runs, settings = plan(parse([written(tmp_path, MINE)]))
    assert [run.schedule for run in runs] == ["standard", "odd first", "gentle"] * 2
    assert (settings.steps, settings.lr) == (40, 1e-3)
    assert runs[1].order == (9, 7, 5, 3, 1, 10, 8, 6, 4, 2, 0)
    assert (settings.of(runs[2]).lr, settings.of(runs[2]).interval, runs[2].policy) == (2e-3, 3, "top_down")
    runs, settings = plan(parse([written(tmp_path, MINE), "--steps", "8", "--seeds", "1"]))
    assert (len(runs), settings.steps) == (3, 8)


def test_rows_may_share_what_yaml_merges(tmp_path):
    text = "schedules:\n  x: &x {policy: fun, lr: 0.1}\n  y: &y {<<: *x, lr: 0.2}\n  z: {<<: *y, lr: 0.3}\n"
    runs, _ = plan(parse([written(tmp_path, text), "--seeds", "1"]))
    assert [(run.policy, run.changes["lr"]) for run in runs] == [("fun", 0.1), ("fun", 0.2), ("fun", 0.3)]


def test_python_brings_a_policy(tmp_path):
    text = """
from fisherdyn import policies

options = {"steps": 2, "seeds": 1, "interval": 1}
policies = [policies.Policy("lowest_two", lambda layers: layers[:2], lambda context: (), label="lowest two")]
SMALL = {"train_examples": 16, "dev_examples": 4, "test_examples": 4, "probe_examples": 4, "languages": ["ka"]}
schedules = {"mine": {"policy": "lowest_two", "record_every": 2, "evaluate_every": 2, **SMALL}}
"""
    path = written(tmp_path, text, "mine.py")
    assert main([path, "--workers", "1", "--out", str(tmp_path / "out")]) == 0
    with xr.open_dataset(tmp_path / "out" / "mine.nc") as ds:
        assert ds["trainable"].isel(run=0, step=-1).values.tolist() == [1, 1] + [0] * 10
        assert (ds["policy"].item(), ds["label"].item()) == ("lowest_two", "mine")


MY_POLICY = """
from fisherdyn.policies import Policy

options = {"steps": 4, "seeds": 2, "interval": 1}
policies = [Policy("two_at_a_time", lambda layers: layers[-2:], lambda context: context.frozen[-2:], label="two at a time")]
SMALL = {"record_every": 2, "evaluate_every": 2, "train_examples": 16, "dev_examples": 4, "test_examples": 4}
SMALL = {**SMALL, "probe_examples": 4, "languages": "ka,te"}
schedules = {name: {"policy": name, **SMALL} for name in ("standard", "top_down", "two_at_a_time")}
"""


def test_a_policy_of_ones_own_is_named_coloured_and_tabled(tmp_path, capsys):
    """By the command line alone, from a file: in the report, and in the paper's figures and tables."""
    out = tmp_path / "out"
    assert main([written(tmp_path, MY_POLICY, "mine.py"), "--workers", "1", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "| two_at_a_time |  | 16 |" in said
    assert "| top_down | Ada+GU | 16 |" in said
    with xr.open_dataset(out / "mine.nc") as ds:
        assert ds["label"].values.tolist() == ["standard", "GU (top-down)", "two at a time"] * 2
        opened = ds["selected"].sel(run=2).values.tolist()
        assert opened == [-1, -1, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0]
    drawn = tmp_path / "drawn"
    names = ["fig2", "forest", "table2"]
    assert paper_figures.main([*names, "--runs", str(out / "mine.nc"), "--format", "svg", "--out", str(drawn)]) == 0
    assert "| two at a time |" in (drawn / "table2-mine.md").read_text()
    assert all((drawn / f"{name}-mine.svg").exists() for name in names[:2])


FILES = [
    ("schedules: [", "not valid YAML"),
    ("- 1", "expected options and schedules by name, got list"),
    ("steps: 3", "expected schedules, each a name with its policy or order"),
    ("speed: 3\nschedules: {x: {policy: fun}}", "unknown option speed: choose from"),
    (
        "schedules:\n  x: {policy: fun}\n  y: {policy: fun}\n  x: {policy: standard}",
        'a.yaml: line 4: not valid YAML (found duplicate key "x"',
    ),
    ("steps: 3\nsteps: 4\nschedules: {x: {policy: fun}}", 'line 2: not valid YAML (found duplicate key "steps"'),
    ("schedules: {x: {policy: fun, lr: 1.0e-3, lr: 0.1}}", 'line 1: not valid YAML (found duplicate key "lr"'),
    ("schedules: {1: {policy: fun}, '1': {policy: fun}}", "schedule 1 appears twice"),
    ("day: 2024-13-45", "a.yaml: month must be in 1..12"),
    (
        "steps: 3.5\nschedules: {x: {policy: fun}}",
        "a.yaml: expected steps as a whole number of at least 1, got 3.5",
    ),
    ("fit: {patience: 2}\nschedules: {x: {policy: fun}}", "a.yaml: unknown option fit: choose from"),
    ("lr: [1]\nschedules: {x: {policy: fun}}", "a.yaml: expected lr as a number above 0, got [1]"),
    ("dry_run: true\nstatus: true\nschedules: {x: {policy: fun}}", "expected --dry-run or --status, got both"),
]
"""YAML files that are no study, and what is said of them."""

COUNT, RATE = "as a whole number of at least 1", "as a number above 0"
ROWS = [
    ("", "expected a policy or an order"),
    ("policy: magic", "unknown policy 'magic': choose one of standard,"),
    ("order: [1, 1]", "order 1,1: expected each of 0 to 10 once"),
    ("policy: fun, lr: abc", f"expected lr {RATE}, got 'abc'"),
    ("policy: fun, lr: 0", f"expected lr {RATE}, got 0"),
    ("order: 5", "expected order as a list of layers, such as [9, 8, 7], got 5"),
    ("policy: fun, lr: .inf", f"expected lr {RATE}, got inf"),
    ("policy: fun, lr: .nan", f"expected lr {RATE}, got nan"),
    ("policy: fun, lr: true", f"expected lr {RATE}, got True"),
    ("policy: fun, steps: 0", f"expected steps {COUNT}, got 0"),
    ("policy: fun, steps: 3.5", f"expected steps {COUNT}, got 3.5"),
    ("policy: fun, steps: 3.0", f"expected steps {COUNT}, got 3.0"),
    ("policy: fun, steps: many", f"expected steps {COUNT}, got 'many'"),
    ("policy: fun, interval: -1", f"expected interval {COUNT}, got -1"),
    ("policy: fun, interval: null", f"expected interval {COUNT}, got None"),
    ("policy: fun, interval: [1, 4, 6]", f"expected interval {COUNT}, got [1, 4, 6]"),
    ("policy: fun, patience: 0", f"expected patience {COUNT}, got 0"),
    ("policy: fun, precision: int4", "expected precision as one of float32, bf16, got 'int4'"),
    (
        "policy: fun, intervall: 3, seeds: 4",
        "unknown key intervall, seeds: a schedule may have policy, order, task, steps, lr, interval, record_every, "
        "evaluate_every, device, lr_schedule, ",
    ),
    ("policy: fun, options: {}", "unknown key options: a schedule may have"),
    ("policy: fun, fit: {patience: 2}", "unknown key fit: a schedule may have"),
    ("policy: fun, task: moon", "unknown task 'moon': choose one of world"),
    ("policy: fun, tuning: no-such", "unknown tuning 'no-such'"),
    ("policy: fun, train_examples: 0", f"expected train_examples {COUNT}, got 0"),
    ("policy: fun, batch: many", ""),
    ("policy: fun, device: abacus", "device abacus: torch knows no such"),
]
"""Rows that no run can be made of, and what is said of them after the file and the row."""

PYTHON = [
    ("schedules = {'x': {'policy': 'fun', 'lr': -1}}", f"a.py: schedule x: expected lr {RATE}, got -1"),
    ("schedules = {'x': {'policy': 'fun', 'intervall': 1}}", "a.py: schedule x: unknown key intervall"),
    ("1/0", "ZeroDivisionError"),
    ("x = 1", "expected schedules"),
    ("policies = {'mine': None}", "expected policies as a list of fisherdyn.policies.Policy"),
]
CASES = [
    *[("a.yaml", *case) for case in FILES],
    *[("a.yaml", f"schedules: {{x: {{{row}}}}}", f"a.yaml: schedule x: {message}") for row, message in ROWS],
    *[("a.py", *case) for case in PYTHON],
    ("a.yaml", None, "cannot be read"),
]


@pytest.mark.parametrize(("name", "text", "message"), CASES)
@pytest.mark.parametrize("way", [[], ["--dry-run"]])
def test_a_wrong_file_ends_with_one_line_and_2(tmp_path, capsys, name, text, message, way):
    path = written(tmp_path, text, name) if text is not None else str(tmp_path / name)
    with pytest.raises(SystemExit) as stop:
        main([path, "--out", str(tmp_path / "out"), *way])
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_a_file_that_is_no_text(tmp_path, capsys):
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SystemExit):
        main([str(tmp_path / "a.yaml")])
    assert "a.yaml: expected text in UTF-8" in capsys.readouterr().err


def test_what_a_file_turns_on_the_command_line_turns_off(tmp_path):
    text = "keep_best: true\nschedules: {x: {policy: fun}}"
    _, settings = plan(parse([written(tmp_path, text), "--no-keep-best"]))
    assert settings.fit == {"keep_best": False}


def test_numbers_of_yaml(tmp_path):
    text = "lr: 1e-2\nschedules:\n  x: {policy: fun, lr: 1e-3, interval: 3, train_examples: 8, patience: 2}\n"
    runs, settings = plan(parse([written(tmp_path, text), "--seeds", "1"]))
    own = settings.of(runs[0])
    assert (settings.lr, own.lr, own.interval, own.fit) == (1e-2, 1e-3, 3, {"patience": 2})


def test_settings_of_fit_are_options_of_every_place(tmp_path):
    text = "weight_decay: 0.5\nschedules:\n  x: {policy: fun, lr_schedule: linear}\n"
    runs, settings = plan(parse([written(tmp_path, text), "--seeds", "1", "--patience", "3", "--accumulate", "2"]))
    expected = {"weight_decay": 0.5, "patience": 3, "accumulate": 2}
    assert settings.fit == expected
    assert settings.of(runs[0]).fit == {**expected, "lr_schedule": "linear"}
    _, settings = plan(parse([written(tmp_path, text), "--weight-decay", "0.1"]))
    assert settings.fit["weight_decay"] == 0.1


MY_TASK = """
from fisherdyn.tasks.world.inference import InferenceTask


class Mine(InferenceTask):
    def __init__(self, train_examples: int = 16) -> None:
        super().__init__(train_examples=train_examples, dev_examples=4, test_examples=4, probe_examples=4)
"""


@pytest.mark.parametrize("way", ["module:factory", "tasks", "built-in study"])
def test_a_task_of_ones_own_is_swept(tmp_path, monkeypatch, way):
    """Named as module:factory in YAML or on the command line, or brought by a Python file."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(tasks, "REGISTRY", dict(tasks.REGISTRY))
    written(tmp_path, MY_TASK, "my_task.py")
    settings = ["--steps", "2", "--lr", "1e-3", "--seeds", "1", "--workers", "1", "--out", str(tmp_path / "out")]
    if way == "built-in study":
        study, name = ["permutations", "--schedules", "0", "--task", "my_task:Mine"], "permutations"
    elif way == "tasks":
        text = MY_TASK + "tasks = {'mine': Mine}\noptions = {'task': 'mine'}\nschedules = {'x': {'policy': 'fun'}}\n"
        study, name = [written(tmp_path, text, "mine.py")], "mine"
    else:
        study, name = [written(tmp_path, "task: my_task:Mine\nschedules: {x: {policy: fun}}\n")], "mine"
    assert main([*study, *settings]) == 0
    with xr.open_dataset(tmp_path / "out" / f"{name}.nc") as ds:
        assert ds.sizes["run"] == 1
        assert ds["step"].values.tolist()[-1] == 2


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("my_task:Mine", "no recipe for task 'my_task:Mine': give steps and lr"),
        ("my_task:Yours", "task 'my_task:Yours': module 'my_task' has no attribute 'Yours'"),
        ("no_such_module:Mine", "task 'no_such_module:Mine': there is no module no_such_module"),
    ],
)
def test_what_a_task_of_ones_own_lacks_is_said(tmp_path, monkeypatch, capsys, task, message):
    monkeypatch.syspath_prepend(tmp_path)
    written(tmp_path, MY_TASK, "my_task.py")
    with pytest.raises(SystemExit) as stop:
        main([written(tmp_path, f"task: {task}\nschedules: {{x: {{policy: fun}}}}\n"), "--dry-run"])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_a_trainer_of_ones_own_has_keys_of_its_own(tmp_path):
    text = (
        Path(STUDY).read_text() + "\nschedules = {'s1': {'policy': 'standard', 'width': 3, 'train_examples': 'all'}}\n"
    )
    runs, settings = plan(parse([written(tmp_path, text, "mine.py"), "--seeds", "1"]))
    assert settings.of(runs[0]).options["width"] == 3


def test_another_trainer_is_another_sweep(tmp_path, capsys):
    source, rest = Path(STUDY).read_text(), ["--seeds", "1", "--workers", "1", "--out", str(tmp_path / "out")]
    assert main([written(tmp_path, source, "nothing.py"), *rest]) == 0
    with pytest.raises(SystemExit):
        main([written(tmp_path, source + "\n# changed\n", "nothing.py"), *rest])
    assert "holds a sweep with other trained_by" in capsys.readouterr().err


def test_a_part_now_and_the_rest_later(tmp_path, capsys):
    arguments = [STUDY, "--seeds", "2", "--workers", "1", "--out", str(tmp_path)]
    assert main([*arguments, "--only", "s1:*", "--only", "s2:0"]) == 0
    assert "3 of 8 runs are done; the results below are of these" in capsys.readouterr().out
    assert main([STUDY, "--status", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert f"{tmp_path}: 3 of 8 runs are done; nobody writes here now." in out
    assert "| s0 | 0 | 0 | 2 |\n| s1 | 2 | 0 | 0 |\n| s2 | 1 | 0 | 1 |" in out
    assert main(arguments) == 0
    assert "3 of 8 runs are there already" in capsys.readouterr().out


def test_status_says_whose_folder_it_is(tmp_path, capsys):
    arguments = [STUDY, "--seeds", "1", "--workers", "1", "--out", str(tmp_path)]
    assert main(arguments) == 0
    capsys.readouterr()
    assert main([*arguments, "--status"]) == 0
    assert "is of the study" not in capsys.readouterr().out
    assert main(["compare", "--status", "--out", str(tmp_path)]) == 0
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first == f"{tmp_path} is of the study nothing, not of compare:"
    assert second.startswith(f"{tmp_path}: 4 of 4 runs are done")


EARLY_AND_LATE = """
seeds: 2
steps: 12
interval: 1
schedules:
  in time: {order: [10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0], steps: 20}
  late: {policy: fun}
  some: {policy: random, interval: 4}
  standard: {policy: top_down, interval: 12}
  at once: {policy: linear_probing, interval: 6}
  open: {policy: standard, interval: 40}
"""
NOTES = [
    "note: late: the last layer opens at step 11 of 12: little or no time to train with all open",
    "note: some: only 2 of 11 layers open in time to be trained: interval 4, 12 steps",
    "note: standard: nothing ever opens: interval 12, 12 steps",
]


def test_late_openings_are_said_before_anything_runs(tmp_path, capsys):
    study = written(tmp_path, EARLY_AND_LATE)
    assert main([study, "--dry-run"]) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("note")] == NOTES
    assert main([study, "--dry-run", "--only", "some:1"]) == 0
    assert capsys.readouterr().out.startswith(f"{NOTES[1]}\nschedule")


def test_a_run_says_the_same_notes_as_its_dry_run(tmp_path, capsys):
    text = Path(STUDY).read_text() + "\nschedules = {'s1': {'policy': 'fun', 'interval': 9}}\n"
    arguments = [written(tmp_path, text, "mine.py"), "--seeds", "1", "--workers", "1", "--out", str(tmp_path / "out")]
    for way in ([], ["--dry-run"]):
        assert main([*arguments, *way]) == 0
        assert capsys.readouterr().out.startswith("note: s1: nothing ever opens: interval 9, 4 steps\n")


def test_a_policy_of_ones_own_opens_when_it_likes(tmp_path, capsys):
    text = "from fisherdyn.policies import Policy\npolicies = [Policy('mine', tuple, tuple)]\n"
    text += "schedules = {'x': {'policy': 'mine', 'interval': 500}}\n"
    assert main([written(tmp_path, text, "mine.py"), "--dry-run"]) == 0
    assert "note" not in capsys.readouterr().out


def test_the_dry_runs_columns_stand_below_one_another(tmp_path, capsys):
    text = "seeds: 1\nschedules:\n  a name of many characters: {policy: fun}\n  x: {policy: fun}\n"
    assert main([written(tmp_path, text), "--dry-run"]) == 0
    head, *rows = capsys.readouterr().out.splitlines()[:3]
    for name in ("seed", "examples"):
        end = head.index(name) + len(name)
        assert all(row[end - 1] != " " and row[end] == " " for row in rows)


def test_status_says_what_failed(tmp_path, capsys):
    arguments = [STUDY, "--first-seed", str(nothing.DIVERGED), "--seeds", "1", "--workers", "1", "--out", str(tmp_path)]
    assert main(arguments) == 1
    capsys.readouterr()
    assert main([STUDY, "--status", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "| s0 | 0 | 1 | 0 |" in out
    assert f"failed: s0, seed {nothing.DIVERGED}: ValueError: the training loss is nan at step 3" in out


def test_lines_for_a_log_file(capsys, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    with progress.Progress({0: 100, 1: 300}, {0: "a, seed 0", 1: "b, seed 0"}) as shown:
        clock[0] = 30
        shown.watch(0, 50, 0.7)
        clock[0] = 61
        shown.watch(1, 60, 0.65)
        clock[0] = 100
        shown.end(0, "loss 0.5")
        shown.end(1, "failed: no")
    assert capsys.readouterr().out.splitlines() == [
        "under way: a, seed 0 at step 50 of 100, loss 0.7; b, seed 0 at step 60 of 300, loss 0.65",
        "1/2 a, seed 0: loss 0.5; about 2 min left",  # 160 steps in 100 s, 240 are left
        "2/2 b, seed 0: failed: no",
    ]


def test_bars_for_a_terminal(monkeypatch, capsys):
    screen = io.StringIO()
    screen.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr("sys.stderr", screen)
    with progress.progress({0: 100, 1: 300}, {0: "a, seed 0", 1: "b, seed 0"}) as shown:
        assert isinstance(shown, progress.Bars)
        for bar in (shown.sweep,):
            bar.mininterval = 0
        shown.watch(0, 50, 0.7)
        shown.watch(1, 150, 0.25)
        shown.end(0, "loss 0.5")
    text = screen.getvalue()
    for part in ("0/2 runs", "1/2 runs", "a, seed 0", "b, seed 0", "step 150 of 300", "loss 0.25", "left"):
        assert part in text, part
    assert "1/2 a, seed 0: loss 0.5" in capsys.readouterr().out


@pytest.mark.parametrize(("seconds", "said"), [(5, "5 s"), (300, "5 min"), (7200, "2.0 h")])
def test_durations(seconds, said):
    assert progress.duration(seconds) == said
