"""A batch of any usual shape goes in, logits come out, and nothing of the model, loader or random state is changed."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Batch = Any
"""A dict (HF), a tuple (inputs, targets), or a tensor of inputs."""

TARGETS = ("labels", "label", "start_positions", "end_positions")
"""What a dict batch holds beside the inputs; the true Fisher needs none of it."""


def inputs_of(batch: Batch, device: torch.device) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
    """Positional and keyword arguments of the model, on its device, targets left out."""
    if isinstance(batch, Mapping):
        kept = {key: value for key, value in batch.items() if key not in TARGETS}
        return (), {key: v.to(device) if isinstance(v, Tensor) else v for key, v in kept.items()}
    x = batch[0] if isinstance(batch, tuple | list) and batch else batch
    if not isinstance(x, Tensor):
        raise TypeError(
            f"expected a batch that is a tensor, (inputs, targets) or a dict of tensors, got {type(batch).__name__}"
        )
    return (x.to(device),), {}


def count_examples(args: tuple[Tensor, ...], kwargs: Mapping[str, Any]) -> int:
    """The length of the batch dimension that all tensors share."""
    sizes = {len(v) for v in (*args, *kwargs.values()) if isinstance(v, Tensor) and v.ndim > 0}
    if len(sizes) != 1 or 0 in sizes:
        raise ValueError(f"expected tensors that share one batch dimension of at least 1, got lengths {sorted(sizes)}")
    return sizes.pop()


def logits_of(output: Any) -> Tensor:
    """The logits in a model's output: a tensor, a HF ModelOutput, or a tuple whose first entry they are."""
    found = getattr(output, "logits", None)
    if found is None and isinstance(output, tuple | list) and output:
        found = output[0]
    found = output if found is None else found
    if not isinstance(found, Tensor):
        raise TypeError(
            f"expected a model that returns logits (a tensor, or an output with .logits), got {type(output)}"
        )
    return found


def device_of(model: nn.Module) -> torch.device:
    parameter = next(model.parameters(), None)
    if parameter is None:
        raise ValueError("the model has no parameters: there is no Fisher information to measure")
    return parameter.device


def _generators(loader: Iterable) -> list[torch.Generator]:
    owners = [
        loader,
        getattr(loader, "sampler", None),
        getattr(getattr(loader, "batch_sampler", None), "sampler", None),
    ]
    found = [getattr(owner, "generator", None) for owner in owners]
    return list({id(g): g for g in found if isinstance(g, torch.Generator)}.values())


@contextmanager
def no_trace(model: nn.Module, loader: Iterable) -> Iterator[None]:
    """Evaluation mode inside; afterwards every mode, random state and the loader's generators are as they were.

    Weights, gradients, buffers and `requires_grad` are not touched by the estimators, so they need no restoring:
    in evaluation mode no module updates a buffer, and gradients are taken with `torch.autograd.grad`.
    """
    modes = [(module, module.training) for module in model.modules()]
    generators = [(generator, generator.get_state()) for generator in _generators(loader)]
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(), torch.enable_grad():
            model.eval()
            yield
    finally:
        for module, training in modes:
            module.training = training
        for generator, state in generators:
            generator.set_state(state)
        random.setstate(python)
        np.random.set_state(numpy)
