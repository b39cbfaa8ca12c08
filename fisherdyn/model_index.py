"""A model's modules and parameters by name, from one walk: whoever measures a model walks it once."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn


class ModelIndex:
    """What `named_modules` and `named_parameters` would say, asked once.

    `nn.Module`'s own walks are recursive generators, which cost depth x modules steps each time. A measurement asks for
    names, modes, buffers and parameters, and makes one such index for all of it. The index does not follow later changes of
    the model.

    Attributes:
        model: the model.
        places: every name at which a module is registered -> the module; a shared module has several.
        modules: the modules, each once, parents first.
        parameters: name -> parameter, each parameter once, as `named_parameters` has them.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.places: dict[str, nn.Module] = dict(_walk(model))
        self.modules: list[nn.Module] = list({id(module): module for module in self.places.values()}.values())
        self.parameters: dict[str, nn.Parameter] = {}
        self._owners: dict[int, list[tuple[nn.Module, str, str]]] = {}
        self._index_parameters()

    def _index_parameters(self) -> None:
        indexed: set[int] = set()
        for place, module in self.places.items():
            if id(module) in indexed:
                continue
            indexed.add(id(module))
            for short, parameter in module._parameters.items():
                if parameter is None:
                    continue
                name = f"{place}.{short}" if place else short
                owners = self._owners.setdefault(id(parameter), [])
                if not owners:
                    self.parameters[name] = parameter
                owners.append((module, short, name))

    def owners_of(self, parameter: nn.Parameter) -> list[tuple[nn.Module, str, str]]:
        """(module, name in the module, full name) for each module that holds the parameter; tied weights have several."""
        return self._owners[id(parameter)]

    def get_parameter(self, name: str) -> nn.Parameter:
        """The parameter at any of its names."""
        if name in self.parameters:
            return self.parameters[name]
        place, _, short = name.rpartition(".")
        return self.places[place]._parameters[short]  # type: ignore[return-value]


def _walk(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module at every name, parents first, in the order of registration."""
    stack = [("", model)]
    while stack:
        name, module = stack.pop()
        yield name, module
        prefix = f"{name}." if name else ""
        stack.extend(
            (prefix + child, submodule)
            for child, submodule in reversed(module._modules.items())
            if submodule is not None
        )
