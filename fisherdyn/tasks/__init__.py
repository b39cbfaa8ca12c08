"""Tasks: a model, loaders and metrics, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
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
    coordinates: Mapping[str, Mapping[str, str | float]]
    """What is known of the targets: a coordinate of the record -> target -> its value."""

    def check(self) -> None: ...
    def build_model(self, seed: int) -> nn.Module: ...
    def layers(self, model: nn.Module) -> Layers: ...
    def train_loader(self, seed: int) -> Loader: ...
    def probe_loader(self) -> Loader: ...
    def evaluate_source(self) -> Metric: ...
    def evaluate(self) -> dict[str, Metric]: ...


Factory = Callable[..., Task]

REGISTRY: dict[str, str | Factory] = {
    "world": "fisherdyn.tasks.world.inference:InferenceTask",
    "world-choice": "fisherdyn.tasks.world.choice:ChoiceTask",
    "world-span": "fisherdyn.tasks.world.span:SpanTask",
    "xnli": "fisherdyn.tasks.text.classify:XNLI",
    "xcopa": "fisherdyn.tasks.text.classify:XCOPA",
    "xquad": "fisherdyn.tasks.text.extract:XQuAD",
    "mlqa": "fisherdyn.tasks.text.extract:MLQA",
    "sib200": "fisherdyn.tasks.text.sib200:SIB200",
}
"""Task -> what makes it, or where that is: "module:factory"."""


def register(name: str, factory: Factory) -> None:
    """Makes a task of your own known by a name.

    Args:
        factory: makes the task; its parameters are the task's options.
    """
    REGISTRY[name] = factory


def options(name: str) -> dict[str, Any]:
    """A task's options: name -> default.

    Raises:
        ValueError, ImportError: as `load`.
    """
    return {option: parameter.default for option, parameter in signature(_factory(name)).parameters.items()}


def load(name: str, **values: Any) -> Task:
    """A task by its name, or by "module:factory".

    Args:
        values: of the task's options.

    Raises:
        ValueError: there is no such task or option; the message lists those there are.
        ImportError: the packages that tasks need are not installed.
    """
    known = options(name)
    if unknown := [option for option in values if option not in known]:
        raise ValueError(f"task {name!r} has no option {', '.join(unknown)}: it has {', '.join(known)}")
    return _factory(name)(**values)


def _factory(name: str) -> Factory:
    entry = REGISTRY.get(name, name)
    if not isinstance(entry, str):
        return entry
    module, colon, attribute = entry.partition(":")
    if not colon:
        raise ValueError(
            f"unknown task {name!r}: choose one of {', '.join(REGISTRY)}, or name your own as module:factory"
        )
    try:
        factory: Factory = getattr(import_module(module), attribute)
    except ModuleNotFoundError as error:
        if name in REGISTRY:
            raise ImportError(f"task {name!r} needs {error.name}: pip install 'fisherdyn[tasks]'") from error
        raise ValueError(f"task {name!r}: there is no module {error.name}; is its folder on PYTHONPATH?") from error
    except AttributeError as error:
        raise ValueError(f"task {name!r}: {error}") from error
    return factory
