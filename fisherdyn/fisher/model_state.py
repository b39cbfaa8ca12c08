"""A model is measured and left as it was: modes, buffers and random states; what cannot be measured is refused."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from .batches import generators_of


def call_with(
    model: nn.Module, weights: Mapping[str, Tensor], args: tuple[Tensor, ...], kwargs: Mapping[str, Any]
) -> Any:
    """The model's output with other weights, wherever each of them is used.

    functional_call replaces place by place. Left to tie weights itself, it would replace one place of a module that is
    registered under two names two times over, and restore the wrong tensor.
    """
    names = {id(model.get_parameter(name)): name for name in weights}
    places: dict[tuple[int, str], tuple[str, Tensor]] = {}
    for place, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) in names:
            owner, _, short = place.rpartition(".")
            places.setdefault((id(model.get_submodule(owner)), short), (place, weights[names[id(parameter)]]))
    return torch.func.functional_call(model, dict(places.values()), args, dict(kwargs), tie_weights=False)


def device_of(model: nn.Module) -> torch.device:
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a model (torch.nn.Module), got {type(model).__name__}")
    parameter = next(model.parameters(), None)
    if parameter is None:
        raise ValueError("the model has no parameters: there is no Fisher information to measure")
    return parameter.device


@contextmanager
def preserve_state(model: nn.Module, loader: Iterable) -> Iterator[None]:
    """Evaluation mode inside; afterwards modes, buffers, random states and the loader's generators are as they were.

    Weights, gradients and `requires_grad` are not touched by the estimators, so they need no restoring: gradients are
    taken with `torch.autograd.grad`. Buffers are restored, because some modules write them (quantisation's observers) or
    replace them (rotary frequencies that go by the length) even in evaluation mode. torch's transformer layers must not take
    their fused path, which calls none of their modules.
    """
    modules = list(model.modules())
    modes = [(module, module.training) for module in modules]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    # Some modules keep tensors that are no buffers and set them anew as they are called (adapters' prompt tuning).
    kept: list[tuple[dict[str, Any], dict[str, Any]]]
    kept = [(own, {k: x for k, x in own.items() if isinstance(x, Tensor)}) for own in map(vars, modules)]
    for module in modules:
        if "max_seq_len_cached" in (own := vars(module)):  # rotary frequencies, and the length that they are for
            kept += [(own, {"max_seq_len_cached": own["max_seq_len_cached"]}), (module._buffers, {**module._buffers})]
    generators = [(generator, generator.get_state()) for generator in generators_of(loader)]
    python, numpy, fused = random.getstate(), np.random.get_state(), torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.random.fork_rng(), torch.enable_grad():
            model.eval()
            yield
    finally:
        _restore_modes(modes)
        for attributes, values in kept:
            attributes.update(values)
        with torch.no_grad():
            for buffer, before in buffers:
                if not torch.equal(buffer, before):
                    buffer.copy_(before)
        for generator, state in generators:
            generator.set_state(state)
        random.setstate(python)
        np.random.set_state(numpy)
        torch.backends.mha.set_fastpath_enabled(fused)


def _restore_modes(modes: list[tuple[nn.Module, bool]]) -> None:
    """Through train() where a class has its own (some merge weights there), and then flag by flag."""
    for module, training in modes:
        if type(module).train is not nn.Module.train and module.training != training:
            module.train(training)
    for module, training in modes:
        module.training = training


def validate_model(model: nn.Module) -> None:
    """Modules that change weights or mix examples in evaluation mode, by name; and models that cannot be looked into."""
    if torch.is_inference_mode_enabled():
        raise ValueError("gradients cannot be taken in torch.inference_mode(): measure outside of it")
    if isinstance(model, nn.DataParallel) or hasattr(model, "_orig_mod"):
        inner = "module" if isinstance(model, nn.DataParallel) else "_orig_mod"
        raise ValueError(f"{type(model).__name__} hides the modules that are called: measure model.{inner} instead")
    for name, parameter in model.named_parameters():
        if isinstance(parameter, UninitializedParameter):
            raise ValueError(f"parameter {name!r} has no shape yet: run a forward pass first")
        if parameter.is_meta:
            raise ValueError(f"parameter {name!r} is on device 'meta', which holds no numbers: load its weights first")
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(
                f"module {name!r} is a TorchScript, which runs no hooks: measure the module it was made from"
            )
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.max_norm is not None:
            raise ValueError(
                f"module {name!r} has max_norm, which changes its weight in every forward pass: set it to None"
            )
        if getattr(module, "scale_grad_by_freq", False):
            raise ValueError(
                f"module {name!r} has scale_grad_by_freq: what it calls a gradient is none; set it to False"
            )
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            raise ValueError(
                f"module {name!r} ({type(module).__name__}) has no running statistics: it mixes the "
                "examples of a batch, and per-example gradients do not exist"
            )
