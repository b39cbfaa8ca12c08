"""Studies from files of one's own, status, partial runs of a study, and what is said while it goes on."""

from __future__ import annotations

import io
from pathlib import Path

import nothing
import pytest
import xarray as xr

from fisherdyn.sweep import progress
from fisherdyn.sweep.__main__ import main, parse, plan

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
policies = {"lowest two": lambda: policies_of_mine()}


def policies_of_mine():
    from fisherdyn.policies import surgical

    return surgical([0, 1])


SMALL = {"train_examples": 16, "dev_examples": 4, "test_examples": 4, "probe_examples": 4, "languages": ["ka"]}
schedules = {"mine": {"policy": "lowest two", "record_every": 2, "evaluate_every": 2, **SMALL}}
"""
    path = written(tmp_path, text, "mine.py")
    assert main([path, "--workers", "1", "--out", str(tmp_path / "out")]) == 0
    with xr.open_dataset(tmp_path / "out" / "mine.nc") as ds:
        assert ds["trainable"].isel(run=0, step=-1).values.tolist() == [1, 1] + [0] * 10


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.yaml", "schedules: [", "no YAML"),
        ("a.yaml", "- 1", "expected options and schedules by name, got list"),
        ("a.yaml", "steps: 3", "expected schedules, each a name with its policy or order"),
        ("a.yaml", "schedules: {x: {}}", "schedule x: expected a policy or an order"),
        ("a.yaml", "schedules: {x: {policy: magic}}", "schedule x: unknown policy 'magic': choose one of standard,"),
        ("a.yaml", "schedules: {x: {order: [1, 1]}}", "schedule x: order 1,1: expected each of 0 to 10 once"),
        ("a.yaml", "speed: 3\nschedules: {x: {policy: fun}}", "unknown option speed: choose from"),
        (
            "a.yaml",
            "schedules:\n  x: {policy: fun}\n  y: {policy: fun}\n  x: {policy: standard}",
            "a.yaml: line 4: x is there already, in line 2: rename it or leave one out",
        ),
        ("a.yaml", "steps: 3\nsteps: 4\nschedules: {x: {policy: fun}}", "line 2: steps is there already, in line 1"),
        ("a.yaml", "schedules: {x: {policy: fun, lr: 1.0e-3, lr: 0.1}}", "line 1: lr is there already, in line 1"),
        ("a.yaml", "schedules: {1: {policy: fun}, '1': {policy: fun}}", "schedule 1 is there twice"),
        ("a.yaml", "day: 2024-13-45", "a.yaml: month must be in 1..12"),
        ("a.yaml", "steps: 3.5\nschedules: {x: {policy: fun}}", "a.yaml: argument --steps: invalid int value: '3.5'"),
        ("a.yaml", "lr: [1]\nschedules: {x: {policy: fun}}", "argument --lr: invalid float value: '[1]'"),
        ("a.yaml", "schedules: {x: {policy: fun, lr: abc}}", "a.yaml: schedule x: lr abc: expected a positive number"),
        ("a.yaml", "schedules: {x: {policy: fun, lr: 0}}", "a.yaml: schedule x: lr 0: expected a positive number"),
        ("a.yaml", "schedules: {x: {policy: fun, lr: .nan}}", "schedule x: lr nan: expected a positive number"),
        ("a.yaml", "schedules: {x: {policy: fun, lr: yes}}", "schedule x: lr True: expected a positive number"),
        (
            "a.yaml",
            "schedules: {x: {policy: fun, steps: 0}}",
            "schedule x: steps 0: expected a whole number of at least",
        ),
        ("a.yaml", "schedules: {x: {policy: fun, steps: 3.5}}", "schedule x: steps 3.5: expected a whole number"),
        ("a.yaml", "schedules: {x: {policy: fun, steps: many}}", "schedule x: steps many: expected a whole number"),
        ("a.yaml", "schedules: {x: {policy: fun, interval: -1}}", "schedule x: interval -1: expected a whole number"),
        ("a.yaml", "schedules: {x: {policy: fun, interval:}}", "schedule x: interval None: expected a whole number"),
        (
            "a.yaml",
            "schedules: {x: {policy: fun, interval: [1, 4, 6]}}",
            "a.yaml: schedule x: interval [1, 4, 6]: expected one number of steps",
        ),
        (
            "a.yaml",
            "schedules: {x: {policy: fun, intervall: 3, seeds: 4}}",
            "a.yaml: schedule x: unknown key intervall, seeds: a schedule may have policy, order, lr, steps, interval, "
            "record_every, evaluate_every, device, fit, task, and the options of task 'world': train_examples, ",
        ),
        (
            "a.yaml",
            "schedules: {x: {policy: fun, options: {}}}",
            "schedule x: unknown key options: a schedule may have",
        ),
        ("a.yaml", "schedules: {x: {policy: fun, task: moon}}", "schedule x: unknown task 'moon': choose one of world"),
        ("a.yaml", "schedules: {x: {policy: fun, tuning: no-such}}", "a.yaml: schedule x: unknown tuning 'no-such'"),
        (
            "a.yaml",
            "schedules: {x: {policy: fun, train_examples: 0}}",
            "schedule x: train_examples 0: expected a whole",
        ),
        ("a.yaml", "schedules: {x: {policy: fun, batch: many}}", "a.yaml: schedule x: "),
        ("a.yaml", "schedules: {x: {policy: fun, device: abacus}}", "schedule x: device abacus: torch knows no such"),
        ("a.yaml", "schedules: {x: {policy: fun, fit: 3}}", "schedule x: fit 3: expected arguments of fit() by name"),
        (
            "a.py",
            "schedules = {'x': {'policy': 'fun', 'lr': -1}}",
            "a.py: schedule x: lr -1: expected a positive number",
        ),
        ("a.py", "schedules = {'x': {'policy': 'fun', 'intervall': 1}}", "a.py: schedule x: unknown key intervall"),
        ("a.py", "1/0", "ZeroDivisionError"),
        ("a.py", "x = 1", "expected schedules"),
        ("a.yaml", None, "cannot be read"),
    ],
)
@pytest.mark.parametrize("way", [[], ["--dry-run"]])
def test_a_wrong_file_ends_with_one_line_and_2(tmp_path, capsys, name, text, message, way):
    path = written(tmp_path, text, name) if text is not None else str(tmp_path / name)
    with pytest.raises(SystemExit) as stop:
        main([path, "--out", str(tmp_path / "out"), *way])
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_numbers_that_yaml_takes_for_texts(tmp_path):
    text = "lr: 1e-2\nschedules:\n  x: {policy: fun, lr: 1e-3, interval: 3.0, train_examples: 8, fit: {patience: 2}}\n"
    runs, settings = plan(parse([written(tmp_path, text), "--seeds", "1"]))
    own = settings.of(runs[0])
    assert (settings.lr, own.lr, own.interval, own.fit) == (1e-2, 1e-3, 3, {"patience": 2})


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
    text = "policies = {'mine': None}\nschedules = {'x': {'policy': 'mine', 'interval': 500}}\n"
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
