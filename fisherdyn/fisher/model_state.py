"""A model is measured and left as it was: modes, buffers and random states; what cannot be measured is refused by name."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from ..model_index import ModelIndex
from .batches import generators_of


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel and torch.compile, which leave it whole.

    Raises:
        ValueError: DataParallel, whose copies no hook sees, and FullyShardedDataParallel, whose weights lie in pieces.
    """
    kind = type(model).__name__
    if kind == "DataParallel":
        raise ValueError("a model in DataParallel cannot be measured: pass the model inside, model.module")
    if kind == "FullyShardedDataParallel":
        raise ValueError(
            "the weights of a model in FullyShardedDataParallel lie in pieces: use DistributedDataParallel"
        )
    attribute = {"DistributedDataParallel": "module", "OptimizedModule": "_orig_mod"}.get(kind)
    return unwrap(getattr(model, attribute)) if attribute else model


def device_of(model: nn.Module) -> torch.device:
    """The device of the model's first parameter."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a model (torch.nn.Module), got {type(model).__name__}")
    parameter = next(model.parameters(), None)
    if parameter is None:
        raise ValueError("the model has no parameters: there is no Fisher information to measure")
    return parameter.device


@contextmanager
def preserve_state(model: ModelIndex, loader: Iterable) -> Iterator[None]:
    """Evaluation mode inside; afterwards weights, modes, buffers, random states and the loader's generators are as before.

    Gradients and `requires_grad` are not touched by the estimators: gradients are taken with `torch.autograd.grad`. Buffers
    are restored, because some modules write them (quantisation's observers) or replace them (rotary frequencies that depend
    on the length) even in evaluation mode; so are weights, which some modules merge for a call (`_Weights`). torch's
    transformer layers must not take their fused path, which calls none of their modules.

    Raises:
        ValueError: the model wrote into weights of which there is no copy; names them.
    """
    modes = [(module, module.training) for module in model.modules]
    buffers = [(b, b.clone()) for module in model.modules for b in module._buffers.values() if b is not None]
    weights, attributes = _Weights(model), _attributes(model.modules)
    generators = [(generator, generator.get_state()) for generator in generators_of(loader)]
    python, numpy, fused = random.getstate(), np.random.get_state(), torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.random.fork_rng(), torch.enable_grad():
            _evaluate(model.modules)
            yield
    finally:
        _set_modes(modes)
        for module_dict, values in attributes:
            module_dict.update(values)
        with torch.no_grad():
            for buffer, before in buffers:
                if not torch.equal(buffer, before):
                    buffer.copy_(before)
        for generator, state in generators:
            generator.set_state(state)
        random.setstate(python)
        np.random.set_state(numpy)
        torch.backends.mha.set_fastpath_enabled(fused)
        weights.put_back()


class _Weights:
    """A model's parameters, to be put back to the bit.

    Modules that merge weights for a call (peft's LoRA on nn.MultiheadAttention) put other tensors in their place, and leave
    them there after an exception: for these it is enough to remember which tensors there were, which costs no memory. Only
    a module with a train() of its own may write into them (loralib merges there): it is the only one whose parameters are
    copied. Whatever else writes into a weight is told by the tensor's version.
    """

    def __init__(self, model: ModelIndex) -> None:
        owners = [module for module in model.modules if module._parameters]
        self._places = [(module, {**module._parameters}) for module in owners]
        plain = [(name, p) for name, p in model.parameters.items() if type(p) is nn.Parameter]
        self._memory = [(name, p, p.data, p._version) for name, p in plain if p.layout == torch.strided]
        self._copies = {id(p): p.detach().clone() for m in owners if _has_own_train(m) for p in _own(m)}

    def put_back(self) -> None:
        for module, before in self._places:
            if list(map(id, module._parameters.values())) != list(map(id, before.values())):
                for name in before.keys() & vars(module).keys():
                    del vars(module)[name]  # a tensor that took the parameter's name
                module._parameters.clear()
                module._parameters.update(before)
        written = []
        for name, parameter, data, version in self._memory:
            if parameter.data_ptr() != data.data_ptr():
                parameter.data = data
            if (copy := self._copies.get(id(parameter))) is not None:
                if not torch.equal(parameter, copy):
                    parameter.detach().copy_(copy)
            elif parameter._version != version:
                written.append(name)
        if written:
            raise ValueError(
                f"the model's own forward pass wrote into its weights {', '.join(written)}, so they are no longer what they "
                "were: load them again, and have no module change its weights in evaluation mode"
            )


def _own(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in module._parameters.values() if parameter is not None]


def _attributes(modules: list[nn.Module]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Each module's attribute dict, and what of it a call may replace: tensors that are no buffers, rotary frequencies."""
    kept: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for module in modules:
        attributes = vars(module)
        # Adapters' prompt tuning keeps a tensor that is no buffer and sets it anew in each call.
        if any(map(_is_tensor_type, map(type, attributes.values()))):
            kept.append((attributes, {name: x for name, x in attributes.items() if isinstance(x, Tensor)}))
        if "max_seq_len_cached" in attributes:  # rotary frequencies, and the length that they are for
            kept.append((attributes, {"max_seq_len_cached": attributes["max_seq_len_cached"]}))
            kept.append((module._buffers, {**module._buffers}))
        if _has_own_train(module):  # whether its weights are merged, and what it keeps in evaluation mode
            kept.append((attributes, {**attributes}))
    return kept


class _Forgetful(dict[Any, Any]):
    """A cache that never has what is asked for: it is computed again, and so differentiated."""

    def __contains__(self, key: object) -> bool:
        return False


@cache
def _is_tensor_type(kind: type) -> bool:
    """Cached: a model has tens of thousands of attributes, of a few dozen types."""
    return issubclass(kind, Tensor)


def _evaluate(modules: list[nn.Module]) -> None:
    """Evaluation mode, in which every weight is still a part of what is computed.

    A weight that holds merged ones hides them: loralib's modules merge in train(False) and take it back in train(True).
    LeViT and its like keep biases that they computed from their weights.
    """
    own = [module for module in modules if _has_own_train(module)]
    for module in own:
        if not hasattr(module, "merged"):
            _set_modes([(module, False)])
        elif module.merged:
            module.train(True)
        if "attention_bias_cache" in vars(module):
            vars(module)["attention_bias_cache"] = _Forgetful()
    _set_flags([(module, False) for module in modules])


def _set_modes(modes: list[tuple[nn.Module, bool]]) -> None:
    """Through train() where a class has its own (some merge weights there), and then flag by flag."""
    for module, training in modes:
        if module.training != training and _has_own_train(module):
            module.train(training)
    _set_flags(modes)  # train() sets those of the modules inside, too


def _set_flags(modes: list[tuple[nn.Module, bool]]) -> None:
    for module, training in modes:
        vars(module)["training"] = training  # past nn.Module.__setattr__, which takes longer than the rest of this loop


def _has_own_train(module: nn.Module) -> bool:
    """Whether train() does more than to set flags. Without kernels, transformers' does not, and it visits every module."""
    train = type(module).train
    if train.__module__ == "transformers.modeling_utils":
        return bool(getattr(module, "use_kernels", False))
    return train is not nn.Module.train


def validate_model(model: ModelIndex) -> None:
    """Refuses, by name, modules that change weights or mix examples in evaluation mode, and models that hide their modules.

    Raises:
        ValueError: what was found, and what to do.
    """
    if torch.is_inference_mode_enabled():
        raise ValueError("gradients cannot be taken in torch.inference_mode(): measure outside of it")
    if isinstance(model.model, nn.DataParallel) or hasattr(model.model, "_orig_mod"):
        inner = "module" if isinstance(model.model, nn.DataParallel) else "_orig_mod"
        raise ValueError(
            f"{type(model.model).__name__} hides the modules that are called: measure model.{inner} instead"
        )
    for name, parameter in model.parameters.items():
        if type(parameter) is nn.Parameter and not parameter.is_meta:
            continue
        if isinstance(parameter, UninitializedParameter):
            raise ValueError(f"parameter {name!r} has no shape yet: run a forward pass first")
        if parameter.is_meta:
            raise ValueError(f"parameter {name!r} is on device 'meta', which holds no numbers: load its weights first")
    for name, module in model.places.items():
        if "quantized" in type(module).__module__ and type(module).__module__.startswith("torch.ao.nn."):
            raise ValueError(
                f"module {name!r} ({type(module).__name__}) is quantised, without a gradient: measure what it was made of"
            )
        if isinstance(module, _SUSPECTS) or "scale_grad_by_freq" in vars(module):
            _validate_module(name, module)


_SUSPECTS = (torch.jit.ScriptModule, nn.Embedding, nn.EmbeddingBag, nn.modules.batchnorm._BatchNorm)


def _validate_module(name: str, module: nn.Module) -> None:
    if isinstance(module, torch.jit.ScriptModule):
        raise ValueError(f"module {name!r} is a TorchScript, which runs no hooks: measure the module it was made from")
    if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.max_norm is not None:
        raise ValueError(
            f"module {name!r} has max_norm, which changes its weight in every forward pass: set it to None"
        )
    if getattr(module, "scale_grad_by_freq", False):
        raise ValueError(f"module {name!r} has scale_grad_by_freq: what it calls a gradient is none; set it to False")
    if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
        raise ValueError(
            f"module {name!r} ({type(module).__name__}) has no running statistics: it mixes the "
            "examples of a batch, and per-example gradients do not exist"
        )
