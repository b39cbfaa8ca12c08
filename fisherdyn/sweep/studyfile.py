"""A study from a file of one's own: YAML, or Python where it also brings policies, or trains in another way.

In YAML a file has options of the command line, and rows. Each row is a policy or an order, and what it has otherwise:

    task: world
    steps: 140
    seeds: 5
    schedules:
      standard: {policy: standard}
      odd layers first: {order: [9, 7, 5, 3, 1, 10, 8, 6, 4, 2, 0]}
      gentle: {policy: top_down, lr: 2.0e-3, interval: 4}

In Python the same names are variables, the options being a dict `options`; `policies` may add named ones to the project's,
and `train(run, settings, on_step)` may take the place of `execute`. The workers are given the file's text, not its path.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import xarray as xr

from .. import policies
from . import rows
from .engine import OnStep, Train
from .execute import execute
from .studies import Run, Settings, parse_order

SUFFIXES = (".yaml", ".yml", ".py")


@dataclass(frozen=True)
class StudyFile:
    """What a file says.

    Attributes:
        name: of the study.
        options: of the command line, which come before its defaults.
        schedules: row -> policy or order, and changes.
        train: how a run is trained.
        trained_by: what identifies that; "" for `execute`.
        tasks: whether runs are trained on one of the project's tasks.
    """

    name: str
    options: Mapping[str, Any]
    schedules: Mapping[str, Mapping[str, Any]]
    train: Train = execute
    trained_by: str = ""
    tasks: bool = True

    def runs(self, seeds: Sequence[int]) -> list[Run]:
        """Every row, for every seed."""
        every = []
        for name, row in self.schedules.items():
            own = dict(row)
            every.append((name, tuple(own.pop("order", ())), own.pop("policy", ""), own))
        return [Run(name, order, seed, policy, own) for seed in seeds for name, order, policy, own in every]


def read(path: Path) -> StudyFile:
    """The study of a file.

    Raises:
        ValueError: it cannot be read, or is no study: what is wrong with which row.
    """
    try:
        source = path.read_text()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from error
    if path.suffix == ".py":
        return _from_python(path, source)
    options = _from_yaml(path, source)
    return StudyFile(path.stem, options, _checked(path, options.pop("schedules", None), policies.NAMED))


def _from_yaml(path: Path, source: str) -> dict[str, Any]:
    try:
        import yaml

        from . import yamltext
    except ModuleNotFoundError as error:
        raise ValueError(f"{path}: needs PyYAML: pip install 'fisherdyn[sweep]'") from error
    try:
        options = yamltext.load(source)
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: no YAML ({' '.join(str(error).split())})") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(options, dict):
        raise ValueError(f"{path}: expected options and schedules by name, got {type(options).__name__}")
    return options


@dataclass(frozen=True)
class FromSource:
    """Trains as a Python file says; goes to workers as text."""

    path: str
    source: str

    def __call__(self, run: Run, settings: Settings, on_step: OnStep) -> xr.Dataset:
        module = _module(self.path, self.source)
        if hasattr(module, "train"):
            return module.train(run, settings, on_step)
        return execute(run, settings, on_step, {**policies.NAMED, **getattr(module, "policies", {})})


@cache
def _module(path: str, source: str) -> ModuleType:
    module = ModuleType(Path(path).stem)
    module.__file__ = path
    exec(compile(source, path, "exec"), module.__dict__)
    return module


def _from_python(path: Path, source: str) -> StudyFile:
    try:
        module = _module(str(path), source)
    except Exception as error:
        raise ValueError(f"{path}: {type(error).__name__}: {error}") from error
    known = {**policies.NAMED, **getattr(module, "policies", {})}
    own = hasattr(module, "train")
    schedules = _checked(path, getattr(module, "schedules", None), known, orders=not own)
    identity = hashlib.sha256(source.encode()).hexdigest()
    options = getattr(module, "options", {})
    return StudyFile(path.stem, options, schedules, FromSource(str(path), source), identity, tasks=not own)


def _checked(
    path: Path, schedules: Any, known: Mapping[str, Any], orders: bool = True
) -> Mapping[str, Mapping[str, Any]]:
    if not isinstance(schedules, dict) or not schedules:
        raise ValueError(f"{path}: expected schedules, each a name with its policy or order")
    names = [str(name) for name in schedules]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"{path}: schedule {twice[0]} is there twice, as a number and as text: give one another name")
    return {str(name): _row(f"{path}: schedule {name}", row, known, orders) for name, row in schedules.items()}


def _row(where: str, row: Any, known: Mapping[str, Any], orders: bool) -> Mapping[str, Any]:
    if not isinstance(row, dict) or ("policy" in row) == ("order" in row):
        raise ValueError(f"{where}: expected a policy or an order, and what it has otherwise; got {row}")
    if "policy" in row and row["policy"] not in [*known]:
        raise ValueError(f"{where}: unknown policy {row['policy']!r}: choose one of {', '.join(known)}")
    try:
        if "order" in row and orders:
            parse_order(",".join(map(str, row["order"])))
        return rows.numbers(row)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}: {str(error).removeprefix('--')}") from error
