"""Runs and what they share: what engines are given, and what a store keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from ..policies import Policy
from .options import FIT


@dataclass(frozen=True)
class Row:
    """A schedule of a study, which is trained with every seed.

    Attributes:
        schedule: its name.
        policy: id of its policy; "permutation" where it has an order.
        order: in which layers open, for "permutation".
        changes: settings and task options that are this row's own.
    """

    schedule: str
    policy: str
    order: tuple[int, ...] = ()
    changes: Mapping[str, Any] = field(default_factory=dict)

    def run(self, seed: int, known: Mapping[str, Policy]) -> Run:
        """The row's run with a seed, labelled by its policy, one of `known`."""
        label = self.schedule if self.order else known[self.policy].label_of(self.schedule)
        return Run(self.schedule, self.order, seed, self.policy, self.changes, label)


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        schedule: name of its row.
        order: in which layers open, for "permutation".
        policy: the id of its policy.
        changes: settings and task options that are this run's own.
        label: the schedule's name in figures; by default the schedule.
    """

    schedule: str
    order: tuple[int, ...]
    seed: int
    policy: str = "standard"
    changes: Mapping[str, Any] = field(default_factory=dict)
    label: str = ""

    def __post_init__(self) -> None:
        if not self.label:
            object.__setattr__(self, "label", self.schedule)

    def __str__(self) -> str:
        return f"{self.schedule}, seed {self.seed}"


@dataclass(frozen=True)
class Settings:
    """What all runs of a study share, but for their `changes`. Equal settings and runs give the same numbers.

    Attributes:
        options: of the task: model, data, tuning, ...
        skipped: targets without a language adapter; the record names them.
        device: torch's name of it.
        fit: settings that go to `fit` as they are, by name (`options.FIT`).
    """

    task: str = "world"
    steps: int = 140
    interval: int = 7
    lr: float = 8e-3
    record_every: int = 9
    evaluate_every: int = 35
    options: Mapping[str, Any] = field(default_factory=dict)
    skipped: str = ""
    device: str = "cpu"
    fit: Mapping[str, Any] = field(default_factory=dict)

    def asdict(self) -> dict[str, Any]:
        """Flat and in plain values, as a file's attributes must be."""
        flat = asdict(self)
        flat |= {**flat.pop("options"), **flat.pop("fit")}
        return {key: _plain(value) for key, value in flat.items() if value not in ("", None)}

    def of(self, run: Run) -> Settings:
        """The settings of one run."""
        names = {field.name for field in fields(self)} - {"options", "skipped", "fit"}
        changes = {key: value for key, value in run.changes.items() if key in names}
        fit = {key: value for key, value in run.changes.items() if key in FIT}
        options = {key: value for key, value in run.changes.items() if key not in names and key not in FIT}
        return replace(self, **changes, fit={**self.fit, **fit}, options={**self.options, **options})

    def record_steps(self) -> list[int]:
        """The steps at which fit() records."""
        return _every(self.steps, self.record_every, first=0)

    def evaluation_steps(self) -> list[int]:
        """The steps at which fit() evaluates the targets."""
        return _every(self.steps, self.evaluate_every, first=self.evaluate_every)

    def selection_steps(self, layers: int) -> list[int]:
        """The steps at which SELECT may be asked."""
        return list(range(self.interval, min(self.steps, self.interval * layers) + 1, self.interval))


def _plain(value: Any) -> Any:
    """NetCDF knows neither truth values nor lists of texts."""
    if isinstance(value, bool):
        return int(value)
    return ", ".join(value) if isinstance(value, list) else value


def _every(steps: int, interval: int, first: int) -> list[int]:
    return sorted({*range(first, steps, interval), steps})
