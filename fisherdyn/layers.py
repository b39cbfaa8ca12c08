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

_OUTSIDE = re.compile(r"(prompt_encoder|prompt_tunings|prefix_tunings)\.")
"""What is registered in any place, and belongs to no block."""
_SHARE = 0.25
"""Share of the largest stack's parameters from which another is one too: encoder and decoder, not a few small modules."""

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
    names = _differentiable(model)
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
    return _checked(layers, model)


def _group(names: list[str], layer_of: Callable[[str], str | None]) -> Layers:
    layers: dict[str, list[str]] = {}
    for name in names:
        if (layer := layer_of(name)) is not None:
            layers.setdefault(layer, []).append(name)
    return {layer: tuple(parameters) for layer, parameters in layers.items()}


def _differentiable(model: ModelIndex) -> list[str]:
    """Names of the parameters that can have a gradient: not the integers of a quantised module."""
    return [name for name, p in model.parameters.items() if p.is_floating_point() or p.is_complex()]


def _checked(layers: Layers, model: ModelIndex) -> Layers:
    names, known = list(model.parameters), set(_differentiable(model))
    seen: dict[str, str] = {}
    for layer, parameters in layers.items():
        if not parameters:
            raise ValueError(f"layer {layer!r} has no parameters")
        for name in parameters:
            if name in model.parameters and name not in known:
                kind = model.parameters[name].dtype
                raise ValueError(f"layer {layer!r}: parameter {name!r} is {kind}, which has no gradient: leave it out")
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

    Adapters are bottlenecks and LoRA of the adapters library and LoRA of peft. Of a model with anything else of these two
    (prefixes, prompts, IA3, trained norms, a trained head, ...), the layers are what is trained of it. Encoder and decoder
    are two stacks. A model without a stack is split into its modules that own parameters.
    """
    model = _indexed(model)
    names = [
        name for name in _differentiable(model) if ".original_module." not in name
    ]  # peft's copy, which is not called
    trainable = [name for name in names if model.parameters[name].requires_grad]
    adapters = {m.group(1) for name in trainable if (m := _ADAPTER.search(name))}
    if adapters:
        return adapter_layers(model, *sorted(adapters))
    if trainable and (hasattr(model.model, "peft_config") or hasattr(model.model, "adapters_config")):
        names = trainable
    stacks = _stacks(model)
    if stacks:
        return _stack_layers(names, list(model.parameters), stacks)
    return _group(names, lambda name: name.rpartition(".")[0] or name)


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


def _stacks(model: ModelIndex) -> list[str]:
    """The ModuleLists of at least two blocks of one kind that hold most parameters; none inside of another.

    A kind is a name: the adapters library makes a class for each block.
    """
    size = {
        name: sum(p.numel() for p in module.parameters())
        for name, module in model.places.items()
        if isinstance(module, nn.ModuleList)
        and len(module) > 1
        and len({type(block).__name__ for block in module}) == 1
    }
    largest = max(size.values(), default=0)
    found = [name for name, parameters in size.items() if largest and parameters >= _SHARE * largest]
    outermost = [name for name in found if not any(name.startswith(f"{other}.") for other in found)]
    top = max((size[name] for name in outermost), default=0)
    return [name for name in outermost if size[name] >= _SHARE * top]


def _stack_layers(names: list[str], every: list[str], stacks: list[str]) -> Layers:
    """One layer a block, between "embeddings" and "head".

    What lies between two stacks has the name of the module around the lower one.
    """
    inside = re.compile(f"({'|'.join(map(re.escape, stacks))})" + r"\.(\d+)\.")
    place = {name: i for i, name in enumerate(every)}
    blocks = {name: m for name in every if (m := inside.match(name))}
    last = {stack: max(place[name] for name, m in blocks.items() if m.group(1) == stack) for stack in stacks}

    def layer(name: str) -> str:
        if m := _OUTSIDE.search(name):
            return m.group(1)
        if name in blocks:
            m = blocks[name]
            return m.group(2) if len(stacks) == 1 else m.group(0).rstrip(".")
        below = [stack for stack in stacks if last[stack] < place[name]]
        if len(below) == len(stacks) or _HEAD.search(name):
            return "head"
        return below[-1].rpartition(".")[0] if below and "embed" not in name else "embeddings"

    layers = _group(names, layer)
    ends = {"embeddings": -1, "head": 1}
    return dict(sorted(layers.items(), key=lambda item: ends.get(item[0], 0)))
