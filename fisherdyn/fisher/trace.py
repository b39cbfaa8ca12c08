"""fisher_trace(): the front door. Per-layer tr(F) of a model over a loader, with its standard error."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..layers import LayerChoice, Layers, resolve_layers
from ..likelihoods import LABELS, LIKELIHOODS, Likelihood, find_likelihood
from . import batch, hooks, vmap
from .forward import Batch, count_examples, device_of, inputs_of, no_trace, refuse_what_writes

METHODS = ("hooks", "vmap", "batch", "authors")
FEWEST_TO_STOP_AT = 32
"""Examples below which a standard error is too rough to stop by."""


@dataclass(frozen=True)
class FisherTrace:
    """tr(F) per layer and what it rests on.

    Attributes:
        layers: names, bottom first.
        trace: (layers,) the estimate, in nats (a second derivative of KL in nats by dimensionless weights).
        se: (layers,) its standard error: over examples, or over batches for the methods that see no single example.
        num_params: (layers,).
        trainable: (layers,) whether any of the layer's parameters has requires_grad.
        values: (examples, layers), for paired comparisons of layers on the same examples; (batches, layers) for the
            methods "batch" and "authors".
        examples: how many were measured.
        batches: how many were read.
        estimator: e.g. "hooks/class_mix".
        likelihood: e.g. "categorical".
        imprecise: layers whose standard error is still above the `target_se` that was asked for.
    """

    layers: tuple[str, ...]
    trace: Tensor
    se: Tensor
    num_params: tuple[int, ...]
    trainable: tuple[bool, ...]
    values: Tensor
    examples: int
    batches: int
    estimator: str
    likelihood: str
    imprecise: tuple[str, ...] = ()

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
    target_se: float | None = None,
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
            (torch.func; also tied weights and weights used outside their module; more memory). "batch": the squared
            gradient of the batch under random signs, unbiased, noisier, its standard error over batches. "authors": what
            the paper's code computes, biased, for labels "argmax", "sampled" and "empirical".
        num_batches: read at most this many; None reads the loader to its end.
        target_se: stop as soon as every layer's standard error is at most this share of its tr(F), such as 0.05; layers
            that do not get there are named in the result's `imprecise`.
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
    if target_se is not None and not 0 < target_se < 1:
        raise ValueError(f"expected target_se between 0 and 1, such as 0.05, got {target_se}")
    device = device_of(model)
    refuse_what_writes(model)
    chosen = resolve_layers(model, layers)
    generator = generator or torch.Generator().manual_seed(0)
    reading = _Reading(model, likelihood)
    estimate = _estimator(method, labels, generator)
    sums = _Sums()
    with no_trace(model, loader), tqdm(total=num_batches, desc="tr(F)", unit="batch", disable=not progress) as bar:
        for one in _batches(loader):
            args, kwargs = inputs_of(one, device)

            examples = count_examples(args, kwargs)

            def cotangents(f: Tensor, one: Batch = one, examples: int = examples) -> Iterable[Tensor]:
                assert reading.likelihood is not None
                reading.likelihood.check(f, examples)
                return reading.likelihood.cotangents(f, labels, generator, one)

            sums.add(estimate(model, args, kwargs, chosen, reading, cotangents).cpu(), examples)
            bar.update()
            if progress:
                bar.set_postfix_str(f"largest relative error {sums.relative_error().max():.1%}", refresh=False)
            precise = target_se is not None and sums.examples >= FEWEST_TO_STOP_AT and sums.within(target_se).all()
            if precise or sums.batches == num_batches:
                break
    return _summary(model, chosen, sums, target_se, f"{method}/{labels}", reading.name)


def _estimator(method: str, labels: str, generator: torch.Generator) -> Callable[..., Tensor]:
    """The method's function; a pair of method and labels that makes no sense is refused."""
    if method == "authors" and labels not in ("argmax", "sampled", "empirical"):
        raise ValueError(
            f'method="authors" is the gradient of a loss, which has one label an example: choose labels="argmax" (theirs), '
            f'"sampled" or "empirical", not {labels!r}'
        )
    functions: dict[str, Callable[..., Tensor]] = {
        "hooks": hooks.squared_norms,
        "vmap": vmap.squared_norms,
        "batch": partial(batch.signed, generator=generator),
        "authors": batch.authors,
    }
    return functions[method]


class _Sums:
    """Values as they come, one row an example or one a batch, each row with the number of examples that it stands for."""

    def __init__(self) -> None:
        self.rows: list[Tensor] = []
        self.weights: list[Tensor] = []
        self.batches = 0

    def add(self, rows: Tensor, examples: int) -> None:
        self.rows.append(rows)
        self.weights.append(torch.full((len(rows),), examples / len(rows), dtype=torch.float64))
        self.batches += 1

    @property
    def examples(self) -> int:
        return round(float(sum(w.sum() for w in self.weights)))

    def mean_and_error(self) -> tuple[Tensor, Tensor]:
        """Weighted mean over rows and its standard error: sd / sqrt(n) where all rows stand for one example."""
        values, weights = torch.cat(self.rows), torch.cat(self.weights)[:, None]
        mean = (weights * values).sum(dim=0) / weights.sum()
        n = len(values)
        spread = (weights * (values - mean)).square().sum(dim=0).sqrt() / weights.sum()
        return mean, spread * math.sqrt(n / (n - 1)) if n > 1 else torch.full_like(mean, math.nan)

    def relative_error(self) -> Tensor:
        """Standard error over estimate; infinite where there is none yet, 0 where tr(F) is 0 in every example."""
        mean, se = self.mean_and_error()
        return torch.where(mean == 0, 0.0, (se / mean).nan_to_num(nan=math.inf))

    def within(self, target: float) -> Tensor:
        return self.relative_error() <= target


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
    model: nn.Module,
    layers: Layers,
    sums: _Sums,
    target_se: float | None,
    estimator: str,
    likelihood: str,
) -> FisherTrace:
    if not sums.rows:
        raise ValueError("the loader gave no batch: expected at least one (a generator can be read only once)")
    values = torch.cat(sums.rows)
    names = tuple(layers)
    if not torch.isfinite(values).all():
        bad = [name for name, ok in zip(names, torch.isfinite(values).all(dim=0).tolist(), strict=True) if not ok]
        raise ValueError(f"tr(F) is not finite in layer(s) {', '.join(bad)}: gradients overflow there")
    trace, se = sums.mean_and_error()
    within = sums.within(target_se).tolist() if target_se is not None else [True] * len(names)
    parameters = [[model.get_parameter(name) for name in group] for group in layers.values()]
    return FisherTrace(
        layers=names,
        trace=trace,
        se=se,
        num_params=tuple(sum(p.numel() for p in group) for group in parameters),
        trainable=tuple(any(p.requires_grad for p in group) for group in parameters),
        values=values,
        examples=sums.examples,
        batches=sums.batches,
        estimator=estimator,
        likelihood=likelihood,
        imprecise=tuple(name for name, precise in zip(names, within, strict=True) if not precise),
    )
