"""Layers: layer name -> the names of its parameters. What tr(F) is summed over, and what a schedule opens."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from torch import nn

from .model_index import ModelIndex

Layers = dict[str, tuple[str, ...]]
"""Bottom layer first. A parameter belongs to at most one layer."""

LayerChoice = Mapping[str, tuple[str, ...]] | Callable[[str], str | None] | str | None

_ADAPTER = re.compile(r"\.(?:adapters|loras|lora_\w+)\.([^.]+)(?:\.|$)")
"""An adapter's parameter: adapters' bottlenecks and LoRA (adapters.NAME., loras.NAME.), peft's (lora_A.NAME.)."""
_BLOCK = re.compile(r"\.(\d+)(?=\.|$)")

_HEAD = re.compile(r"(^|[._])(head|classif\w*|lm_head|score|qa_outputs|pooler|fc|output)([._]|$)")
"""Names that are above the stack wherever the model registers them: the order of registration need not be that of calls."""


def resolve_layers(model: nn.Module | ModelIndex, choice: LayerChoice = None) -> Layers:
    """The layers of a model.

    Args:
        model: any module.
        choice: None finds them (`find_layers`); a mapping is taken as it is; a function gives each parameter's layer
            (None to leave it out); a string is a regular expression whose first group is the layer's name.

    Raises:
        ValueError: nothing is left, a parameter is unknown or in two layers; the message lists what there is.
    """
    model = _indexed(model)
    names = list(model.parameters)
    if choice is None:
        layers = find_layers(model)
    elif isinstance(choice, str):
        try:
            pattern = re.compile(choice)
        except re.error as error:
            raise ValueError(f"layers={choice!r} is not a regular expression: {error}") from None
        if pattern.groups < 1:
            raise ValueError(f"layers={choice!r}: expected a regular expression with a group that is the layer's name")
        layers = _group(names, lambda name: m.group(1) if (m := pattern.search(name)) else None)
    elif callable(choice):
        layers = _group(names, choice)
    elif isinstance(choice, Mapping) and not any(isinstance(parameters, str) for parameters in choice.values()):
        layers = {layer: tuple(parameters) for layer, parameters in choice.items()}
    else:
        raise ValueError(
            f"layers={choice!r}: expected a dict of layer -> tuple of parameter names, a regular expression with a group, "
            "or a function of a parameter's name"
        )
    return _checked(layers, names)


def _group(names: list[str], layer_of: Callable[[str], str | None]) -> Layers:
    layers: dict[str, list[str]] = {}
    for name in names:
        if (layer := layer_of(name)) is not None:
            layers.setdefault(layer, []).append(name)
    return {layer: tuple(parameters) for layer, parameters in layers.items()}


def _checked(layers: Layers, names: list[str]) -> Layers:
    known = set(names)
    seen: dict[str, str] = {}
    for layer, parameters in layers.items():
        if not parameters:
            raise ValueError(f"layer {layer!r} has no parameters")
        for name in parameters:
            if name not in known:
                raise ValueError(f"layer {layer!r}: the model has no parameter {name!r}; it has {_some(names)}")
            if name in seen:
                raise ValueError(f"parameter {name!r} is in two layers, {seen[name]!r} and {layer!r}")
            seen[name] = layer
    if not layers:
        raise ValueError(f"no layer has a parameter: the model's parameters are {_some(names)}")
    return layers


def _some(names: list[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f", ... ({len(names)} in all)" if len(names) > most else "") or "(none)"


def find_layers(model: nn.Module | ModelIndex) -> Layers:
    """Adapters by block where there is a trainable one; else the largest repeated stack, what precedes and follows it.

    Adapters are bottlenecks and LoRA of the adapters library and LoRA of peft. A model with neither is split into its
    modules that own parameters.
    """
    model = _indexed(model)
    trainable = {name for name, p in model.parameters.items() if p.requires_grad}
    adapters = {m.group(1) for name in trainable if (m := _ADAPTER.search(name))}
    if adapters:
        return adapter_layers(model, *sorted(adapters))
    stack = _largest_stack(model)
    if stack is not None:
        return _stack_layers(model, stack)
    return _group(list(model.parameters), lambda name: name.rpartition(".")[0] or name)


def _indexed(model: nn.Module | ModelIndex) -> ModelIndex:
    return model if isinstance(model, ModelIndex) else ModelIndex(model)


def adapter_layers(model: nn.Module | ModelIndex, *adapters: str) -> Layers:
    """One layer a block, named by its number: the parameters of the named adapters or LoRAs.

    Where there are several stacks (encoder and decoder), the name has what precedes the number too: "encoder.layers.0".
    What adapts a module outside of all blocks (peft's "all-linear" takes the pooler too) is a layer of the module's name.
    """
    names = _indexed(model).parameters
    matches = {name: m for name in names if (m := _ADAPTER.search(name)) and m.group(1) in adapters}
    if not matches:
        raise ValueError(f"no adapter named {' or '.join(map(repr, adapters))} has parameters in this model")
    blocks = {name: _BLOCK.search(name, 0, m.start() + 1) for name, m in matches.items()}
    stacks = list(dict.fromkeys(name[: m.start(1)] for name, m in blocks.items() if m))

    def layer(name: str) -> str:
        if (m := blocks[name]) is None:
            return name[: matches[name].start()]
        return m.group(1) if len(stacks) == 1 else name[: m.end(1)]

    def height(name: str) -> tuple[int, int]:
        m = blocks[name]
        return (len(stacks), 0) if m is None else (stacks.index(name[: m.start(1)]), int(m.group(1)))

    return _group(sorted(matches, key=height), layer)


def _largest_stack(model: ModelIndex) -> str | None:
    """The ModuleList of at least two blocks of one class that holds most parameters."""
    size = {
        name: sum(p.numel() for p in module.parameters())
        for name, module in model.places.items()
        if isinstance(module, nn.ModuleList) and len(module) > 1 and len({type(block) for block in module}) == 1
    }
    return max(size, key=size.__getitem__) if size and max(size.values()) > 0 else None


def _stack_layers(model: ModelIndex, stack: str) -> Layers:
    inside = re.compile(re.escape(stack) + r"\.(\d+)\.")
    names = list(model.parameters)
    last = max(i for i, name in enumerate(names) if inside.match(name))

    def part(i: int, name: str) -> str:
        m = inside.match(name)
        return m.group(1) if m else ("head" if i > last or _HEAD.search(name) else "embeddings")

    where = {name: part(i, name) for i, name in enumerate(names)}
    below = [name for name in names if where[name] == "embeddings"]
    return _group(
        [*below, *(name for name in names if name not in below and where[name] != "head")], where.__getitem__
    ) | (_group([name for name in names if where[name] == "head"], where.__getitem__))
