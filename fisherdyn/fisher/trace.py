"""fisher_trace(): the front door. Per-layer tr(F) of a model over a loader, with its standard error."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..layers import LayerChoice, resolve_layers
from ..likelihoods import LABELS, LIKELIHOODS, Likelihood, find_likelihood
from . import hooks, vmap
from .forward import Batch, count_examples, device_of, inputs_of, no_trace, refuse_what_writes

METHODS = {"hooks": hooks.squared_norms, "vmap": vmap.squared_norms}


@dataclass(frozen=True)
class FisherTrace:
    """tr(F) per layer and what it rests on.

    Attributes:
        layers: names, bottom first.
        trace: (layers,) the estimate, in nats (a second derivative of KL in nats by dimensionless weights).
        se: (layers,) its standard error: sd of the per-example values / sqrt(examples).
        num_params: (layers,).
        trainable: (layers,) whether any of the layer's parameters has requires_grad.
        per_example: (examples, layers), for paired comparisons of layers on the same examples.
        batches: how many were read.
        estimator: e.g. "hooks/class_mix".
        likelihood: e.g. "categorical".
    """

    layers: tuple[str, ...]
    trace: Tensor
    se: Tensor
    num_params: tuple[int, ...]
    trainable: tuple[bool, ...]
    per_example: Tensor
    batches: int
    estimator: str
    likelihood: str

    @property
    def examples(self) -> int:
        return len(self.per_example)

    def scores(self) -> dict[str, tuple[float, float]]:
        """Layer -> (tr(F), standard error), as `policies` want it."""
        return {layer: (t, e) for layer, t, e in zip(self.layers, self.trace.tolist(), self.se.tolist(), strict=True)}


def fisher_trace(
    model: nn.Module,
    loader: Iterable[Batch],
    *,
    layers: LayerChoice = None,
    likelihood: Likelihood | str | None = None,
    labels: str = "class_mix",
    method: str = "hooks",
    num_batches: int | None = None,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> FisherTrace:
    """The trace of the Fisher information of each layer,

        tr(F_l) = E_x E_{y ~ p(.|x)} ||grad_{w_l} log p(y|x)||^2,

    by per-example gradients, over the inputs of a loader (its labels are used by labels="empirical" alone).

    Args:
        model: returns logits, as a tensor, first in a tuple, or as .logits. Measured in evaluation mode; its
            weights, gradients, buffers, modes and `requires_grad`, every random state and the loader's generators are
            afterwards as they were. Frozen layers are measured like open ones.
        loader: batches that are dicts, (inputs, targets) or inputs.
        layers: see `fisherdyn.layers.resolve_layers`; None finds them.
        likelihood: what the logits mean: a name in `fisherdyn.likelihoods.LIKELIHOODS` or an instance. None: by a Hugging
            Face model's class and problem_type, else one softmax over logits of shape (batch, classes).
        labels: "class_mix" (default), "exact" or "sampled" are unbiased: see `Likelihood.cotangents`; the variance of one
            example is 0 for "exact", at most 2 tr^2 for "class_mix", unbounded for "sampled". "empirical" and "argmax"
            are not tr(F), and are here to be compared with it.
        method: "hooks" (no weight gradients; a module without a rule is run again example by example) or "vmap"
            (torch.func; also tied weights and weights used outside their module; more memory).
        num_batches: read at most this many; None reads the loader to its end.
        generator: of label noise; default: a new one, seeded 0.
        progress: show a bar.

    Returns:
        FisherTrace. Its standard error is over examples, whose values are taken as independent: it covers the spread over
        inputs and label noise, not the choice of a loader that is not a random sample.

    Cost:
        A forward pass and, for each cotangent (exact: C - 1 a softmax, else 1), a backward pass without weight gradients.

    Raises:
        ValueError: unknown method, labels or layer; no examples; logits or traces that are not finite; a module that the
            method cannot measure, by its name and with the remedy.

    Source: Liu et al. 2023, "FUN with Fisher", Eqn. 1; Kunstner et al. 2019 on why true labels would not do.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method={method!r}: choose one of {', '.join(METHODS)}")
    if labels not in LABELS:
        raise ValueError(f"unknown labels={labels!r}: choose one of {', '.join(LABELS)}")
    if num_batches is not None and num_batches < 1:
        raise ValueError(f"expected num_batches of at least 1, got {num_batches}")
    device = device_of(model)
    refuse_what_writes(model)
    chosen = resolve_layers(model, layers)
    generator = generator or torch.Generator().manual_seed(0)
    reading = _Reading(model, likelihood)
    values: list[Tensor] = []
    with no_trace(model, loader), tqdm(total=num_batches, desc="tr(F)", unit="batch", disable=not progress) as bar:
        for batch in _batches(loader):
            args, kwargs = inputs_of(batch, device)

            examples = count_examples(args, kwargs)

            def cotangents(f: Tensor, batch: Batch = batch, examples: int = examples) -> Iterable[Tensor]:
                assert reading.likelihood is not None
                reading.likelihood.check(f, examples)
                return reading.likelihood.cotangents(f, labels, generator, batch)

            values.append(METHODS[method](model, args, kwargs, chosen, reading, cotangents).cpu())
            bar.update()
            if len(values) == num_batches:
                break
    return _summary(model, chosen, values, f"{method}/{labels}", reading.name)


class _Reading:
    """A model's output -> the tensor f that its likelihood reads; where none is given, the first output says which."""

    def __init__(self, model: nn.Module, likelihood: Likelihood | str | None) -> None:
        if isinstance(likelihood, str):
            if likelihood not in LIKELIHOODS:
                raise ValueError(f"unknown likelihood={likelihood!r}: choose one of {', '.join(LIKELIHOODS)}")
            likelihood = LIKELIHOODS[likelihood]()
        self.model, self.likelihood = model, likelihood

    def __call__(self, output: Any) -> Tensor:
        if self.likelihood is None:
            self.likelihood = find_likelihood(self.model, output)
        return self.likelihood.outputs(output)

    @property
    def name(self) -> str:
        return self.likelihood.name if self.likelihood is not None else ""


def _batches(loader: Iterable[Batch]) -> Iterable[Batch]:
    """The loader's batches; a single batch in its place is refused."""
    one = isinstance(loader, Mapping) and any(isinstance(value, Tensor) for value in loader.values())
    if isinstance(loader, Tensor) or one:
        raise ValueError("expected a loader, that is batches, got a single batch: wrap it as [batch]")
    return loader


def _summary(
    model: nn.Module, layers: dict[str, tuple[str, ...]], values: list[Tensor], estimator: str, likelihood: str
) -> FisherTrace:
    if not values:
        raise ValueError("the loader gave no batch: expected at least one (a generator can be read only once)")
    per_example = torch.cat(values)
    names = tuple(layers)
    if not torch.isfinite(per_example).all():
        bad = [name for name, ok in zip(names, torch.isfinite(per_example).all(dim=0).tolist(), strict=True) if not ok]
        raise ValueError(f"tr(F) is not finite in layer(s) {', '.join(bad)}: gradients overflow there")
    n = len(per_example)
    se = per_example.std(dim=0) / math.sqrt(n) if n > 1 else torch.full((len(names),), math.nan, dtype=torch.float64)
    parameters = [[model.get_parameter(name) for name in group] for group in layers.values()]
    return FisherTrace(
        layers=names,
        trace=per_example.mean(dim=0),
        se=se,
        num_params=tuple(sum(p.numel() for p in group) for group in parameters),
        trainable=tuple(any(p.requires_grad for p in group) for group in parameters),
        per_example=per_example,
        batches=len(values),
        estimator=estimator,
        likelihood=likelihood,
    )
