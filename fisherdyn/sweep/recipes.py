"""The paper's hyperparameters, from `recipes.toml`: what each row of its tables was trained with."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("recipes.toml")
MAIN, LOW_RESOURCE = "main", "low-resource"
SHARE_OF_OPENING, FROZEN_AT_FIRST = 0.55, 11
"""k L over the steps where a recipe names no k, and L: the rest is trained with everything open."""
_K = {"LPFT": "LPFT", "FUN": "FUN"}
"""Method -> whose k it has in the tables; GU's for all others."""
MBERT, XLMR = "bert-base-multilingual-cased", "xlm-roberta-base"


@dataclass(frozen=True)
class Recipe:
    """How a study's runs are trained.

    Attributes:
        examples: training examples, from which epochs become steps; `steps` where there are no epochs.
        sizes: training examples of a low-resource study; `interval` then has one value for each.
        tokens, dev, test: of an example, padding included (an assumption); examples of the development set, and of all test
            sets together. For estimates alone.
        interval: GU, LPFT, FUN -> k.
        standard, full: what is different in standard training, and in full fine-tuning.
        fit: further arguments of fit().
    """

    study: str
    tasks: tuple[str, ...]
    tokens: int
    dev: int
    test: int
    batch: int
    lr: float
    model: str = ""
    examples: int = 0
    epochs: int = 0
    steps: int = 0
    sizes: tuple[int, ...] = ()
    interval: Mapping[str, Any] = field(default_factory=dict)
    standard: Mapping[str, Any] = field(default_factory=dict)
    full: Mapping[str, Any] = field(default_factory=dict)
    fit: Mapping[str, Any] = field(default_factory=dict)

    def of(self, method: str, size: int | None = None, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """steps, lr and interval of one row.

        Args:
            method: its name in `studies.METHODS`.
            size: training examples, one of `sizes`.
            given: steps, lr and interval that the user wants instead. Full fine-tuning keeps its own learning rate.
        """
        given = {key: value for key, value in (given or {}).items() if value is not None}
        own = {"full": self.full, "standard": self.standard}.get(method, {})
        if method == "full":
            given.pop("lr", None)
        steps = given.get("steps") or self._steps({"epochs": self.epochs, **own}["epochs"], size)
        lr = given.get("lr") or {"lr": self.lr, **own}["lr"]
        return {"steps": steps, "lr": lr, "interval": given.get("interval") or self._k(method, size, steps)}

    def _steps(self, epochs: int, size: int | None) -> int:
        return epochs * -(-(size or self.examples) // self.batch) if epochs else self.steps

    def _k(self, method: str, size: int | None, steps: int) -> int:
        k = self.interval.get(_K.get(method, "GU"))
        if k is None:
            return max(1, int(SHARE_OF_OPENING * steps / FROZEN_AT_FIRST))
        return int(k[self.sizes.index(size)] if isinstance(k, list) and size is not None else k)


@cache
def every() -> tuple[Recipe, ...]:
    """All recipes of the file."""
    rows = tomllib.loads(FILE.read_text())["recipe"]
    return tuple(Recipe(**{**row, "tasks": tuple(row["tasks"]), "sizes": tuple(row.get("sizes", ()))}) for row in rows)


def find(study: str, task: str, model: str | None) -> Recipe:
    """The recipe of a task and model.

    A model that the paper does not name has that of the one it is like: mBERT's for a folder whose model is a BERT, else
    XLM-R's.

    Raises:
        ValueError: the paper has no such study of the task.
    """
    kind = LOW_RESOURCE if study == LOW_RESOURCE else MAIN
    of_task = [recipe for recipe in every() if recipe.study == kind and task in recipe.tasks]
    if not of_task:
        known = sorted({name for recipe in every() if recipe.study == kind for name in recipe.tasks})
        raise ValueError(f"no recipe for {study} of task {task!r}: choose one of {', '.join(known)}")
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
