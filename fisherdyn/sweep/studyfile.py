"""A study from a file of your own: YAML, or Python where it also brings policies or tasks, or trains in another way.

In YAML a file has options of the command line, and rows. Each row has a policy or an order, and options of its own runs and
of its task:

    task: world
    steps: 140
    seeds: 5
    schedules:
      standard: {policy: standard}
      odd layers first: {order: [9, 7, 5, 3, 1, 10, 8, 6, 4, 2, 0]}
      gentle: {policy: top_down, lr: 2e-3, interval: 4}

In Python the same names are variables, the options being a dict `options`. A list `policies` adds policies to the project's,
a dict `tasks` adds tasks (name -> what makes one), and a function `train(run, settings, on_step)` takes the place of
`execute`. Workers are given the file's text, not its path.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import xarray as xr

from .. import policies, tasks
from ..policies import Policy
from ..validation import fields_of
from .engine import OnStep
from .execute import execute
from .options import FIT, Options, RunOptions, TaskOptions, checked
from .orders import parse_order
from .runs import Row, Run, Settings
from .studies import Study

SUFFIXES = (".yaml", ".yml", ".py")


def read(path: Path) -> Study:
    """The study of a file.

    Raises:
        ValueError: the file cannot be read or is no study; the message says what is wrong with which row.
    """
    try:
        source = path.read_text(encoding="utf-8")
        if path.suffix == ".py":
            return _from_python(path, source)
        options = _yaml(source)
        rows = _rows(options.pop("schedules", None), policies.NAMED)
        return Study(path.stem, f"the study of {path}", rows, defaults=_checked(options), file=str(path))
    except UnicodeDecodeError:
        raise ValueError(f"{path}: expected text in UTF-8") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error


def _yaml(source: str) -> dict[str, Any]:
    """YAML 1.2, in which 1e-3 is a number and a key may be there only once."""
    try:
        from ruamel.yaml import YAML
        from ruamel.yaml.error import MarkedYAMLError
    except ModuleNotFoundError as error:
        raise ValueError("needs ruamel.yaml: pip install 'fisherdyn[sweep]'") from error
    try:
        options = YAML(typ="safe", pure=True).load(source)
    except MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ValueError(f"{line}not valid YAML ({error.problem})") from error
    if not isinstance(options, dict):
        raise ValueError(f"expected options and schedules by name, got {type(options).__name__}")
    return options


def _from_python(path: Path, source: str) -> Study:
    try:
        module = _module(str(path), source)
    except Exception as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
    own = hasattr(module, "train")
    known = _policies(module)
    return Study(
        path.stem,
        f"the study of {path}",
        _rows(getattr(module, "schedules", None), known, on_tasks=not own),
        policies=known,
        defaults=_checked(getattr(module, "options", {})),
        train=FromSource(str(path), source),
        trained_by=hashlib.sha256(source.encode()).hexdigest(),
        on_tasks=not own,
        file=str(path),
    )


@dataclass(frozen=True)
class FromSource:
    """Trains as a Python file says; goes to workers as text."""

    path: str
    source: str

    def __call__(self, run: Run, settings: Settings, on_step: OnStep) -> xr.Dataset:
        module = _module(self.path, self.source)
        if hasattr(module, "train"):
            return module.train(run, settings, on_step)
        return execute(run, settings, on_step, _policies(module))


@cache
def _module(path: str, source: str) -> ModuleType:
    """The file as a module, whose tasks are known from now on."""
    module = ModuleType(Path(path).stem)
    module.__file__ = path
    exec(compile(source, path, "exec"), module.__dict__)
    for name, factory in _variable(module, "tasks", {}).items():
        tasks.register(name, factory)
    return module


def _variable(module: ModuleType, name: str, default: Any) -> Any:
    """What the file defines under a name; the project's module of that name, which it may import, is no definition."""
    value = getattr(module, name, default)
    return default if isinstance(value, ModuleType) else value


def _policies(module: ModuleType) -> dict[str, Policy]:
    """The project's policies and the file's, by id."""
    own = _variable(module, "policies", [])
    if not isinstance(own, list | tuple) or not all(isinstance(policy, Policy) for policy in own):
        raise ValueError(f"expected policies as a list of fisherdyn.policies.Policy, got {own!r}")
    return {**policies.NAMED, **{policy.id: policy for policy in own}}


def _checked(options: Mapping[str, Any]) -> dict[str, Any]:
    """The file's options, of the types that those of the command line have."""
    known = {name: field for name, field in {**fields_of(Options), **FIT}.items() if name != "fit"}
    if unknown := [str(name) for name in options if name not in known]:
        raise ValueError(f"unknown option {', '.join(unknown)}: choose from {', '.join(sorted(known))}")
    return checked({name: value for name, value in options.items() if value is not None}, known)


def _rows(schedules: Any, known: Mapping[str, Policy], on_tasks: bool = True) -> tuple[Row, ...]:
    if not isinstance(schedules, dict) or not schedules:
        raise ValueError("expected schedules, each a name with its policy or order")
    names = [str(name) for name in schedules]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"schedule {repeated[0]} appears twice, as a number and as text: rename one")
    return tuple(_row(str(name), row, known, on_tasks) for name, row in schedules.items())


def _order(order: Any) -> tuple[Any, ...]:
    if not isinstance(order, list | tuple):
        raise ValueError(f"expected order as a list of layers, such as [9, 8, 7], got {order!r}")
    return tuple(order)


def _row(name: str, row: Any, known: Mapping[str, Policy], on_tasks: bool) -> Row:
    try:
        if not isinstance(row, dict) or ("policy" in row) == ("order" in row):
            raise ValueError(f"expected a policy or an order, and options of its runs; got {row}")
        changes = dict(row)
        policy, order = changes.pop("policy", "permutation"), _order(changes.pop("order", ()))
        if not order and policy not in known:
            raise ValueError(f"unknown policy {policy!r}: choose one of {', '.join(known)}")
        if order and on_tasks:
            order = parse_order(",".join(map(str, order)))
        of_task = fields_of(TaskOptions) if on_tasks else {}
        return Row(name, policy, order, checked(changes, {**fields_of(RunOptions), **FIT, **of_task}))
    except (ValueError, TypeError) as error:
        raise ValueError(f"schedule {name}: {error}") from error
