"""Tasks: a model, loaders and metrics, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from inspect import signature
from typing import Any, Protocol

from torch import Tensor, nn

from ..layers import Layers
from ..settings import Metric

Loader = Iterable[dict[str, Tensor]]


class Task(Protocol):
    """What a study needs from a task. Everything random in it comes from a seed."""

    name: str
    source: str
    targets: tuple[str, ...]
    """In the order of evaluation."""
    skipped: Mapping[str, str]
    """Targets that are left out -> the reason. They are not in the record, so that nothing there is NaN."""
    distances: Mapping[str, float]
    """Target -> its distance from the source; empty where distances are not known."""

    def check(self) -> None: ...
    def build_model(self, seed: int) -> nn.Module: ...
    def layers(self, model: nn.Module) -> Layers: ...
    def train_loader(self, seed: int) -> Loader: ...
    def probe_loader(self) -> Loader: ...
    def evaluate_source(self) -> Metric: ...
    def evaluate(self) -> dict[str, Metric]: ...


@dataclass(frozen=True)
class _Entry:
    module: str
    factory: str


REGISTRY = {
    "world": _Entry(".world.inference", "InferenceTask"),
    "world-choice": _Entry(".world.choice", "ChoiceTask"),
    "world-span": _Entry(".world.span", "SpanTask"),
    "xnli": _Entry(".text.classify", "XNLI"),
    "xcopa": _Entry(".text.classify", "XCOPA"),
    "xquad": _Entry(".text.extract", "XQuAD"),
    "mlqa": _Entry(".text.extract", "MLQA"),
}


def options(name: str) -> tuple[str, ...]:
    """What a task may be told.

    Raises:
        ValueError, ImportError: as `load`.
    """
    return tuple(signature(_factory(name)).parameters)


def load(name: str, **given: Any) -> Task:
    """A task by its name.

    Raises:
        ValueError: there is no such task or option; the message lists those there are.
        ImportError: the packages that tasks need are not installed.
    """
    known = options(name)
    if unknown := [option for option in given if option not in known]:
        raise ValueError(f"task {name!r} has no option {', '.join(unknown)}: it has {', '.join(known)}")
    return _factory(name)(**given)


def _factory(name: str) -> Callable[..., Task]:
    if name not in REGISTRY:
        raise ValueError(f"unknown task {name!r}: choose one of {', '.join(REGISTRY)}")
    entry = REGISTRY[name]
    try:
        module = import_module(entry.module, __name__)
    except ModuleNotFoundError as error:
        raise ImportError(f"task {name!r} needs {error.name}: pip install 'fisherdyn[tasks]'") from error
    factory: Callable[..., Task] = getattr(module, entry.factory)
    return factory
