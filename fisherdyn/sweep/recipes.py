"""The paper's hyperparameters, from `recipes.toml`: what each row of its tables was trained with."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import Field

from ..validation import Count, Natural, Positive, settings
from .options import Options

FILE = Path(__file__).with_name("recipes.toml")
MAIN, LOW_RESOURCE = "main", "low-resource"
OPENING, FROZEN_AT_FIRST = 0.55, 11
"""k L over the steps where a recipe names no k, and L. The rest of the steps is trained with all layers open."""
MBERT, XLMR = "bert-base-multilingual-cased", "xlm-roberta-base"


@settings
class Recipe:
    """How a study's runs are trained."""

    study: str
    """MAIN or LOW_RESOURCE."""
    tasks: tuple[str, ...]
    """Tasks that it is for."""
    model: str = ""
    """Model that it is for."""
    lr: Positive
    """Learning rate."""
    batch: Natural = 0
    """Examples in a batch; 0: the task's own number."""
    examples: Natural = 0
    """Training examples, which make steps of epochs."""
    epochs: Natural = 0
    """Epochs; 0 where `steps` says how long a run is."""
    steps: Natural = 0
    """Updates of a run."""
    interval: Count | tuple[Count, ...] | None = None
    """Gradual unfreezing's k, or one for each of `sizes`; None: see OPENING."""
    sizes: tuple[Count, ...] = ()
    """Numbers of training examples of a low-resource study."""
    records: Count = 40
    """Records of tr(F) in a run."""
    evaluations: Count = 4
    """Evaluations of the targets in a run."""
    keep_best: bool = False
    """As for `fit`."""
    policies: Mapping[str, Mapping[str, Any]] = Field(default_factory=dict)
    """Policy -> what it has of its own: lr, epochs, interval."""

    def of(self, policy: str, size: int | None = None, options: Options | None = None) -> dict[str, Any]:
        """steps, lr and interval of one row.

        Args:
            policy: its id.
            size: training examples.
            options: steps, lr and interval that the user chose come first. Full fine-tuning keeps its own learning rate,
                since a rate for adapters would ruin the encoder.
        """
        chosen = options or Options()
        row = {"lr": self.lr, "epochs": self.epochs, "interval": self.interval, **self.policies.get(policy, {})}
        steps = chosen.steps or self._steps(row["epochs"], size)
        keeps_lr = "lr" in self.policies.get("full", {}) and policy == "full"
        lr = row["lr"] if keeps_lr else chosen.lr or row["lr"]
        return {"steps": steps, "lr": lr, "interval": chosen.interval or self._interval(row["interval"], size, steps)}

    def _steps(self, epochs: int, size: int | None) -> int:
        return epochs * -(-(size or self.examples) // self.batch) if epochs else self.steps

    def _interval(self, interval: Any, size: int | None, steps: int) -> int:
        if interval is None:
            return max(1, int(OPENING * steps / FROZEN_AT_FIRST))
        return interval if isinstance(interval, int) else interval[self.sizes.index(size)]


@cache
def every() -> tuple[Recipe, ...]:
    """All recipes of the file."""
    return tuple(Recipe(**row) for row in tomllib.loads(FILE.read_text())["recipe"])


def find(study: str, options: Options) -> Recipe:
    """The recipe of a task and model; of a task of the user's own, the steps and the learning rate that are given.

    A model that the paper does not name has the recipe of the one that it is like: mBERT's for a folder whose model is a
    BERT, else XLM-R's.

    Args:
        study: MAIN or LOW_RESOURCE.

    Raises:
        ValueError: the paper has no such study of the task; a task of the user's own without steps and lr.
    """
    task, model = options.task, options.model
    known = {name for recipe in every() for name in recipe.tasks}
    if task not in known:
        if options.steps is None or options.lr is None:
            raise ValueError(
                f"no recipe for task {task!r}: give steps and lr (and interval), on the command line or in the study's file"
            )
        return Recipe(study=study, tasks=(task,), steps=options.steps, lr=options.lr)
    of_task = [recipe for recipe in every() if recipe.study == study and task in recipe.tasks]
    if not of_task:
        tasks = sorted({name for recipe in every() if recipe.study == study for name in recipe.tasks})
        raise ValueError(f"no recipe for {study} of task {task!r}: choose one of {', '.join(tasks)}")
    named = {recipe.model: recipe for recipe in of_task}
    like = MBERT if _model_type(model) == "bert" else XLMR
    return named.get(model or like) or named.get(like) or of_task[0]


def _model_type(model: str | None) -> str:
    """What a folder's config.json says that it is; "" for a name."""
    configuration = Path(model or "") / "config.json"
    try:
        return str(json.loads(configuration.read_text()).get("model_type", "")) if model else ""
    except (OSError, ValueError, AttributeError):
        return ""
