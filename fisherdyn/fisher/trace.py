"""fisher_trace(): the front door. Per-layer tr(F) of a model over a loader, with its standard error."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Literal, TypedDict

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..layers import LayerChoice, Layers, resolve_layers
from ..likelihoods import LABELS, Likelihood
from . import batch, check, hooks, vmap
from .batches import Batch
from .distributed import all_gather, rank, rank_generator
from .measure import BatchEstimator, OutputReader, Rows, SplitOnOOM
from .model_state import device_of, preserve_state, validate_model
from .rebatch import Rebatcher
from .running_mean import RunningMean, across_ranks

LabelName = Literal["exact", "rademacher", "mc", "empirical", "argmax"]
MethodName = Literal["hooks", "vmap", "batch", "authors"]
CheckName = Literal["first", "always", "never"]


class TraceOptions(TypedDict, total=False):
    """Options of `fisher_trace` that probes and recorders pass on."""

    layers: LayerChoice
    likelihood: Likelihood | str | None
    labels: LabelName
    method: MethodName
    num_batches: int | None
    check: CheckName
    generator: torch.Generator | None


METHODS = ("hooks", "vmap", "batch", "authors")
BY_EXAMPLE = METHODS[:2]
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
        estimator: e.g. "hooks/rademacher".
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
    labels: str = "rademacher",
    method: str = "hooks",
    num_batches: int | None = None,
    target_se: float | None = None,
    enough: Callable[[RunningMean], bool] | None = None,
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
        labels: "rademacher" (default), "exact" or "mc" are unbiased: see `Likelihood.cotangents`; the variance of one
            example is 0 for "exact", at most 2 tr^2 for "rademacher", unbounded for "mc". "empirical" and "argmax"
            are not tr(F), and are here to be compared with it.
        method: "hooks" (no weight gradients; a module without a rule is run again example by example) or "vmap"
            (torch.func; also tied weights and weights used outside their module; more memory). "batch": the squared
            gradient of the batch under random signs, unbiased, noisier, its standard error over batches. "authors": what
            the paper's code computes, biased, for labels "argmax", "mc" and "empirical".
        num_batches: read at most this many (in each process); None reads the loader to its end.
        target_se: stop as soon as every layer's standard error is at most this share of its tr(F), such as 0.05; layers
            that do not get there are named in the result's `imprecise`.
        enough: stop as soon as it says so; asked after every pass with what there is: `.values`, `.examples`, `.batches`.
        generator: of label noise; default: a new one of seed 0, apart in every process.
        progress: show a bar, with the relative standard error of the worst layer.

    Returns:
        FisherTrace. Its standard error is over examples, whose values are taken as independent: it covers the spread over
        inputs and label noise, not the choice of a loader that is not a random sample.

    Several processes (torch.distributed initialised): each brings batches of its own, and all get the same result, that of
    all batches. Give each generator another seed, or none.

    Cost:
        A forward pass and, for each cotangent (exact: C - 1 a softmax, else 1), a backward pass without weight gradients.
        Memory: as training's, less the weight gradients; where it runs out, half as many examples at a time are measured.
        Columns of padding on the right are cut where that changes nothing. Of a small model, several batches are measured
        in one pass, so that it stops by as many at a time.

    Precision: under autocast or in half precision, gradients are what that gives, their squares are float32 or better, and
    sums float64.

    Raises:
        ValueError: unknown method, labels or layer; no examples; logits or traces that are not finite; a module that the
            method cannot measure, by its name and with the remedy.
        MemoryError: there is not enough for a single example.

    Source: Liu et al. 2023, "FUN with Fisher", Eqn. 1; Kunstner et al. 2019 on why true labels would not do.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method={method!r}: choose one of {', '.join(METHODS)}")
    if labels not in LABELS:
        raise ValueError(f"unknown labels={labels!r}: choose one of {', '.join(LABELS)}")
    if num_batches is not None and not (isinstance(num_batches, int) and num_batches >= 1):
        raise ValueError(f"expected num_batches of at least 1, got {num_batches!r}")
    if target_se is not None and not (isinstance(target_se, float) and 0 < target_se < 1):
        raise ValueError(f"expected target_se between 0 and 1, such as 0.05, got {target_se!r}")
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"expected a torch.Generator, got {type(generator).__name__}")
    device = device_of(model)
    validate_model(model)
    chosen = resolve_layers(model, layers)
    reading = OutputReader(model, likelihood)
    if generator is None:
        generator = rank_generator(torch.Generator().manual_seed(0))
    estimate = _estimator(method, labels, generator)
    if method == "hooks":
        check.before_measuring(model, reading.likelihood)
    measure = BatchEstimator(model, chosen, reading, estimate, labels, generator, device)
    rows: Rows = SplitOnOOM(measure) if method in BY_EXAMPLE else measure
    sums = RunningMean()
    hidden = not progress or rank() > 0
    with preserve_state(model, loader), tqdm(total=num_batches, desc="tr(F)", unit="batch", disable=hidden) as bar:
        batches = islice(batches_of(loader), num_batches)
        for found in across_ranks(Rebatcher(measure, rows, joins=method in BY_EXAMPLE).found(batches)):
            for one in found:
                sums.add(*one)
            bar.update(sums.batches - bar.n)
            if not hidden:
                bar.set_postfix_str(_progress(chosen, sums), refresh=False)
            if target_se is not None and sums.examples >= FEWEST_TO_STOP_AT and sums.within(target_se).all():
                break
            if enough is not None and enough(sums):
                break
    how = f"{method}/{labels}"
    likelihood_name = next((name for name in all_gather(reading.name) if name), "")  # a process may have had no batch
    return _summary(model, chosen, sums, target_se, how, likelihood_name)


def _progress(layers: Layers, sums: RunningMean) -> str:
    error, worst = sums.relative_error().max(dim=0)
    return f"largest relative error {error:.1%} ({list(layers)[int(worst)]})"


def _estimator(method: str, labels: str, generator: torch.Generator) -> Callable[..., Tensor]:
    """The method's function; a pair of method and labels that makes no sense is refused."""
    if method == "authors" and labels not in ("argmax", "mc", "empirical"):
        raise ValueError(
            f'method="authors" is the gradient of a loss, which has one label an example: choose labels="argmax" (theirs), '
            f'"mc" or "empirical", not {labels!r}'
        )
    functions: dict[str, Callable[..., Tensor]] = {
        "hooks": hooks.squared_norms,
        "vmap": vmap.squared_norms,
        "batch": partial(batch.signed, generator=generator),
        "authors": batch.authors,
    }
    return functions[method]


def batches_of(loader: Iterable[Batch]) -> Iterable[Batch]:
    """The loader's batches; a single batch in its place is refused."""
    if not isinstance(loader, Iterable):
        raise TypeError(f"expected a loader, that is batches, got {type(loader).__name__}")
    one = isinstance(loader, Mapping) and any(isinstance(value, Tensor) for value in loader.values())
    if isinstance(loader, Tensor) or one:
        raise ValueError("expected a loader, that is batches, got a single batch: wrap it as [batch]")
    return loader


def _summary(
    model: nn.Module,
    layers: Layers,
    sums: RunningMean,
    target_se: float | None,
    estimator: str,
    likelihood: str,
) -> FisherTrace:
    if not sums.rows:
        raise ValueError("the loader gave no batch: expected at least one (a generator can be read only once)")
    values = sums.values
    names = tuple(layers)
    if not torch.isfinite(values).all():
        bad = [name for name, ok in zip(names, torch.isfinite(values).all(dim=0).tolist(), strict=True) if not ok]
        raise ValueError(
            f"tr(F) is not finite in layer(s) {', '.join(bad)}: gradients overflow there; measure in bfloat16 or float32, "
            "or look at the inputs"
        )
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
