"""Command-line options. A study's file may set all of them, and its rows those of one run, under the same names.

Options that go to `fit` as they are come from its own settings types, so that their types and help are written there alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import AllowInfNan, BeforeValidator, Field

from ..settings import Evaluation, Execution, Measurement, Optimization
from ..validation import Count, Expected, Natural, Positive, SettingsField, check, fields_of, settings


def _parts(value: Any) -> Any:
    """ "a,b" -> ["a", "b"], also inside of a list; anything else as it is."""
    texts = [value] if isinstance(value, str) else value
    return [part for text in texts for part in text.split(",")] if _are_texts(texts) else value


def _numbers(value: Any) -> Any:
    """ "3,5" -> [3, 5]; anything else as it is."""
    parts = _parts(value)
    return [int(part) if part.strip().isdigit() else part for part in parts] if _are_texts(parts) else value


def _are_texts(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(text, str) for text in value)


Texts = Annotated[tuple[str, ...], Expected("texts")]
CommaSeparated = Annotated[list[str], BeforeValidator(_parts), Expected("names separated by commas")]
Counts = Annotated[
    tuple[Count, ...], BeforeValidator(_numbers), Expected("whole numbers of at least 1 separated by commas")
]


@settings
class TaskOptions:
    """What is trained on."""

    task: str = "world"
    """What is trained on: TASKS, or MODULE:FACTORY for a task of your own."""
    model: str | None = None
    """xlm-roberta-base, bert-base-multilingual-cased, microsoft/mdeberta-v3-base, multilingual-e5-small, or a folder
    (default: the task's)."""
    data: str | None = None
    """Folder with the data sets (default: the hub)."""
    adapters: str | None = None
    """Folder with language adapters, one per language (default: the hub)."""
    tuning: str | None = None
    """adapter (MAD-X), task_adapter (without language adapters), lora or full (default: the task's)."""
    source: str | None = None
    """Language that is trained on (default: English)."""
    languages: CommaSeparated | None = None
    """Targets, separated by commas, such as ar,de; of sib200 also all, paper or a file of codes (default: the task's)."""
    train_examples: Count | None = None
    """Size of a random subsample of the training set (default: all of it)."""

    def of_task(self) -> dict[str, Any]:
        """Keyword arguments for `tasks.load`."""
        named = {name: getattr(self, name) for name in fields_of(TaskOptions) if name != "task"}
        return {name: value for name, value in named.items() if value is not None}


@settings
class RunOptions:
    """How a run is trained. What is left out comes from the study's recipe."""

    steps: Count | None = None
    """Updates per run (default: the recipe's)."""
    lr: Annotated[Positive, AllowInfNan(False)] | None = None
    """Learning rate (default: the recipe's)."""
    interval: Count | None = None
    """Steps between openings (default: the recipe's)."""
    record_every: Count | None = None
    """Steps between records of tr(F) (default: 15 records per run on the world, 40 on the paper's tasks)."""
    evaluate_every: Count | None = None
    """Steps between evaluations of the targets (default: four per run; one at the end on sib200)."""
    device: str | None = None
    """Device that torch trains on, such as cpu or cuda (default: cuda where there is one)."""


@settings
class Options(TaskOptions, RunOptions):
    """Options of every study."""

    seeds: Count = 3
    """Runs of each schedule."""
    first_seed: Natural = 0
    """The first seed; the others follow it."""
    workers: Count | None = None
    """Number of processes, or of jobs in the queue (default: the number of GPUs, or else of cores)."""
    scheduler: str | None = None
    """A Dask scheduler's address, such as tcp://host:8786, or a dask-jobqueue YAML file (SLURM)."""
    out: Path | None = None
    """Folder (default: runs/STUDY, with task and model)."""
    resume: bool = True
    """Whether to go on in a folder that holds a sweep; with --no-resume such a folder is refused."""
    only: Texts = ()
    """Train only these runs now: SCHEDULE[:SEED], such as 'figure-4/*' or FUN:3; may be repeated."""
    dry_run: bool = False
    """List the runs and their steps, and stop."""
    status: bool = False
    """Print which runs of --out are done, failed or left, and stop."""
    fit: Mapping[str, Any] = Field(default_factory=dict)
    """Options of `fit` that were given."""

    def __post_init__(self) -> None:
        if self.dry_run and self.status:
            raise ValueError("expected --dry-run or --status, got both")


@settings
class PermutationOptions(Options):
    """Options of `permutations`."""

    schedules: Natural | None = None
    """The first N of Figure 4's ten schedules (default: all)."""
    random_orders: Count | None = None
    """Top-down and N orders drawn by footnote 8's rule, in the place of Figure 4's."""
    order: Texts = ()
    """An order of your own, such as 10,1,0,3,9,6,8,2,5,7,4; may be repeated."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.schedules is not None and self.random_orders is not None:
            raise ValueError("expected --schedules or --random-orders, got both")


@settings
class IntervalOptions(Options):
    """Options of `interval`."""

    intervals: Counts = ()
    """Steps between openings, separated by commas, such as 5,10,20 (default: a quarter to 1.5 of the recipe's)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(set(self.intervals)) < len(self.intervals):
            raise ValueError(f"expected intervals each once, got {','.join(map(str, self.intervals))}")


FIT = {
    **{name: fields_of(Optimization)[name] for name in ("lr_schedule", "weight_decay", "max_grad_norm", "accumulate")},
    **{name: fields_of(Measurement)[name] for name in ("labels",)},
    **{name: fields_of(Evaluation)[name] for name in ("patience", "keep_best")},
    **{name: fields_of(Execution)[name] for name in ("precision", "gradient_checkpointing", "compile")},
}
"""Settings of `fit` that a sweep passes on."""


def checked(values: Mapping[str, Any], known: Mapping[str, SettingsField]) -> dict[str, Any]:
    """Values in the types of the settings that are known; others as they are.

    Raises:
        ValueError: a value is not of its type.
    """
    return {
        name: check(name, value, given(known[name].kind)) if name in known else value for name, value in values.items()
    }


def given(kind: Any) -> Any:
    """A type without the None that stands for what was left out."""
    parts = [part for part in get_args(kind) if part is not NoneType]
    return Union[tuple(parts)] if get_origin(kind) in (Union, UnionType) else kind  # noqa: UP007
