"""A model's modules and parameters by name, from one walk: whoever measures a model walks it once."""

from __future__ import annotations

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
        self.places: dict[str, nn.Module] = {}
        self.modules: list[nn.Module] = []
        self.parameters: dict[str, nn.Parameter] = {}
        self._owners: dict[int, list[tuple[nn.Module, str, str]]] = {}
        self._names: dict[int, list[str]] = {}
        self._walk()

    def _walk(self) -> None:
        """Parents first, in the order of registration."""
        indexed: set[int] = set()
        stack = [("", "", self.model)]
        while stack:
            name, prefix, module = stack.pop()
            self.places[name] = module
            self._names.setdefault(id(module), []).append(name)
            if id(module) not in indexed:
                indexed.add(id(module))
                self.modules.append(module)
                if module._parameters:
                    self._add_parameters(prefix, module)
            for child, submodule in reversed(module._modules.items()):
                if submodule is not None:
                    place = prefix + child
                    stack.append((place, place + ".", submodule))

    def _add_parameters(self, prefix: str, module: nn.Module) -> None:
        for short, parameter in module._parameters.items():
            if parameter is None:
                continue
            name = prefix + short
            owners = self._owners.setdefault(id(parameter), [])
            if not owners:
                self.parameters[name] = parameter
            owners.append((module, short, name))

    def owners_of(self, parameter: nn.Parameter) -> list[tuple[nn.Module, str, str]]:
        """(module, name in the module, full name) for each module that holds the parameter; tied weights have several."""
        return self._owners[id(parameter)]

    def names_of(self, module: nn.Module) -> list[str]:
        """Every name at which a module is registered."""
        return self._names[id(module)]

    def get_parameter(self, name: str) -> nn.Parameter:
        """The parameter at any of its names."""
        if name in self.parameters:
            return self.parameters[name]
        place, _, short = name.rpartition(".")
        return self.places[place]._parameters[short]  # type: ignore[return-value]
