"""From a command to a plan: which runs, what they share, where they are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch

from .. import tasks
from ..validation import fields_of
from . import recipes
from .commandline import Command
from .folder import PLAN
from .options import FIT, Options, RunOptions
from .recipes import Recipe
from .runs import Run, Settings
from .store import SweepStore


def plan(command: Command) -> tuple[list[Run], Settings]:
    """The runs and what they share.

    Raises:
        ValueError: the options make no study: an unknown task, device or row, no recipe.
    """
    study, options = command.study, command.options
    if options.device is not None:
        _check_device(options.device, options)
    tasks.options(options.task)  # an unknown task is refused as such, before it has no recipe
    recipe = recipes.find(study.recipe, options)
    settings = _shared(options, recipe)
    runs = study.runs(options, recipe, settings)
    if study.on_tasks:
        _check_rows(runs, settings, command)
    return [
        replace(run, changes={**_own_cadence(settings, run, options, recipe), **run.changes}) for run in runs
    ], settings


def _shared(options: Options, recipe: Recipe) -> Settings:
    """What all runs share: top-down's settings, and the task's options."""
    known = tasks.options(options.task)
    of_task: dict[str, Any] = {"tuning": known["tuning"]} if "tuning" in known else {}
    of_task |= options.of_task()
    task = tasks.load(options.task, **of_task)
    if task.skipped or options.languages:
        of_task["languages"] = list(task.targets)  # full fine-tuning too is tested where adapters can be
    if recipe.batch:
        of_task["batch"] = recipe.batch
    settings = Settings(
        task=options.task,
        **recipe.of("top_down", (recipe.sizes or (options.train_examples,))[0], options),
        options=of_task,
        skipped=_reasons(task.skipped),
        device=options.device or ("cuda" if torch.cuda.is_available() else "cpu"),
        fit={**({"keep_best": True} if recipe.keep_best else {}), **options.fit},
    )
    cadence: dict[str, Any] = _cadence(settings, options, recipe)
    return replace(settings, **cadence)


def _reasons(languages: Mapping[str, str]) -> str:
    """ "it, th (no language adapter)" """
    reasons = dict.fromkeys(languages.values())
    return "; ".join(f"{', '.join(c for c in languages if languages[c] == why)} ({why})" for why in reasons)


def _cadence(settings: Settings, options: Options, recipe: Recipe) -> dict[str, int]:
    """Steps between records and evaluations: a run of any length has as many as another."""
    return {
        "record_every": options.record_every or max(1, settings.steps // recipe.records),
        "evaluate_every": options.evaluate_every or max(1, settings.steps // recipe.evaluations),
    }


def _own_cadence(settings: Settings, run: Run, options: Options, recipe: Recipe) -> dict[str, int]:
    return _cadence(settings.of(run), options, recipe) if "steps" in run.changes else {}


def _check_rows(runs: Sequence[Run], settings: Settings, command: Command) -> None:
    """Refuses rows that no run could be made of. What the runs will read is looked at later."""
    loaded: list[tuple[str, Mapping[str, Any]]] = []
    for run in {run.schedule: run for run in runs}.values():
        own = settings.of(run)
        try:
            _check_keys(run, own.task)
            if (own.task, own.options) not in loaded:
                tasks.load(own.task, **own.options)
                loaded.append((own.task, own.options))
            _check_device(own.device, command.options)
        except (ValueError, TypeError) as error:
            file = f"{command.study.file}: " if command.study.file else ""
            raise ValueError(f"{file}schedule {run.schedule}: {error}") from error


def _check_keys(run: Run, task: str) -> None:
    known = ("task", *fields_of(RunOptions), *FIT)
    of_task = tasks.options(task)
    if unknown := [str(key) for key in run.changes if key not in known and key not in of_task]:
        raise ValueError(
            f"unknown key {', '.join(unknown)}: a schedule may have policy, order, {', '.join(known)}, and the options of "
            f"task {task!r}: {', '.join(of_task)}"
        )


def _check_device(device: str, options: Options) -> None:
    try:
        kind = torch.device(device).type
    except RuntimeError:
        raise ValueError(f"device {device}: torch knows no such device; expected cpu or cuda, for example") from None
    if kind == "cuda" and options.scheduler is None and not torch.cuda.is_available():
        raise ValueError(f"device {device}: torch sees no GPU here; choose cpu, or workers that have one (--scheduler)")


def selected(runs: Sequence[Run], patterns: Sequence[str]) -> list[int]:
    """Numbers of the runs that --only names: SCHEDULE or SCHEDULE:SEED, with * and ?; all where it names none.

    Raises:
        ValueError: a pattern that fits no run; the message lists schedules and seeds.
    """
    if not patterns:
        return list(range(len(runs)))
    chosen: set[int] = set()
    for pattern in patterns:
        fitting = {i for i, run in enumerate(runs) if _fits(run, pattern)}
        if not fitting:
            names, seeds = dict.fromkeys(run.schedule for run in runs), sorted({run.seed for run in runs})
            raise ValueError(
                f"--only {pattern}: no such run; schedules: {', '.join(names)}; seeds: {', '.join(map(str, seeds))}"
            )
        chosen |= fitting
    return sorted(chosen)


def _fits(run: Run, pattern: str) -> bool:
    return fnmatchcase(run.schedule, pattern) or fnmatchcase(f"{run.schedule}:{run.seed}", pattern)


def open_store(command: Command, runs: list[Run], settings: Settings) -> SweepStore:
    """The folder of the sweep, once all that its runs will read is known to be there."""
    if command.study.on_tasks:
        _check_data(runs, settings)
    folder = folder_of(command)
    if not command.options.resume and (folder / PLAN).exists():
        raise ValueError(f"--no-resume: {folder} holds a sweep; choose another folder or delete it")
    return SweepStore(folder, command.study.name, runs, settings, command.study.trained_by)


def _check_data(runs: list[Run], settings: Settings) -> None:
    """Damaged weights and missing data end here, not in a worker."""
    checked: list[tuple[str, Mapping[str, Any]]] = []
    for own in map(settings.of, runs):
        if (own.task, own.options) not in checked:
            tasks.load(own.task, **own.options).check()
            checked.append((own.task, own.options))


def folder_of(command: Command) -> Path:
    """Where the sweep is kept: --out, or a folder below runs/ named by study, task and model."""
    options = command.options
    if options.out is not None:
        return options.out
    named = [command.study.name]
    if not command.study.file and options.task != "world":
        named.append(options.task.replace(":", "-"))
        if model := options.model or tasks.options(options.task).get("model"):
            named.append(Path(model).name)
    return Path("runs") / "-".join(named)
