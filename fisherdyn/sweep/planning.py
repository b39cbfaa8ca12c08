"""From arguments to a plan: which runs, what they share, where they are kept."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch

from .. import tasks
from . import recipes, rows, studies
from .folder import PLAN
from .recipes import Recipe
from .store import SweepStore
from .studies import Run, Settings
from .studyfile import StudyFile

METHODS = {
    "compare": studies.METHODS,
    "low-resource": studies.LOW_RESOURCE_METHODS,
    "reverse": studies.REVERSE_METHODS,
}
WORLDS_RECORDS, RECORDS = 15, 40
"""Records of tr(F) in a run of the world, and of the paper's tasks."""
OPTIONS = ("model", "data", "adapters", "tuning", "train_examples", "languages")
"""Of the task, as the command line has them."""


def plan(args: argparse.Namespace) -> tuple[list[Run], Settings]:
    """The runs and what they share, from the arguments alone; ValueError where they make no study."""
    _check_numbers(args)
    given = {name: getattr(args, name) for name in OPTIONS if getattr(args, name) is not None}
    if isinstance(args.languages, str):
        given["languages"] = args.languages.split(",")
    task = tasks.load(args.task, **given)
    recipe = recipes.find(args.study, args.task, args.model)
    if task.skipped:
        given["languages"] = list(task.targets)  # full fine-tuning too is tested where adapters can be
    wanted = {"steps": args.steps, "lr": args.lr, "interval": args.interval}
    settings = Settings(
        task=args.task,
        **recipe.of(studies.TOP_DOWN, (recipe.sizes or (args.train_examples,))[0], wanted),
        options={**given, "batch": recipe.batch},
        skipped=_skipped(task.skipped),
        device=args.device or ("cuda" if torch.cuda.is_available() else "cpu"),
        fit=recipe.fit,
    )
    every = _cadence(settings)
    settings = replace(settings, record_every=every["record_every"], evaluate_every=every["evaluate_every"])
    runs = _runs(args, recipe, settings, wanted)
    return [replace(run, changes={**_own_cadence(settings, run), **run.changes}) for run in runs], settings


def _runs(args: argparse.Namespace, recipe: Recipe, settings: Settings, wanted: Mapping[str, Any]) -> list[Run]:
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    if file := study_file(args):
        if file.tasks:
            _check_rows(args, file, settings)
        return file.runs(seeds)
    if args.study == "permutations":
        orders = [studies.parse_order(text) for text in args.order]
        return studies.permutations(seeds, args.schedules, orders, args.random_orders)
    if args.study == "interval":
        return studies.intervals(recipe, seeds, _intervals(args.intervals), wanted)
    base = {**settings.options, **{name: getattr(settings, name) for name in ("steps", "lr", "interval")}}
    return studies.of_recipe(recipe, seeds, METHODS[args.study], wanted, base)


def study_file(args: argparse.Namespace) -> StudyFile | None:
    """The file that the study is from."""
    return getattr(args, "file", None)


def _check_rows(args: argparse.Namespace, file: StudyFile, settings: Settings) -> None:
    """Refuses rows that no run could be made of; what the runs will read is looked at later."""
    loaded: list[tuple[str, Mapping[str, Any]]] = []
    for run in file.runs([0]):
        try:
            task = str(run.changes.get("task", settings.task))
            rows.check(run.changes, tasks.options(task), task)
            own = settings.of(run)
            if (task, own.options) not in loaded:
                tasks.load(task, **own.options)
                loaded.append((task, own.options))
            if "device" in run.changes:
                _check_device(str(own.device), here=args.scheduler is None)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{args.study}: schedule {run.schedule}: {str(error).removeprefix('--')}") from error


def study_name(args: argparse.Namespace) -> str:
    """As the folder has it."""
    file = study_file(args)
    return file.name if file else str(args.study)


def _intervals(text: str | None) -> list[int]:
    try:
        ks = [int(k) for k in text.split(",")] if text else []
    except ValueError:
        raise ValueError(f"--intervals {text}: expected numbers of steps separated by commas") from None
    if any(k < 1 for k in ks) or len(set(ks)) < len(ks):
        raise ValueError(f"--intervals {text}: expected numbers of at least 1, each once")
    return ks


def _check_numbers(args: argparse.Namespace) -> None:
    for name in ("seeds", "steps", "workers", "interval", "train_examples", "random_orders"):
        value = getattr(args, name, None)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} {value}: expected at least 1")
    if args.lr is not None and not 0 < args.lr < float("inf"):
        raise ValueError(f"--lr {args.lr}: expected a positive number")
    if args.first_seed < 0:
        raise ValueError(f"--first-seed {args.first_seed}: expected at least 0")
    if args.device is not None:
        _check_device(args.device, here=args.scheduler is None)


def _check_device(device: str, here: bool) -> None:
    try:
        kind = torch.device(device).type
    except RuntimeError:
        raise ValueError(f"--device {device}: torch knows no such device; expected cpu or cuda, for example") from None
    if here and kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"--device {device}: torch sees no GPU here; choose cpu, or workers that have one (--scheduler)"
        )


def _skipped(languages: Mapping[str, str]) -> str:
    """ "it, th (no language adapter)" """
    reasons = dict.fromkeys(languages.values())
    return "; ".join(f"{', '.join(c for c in languages if languages[c] == why)} ({why})" for why in reasons)


def _cadence(settings: Settings) -> dict[str, int]:
    """How often is recorded and evaluated: a run of any length as often as another."""
    records = WORLDS_RECORDS if settings.task.startswith("world") else RECORDS
    return {"record_every": max(1, settings.steps // records), "evaluate_every": max(1, settings.steps // 4)}


def _own_cadence(settings: Settings, run: Run) -> dict[str, int]:
    return _cadence(settings.of(run)) if "steps" in run.changes else {}


def selected(runs: Sequence[Run], patterns: Sequence[str]) -> list[int]:
    """Numbers of the runs that --only names: SCHEDULE or SCHEDULE:SEED, with * and ?; all where it names none.

    Raises:
        ValueError: a pattern that fits no run; the message lists schedules and seeds.
    """
    if not patterns:
        return list(range(len(runs)))
    found: set[int] = set()
    for pattern in patterns:
        fit = {i for i, run in enumerate(runs) if _fits(run, pattern)}
        if not fit:
            names, seeds = dict.fromkeys(run.schedule for run in runs), sorted({run.seed for run in runs})
            raise ValueError(
                f"--only {pattern}: no such run; schedules: {', '.join(names)}; seeds: {', '.join(map(str, seeds))}"
            )
        found |= fit
    return sorted(found)


def _fits(run: Run, pattern: str) -> bool:
    return fnmatchcase(run.schedule, pattern) or fnmatchcase(f"{run.schedule}:{run.seed}", pattern)


def open_store(args: argparse.Namespace, runs: list[Run], settings: Settings) -> SweepStore:
    """The folder of the sweep, once all that its runs will read is known to be there."""
    file = study_file(args)
    if file is None or file.tasks:
        _check_tasks(runs, settings)
    folder = args.out or default_folder(args)
    if not args.resume and (folder / PLAN).exists():
        raise ValueError(f"--no-resume: {folder} holds a sweep; choose another folder or delete it")
    return SweepStore(folder, study_name(args), runs, settings, file.trained_by if file else "")


def _check_tasks(runs: list[Run], settings: Settings) -> None:
    checked: list[tuple[str, Mapping[str, Any]]] = []
    for own in map(settings.of, runs):
        if (own.task, own.options) not in checked:
            tasks.load(own.task, **own.options).check()  # damaged weights, missing data end here, not in a worker
            checked.append((own.task, own.options))


def default_folder(args: argparse.Namespace) -> Path:
    if file := study_file(args):
        return Path("runs") / file.name
    model = (
        [Path(args.model or "xlm-roberta-base").name] if recipes.find(args.study, args.task, args.model).model else []
    )
    named = [] if args.task == "world" else [args.task, *model]
    return Path("runs") / "-".join([args.study, *named])
