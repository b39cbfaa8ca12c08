"""fisher_trace(): per-layer tr(F) of a model over a loader, with its standard error; and the road of one batch."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointError
from tqdm import tqdm

from ..labels import LabelMode, find_labels
from ..layers import LayerChoice, Layers, resolve_layers
from ..likelihoods import Likelihood
from ..model_index import ModelIndex
from ..outputs import OutputReader
from .batches import Batch, ModelCall, Rebatcher, batches_of, count_in, inputs_of, rows_of
from .check import CheckName, PerExampleCheck
from .distributed import all_gather, rank, rank_generator
from .methods import Method, NotSeparableError, find_method
from .model_state import device_of, preserve_state, validate_model
from .padding import NeutralPadding
from .running_mean import BatchValues, RunningMean, across_ranks, skewness

LabelName = Literal["exact", "rademacher", "mc", "empirical", "argmax"]
MethodName = Literal["hooks", "loop", "vmap", "batch", "authors"]


class TraceOptions(TypedDict, total=False):
    """Options of `fisher_trace` that probes and recorders pass on."""

    layers: LayerChoice
    likelihood: Likelihood | str | None
    labels: LabelName | LabelMode
    method: MethodName | Method
    num_batches: int | None
    check: CheckName
    generator: torch.Generator | None


FEWEST_TO_STOP_AT = 32
"""Rows (examples, or batches for the methods that see no single example) below which a standard error is too rough."""


@dataclass(frozen=True)
class FisherTrace:
    """tr(F) per layer and what it rests on.

    Attributes:
        layers: names, bottom first.
        trace: (layers,) the estimate, in nats (a second derivative of KL in nats by dimensionless weights).
        se: (layers,) its standard error: over examples, or over batches for the methods that see no single example.
        num_params: (layers,).
        trainable: (layers,) whether any of the layer's parameters has requires_grad.
        values: (examples, layers) in the loader's order, for paired comparisons of layers or models on the same examples;
            in several processes, those of process 0, then of process 1, and so on. (batches, layers) for the methods
            "batch" and "authors".
        examples: how many were measured.
        batches: how many were read.
        estimator: e.g. "hooks/rademacher".
        likelihood: e.g. "categorical".
        imprecise: layers whose standard error is still above the `target_se` that was asked for.
        compared: layers whose values were compared with plain autograd on two examples; see `check`.
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
    compared: tuple[str, ...] = ()

    @property
    def skewness(self) -> Tensor:
        """(layers,) of the values: what an interval needs beside mean and standard error where tails are heavy."""
        return skewness(self.values)

    def scores(self) -> dict[str, tuple[float, float]]:
        """Layer -> (tr(F), standard error), as `policies` want it."""
        return {layer: (t, e) for layer, t, e in zip(self.layers, self.trace.tolist(), self.se.tolist(), strict=True)}


def fisher_trace(
    model: nn.Module,
    loader: Iterable[Batch],
    *,
    layers: LayerChoice = None,
    likelihood: Likelihood | str | None = None,
    labels: LabelName | LabelMode = "rademacher",
    method: MethodName | Method = "hooks",
    num_batches: int | None = None,
    target_se: float | None = None,
    enough: Callable[[RunningMean], bool] | None = None,
    check: CheckName = "first",
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> FisherTrace:
    """The trace of the Fisher information of each layer,

        tr(F_l) = E_x E_{y ~ p(.|x)} ||grad_{w_l} log p(y|x)||^2,

    by per-example gradients, over the inputs of a loader. Its labels are used by labels="empirical" alone, except that
    positions with the label -100 do not count, that a decoder reads them, and that their type may say the likelihood.

    Args:
        model: returns logits, as a tensor, first in a tuple, or as .logits. Measured in evaluation mode; its
            weights, gradients, buffers, modes and `requires_grad`, every random state and the loader's generators are
            afterwards as they were. Frozen layers are measured like open ones.
        loader: batches that are dicts, (inputs, targets) or inputs.
        layers: see `fisherdyn.layers.resolve_layers`; None finds them.
        likelihood: what the logits mean: a name in `fisherdyn.likelihoods.LIKELIHOODS` or an instance. None: by a Hugging
            Face model's class, head, problem_type and labels (see `fisherdyn.outputs`), else one softmax over logits of
            shape (batch, classes).
        labels: "rademacher" (default), "exact" and "mc" are unbiased; the variance of one example, relative to its tr^2, is
            0 for "exact", at most 2 for "rademacher", unbounded for "mc" (Eqn. 1 of the paper). "empirical" and "argmax"
            are not tr(F), and are here to be compared with it. Or a `fisherdyn.labels.LabelMode` of your own.
        method: "hooks" (no weight gradients; a module without a rule is run again example by example), "loop" (plain
            autograd, one example at a time: slow, and right wherever a gradient of one example exists; hooks go on with
            it, and warn, where they cannot take a batch apart) or "vmap" (torch.func; for small models). "batch": the
            squared gradient of the batch under random signs, unbiased, noisier, its standard error over batches.
            "authors": what the paper's code computes, biased, for labels "argmax", "mc" and "empirical". Or a `Method` of
            your own.
        num_batches: read at most this many (in each process); None reads the loader to its end.
        target_se: stop as soon as every layer's standard error is at most this share of its tr(F), such as 0.05; layers
            that do not get there are named in the result's `imprecise`.
        enough: stop as soon as it says so; asked after every pass with what there is: `.values`, `.examples`, `.batches`.
        check: compare a batch with its examples alone, and two of these with plain autograd, in the "first" batch, "always"
            in every batch, or "never"; "brief": in the first batch, with fewer examples. See `fisher.check`. Only
            method="hooks" needs it.
        generator: of label noise; default: a new one of seed 0, apart in every process.
        progress: show a bar, with the relative standard error of the worst layer.

    Returns:
        FisherTrace. Its standard error is over examples, whose values are taken as independent: it covers the variation over
        inputs and label noise, not the choice of a loader that is not a random sample. Stopping by `target_se` favours
        samples that look precise: of 3,000 simulated measurements (gamma values of excess kurtosis 22, batches of 16), tr(F)
        came out 0.3 to 0.4 % too large at targets of 0.2 and 0.1, the standard error 10 % and 3 % too small, and intervals
        of two standard errors covered 91 and 94 %; at 0.05 neither error was beyond the simulation's own, and 95 % covered.

    Several processes (torch.distributed initialised): each brings batches of its own, and all get the same result, that of
    all batches. Give each generator another seed, or none.

    Cost:
        A forward pass and, for each cotangent (exact: C - 1 a softmax, else 1), a backward pass without weight gradients.
        Memory: as training's, less the weight gradients; where it runs out, half as many examples at a time are measured.
        Columns of padding on the right are cut where that changes nothing, which is tried on a text (see `padding`). Of a
        small model, several batches are measured in one pass, so that it stops by as many at a time.

    Precision: under autocast or in half precision, gradients are what that gives, their squares are float32 or better, and
    sums float64.

    Raises:
        ValueError: unknown method, labels or layer; no examples; logits or traces that are not finite; a module that the
            method cannot measure, by its name and with the remedy.
        MemoryError: there is not enough for a single example.

    Source: Liu et al. 2023, "FUN with Fisher", Eqn. 1; Kunstner et al. 2019 on why true labels would not do.

    Example:
        >>> trace = fisher_trace(model, loader, target_se=0.05)
        >>> dict(zip(trace.layers, trace.trace.tolist()))
    """
    _validate_options(num_batches, target_se, generator)
    measurement = Measurement(model, layers, likelihood, find_labels(labels), find_method(method), check, generator)
    mean = RunningMean()
    hidden = not progress or rank() > 0
    with (
        preserve_state(measurement.model, loader),
        tqdm(total=num_batches, desc="tr(F)", unit="batch", disable=hidden) as bar,
    ):
        groups = measurement.rebatcher.groups(islice(batches_of(loader), num_batches))
        for passes in across_ranks(map(measurement.measure, groups)):
            for values in passes:
                mean.add(values)
            bar.update(mean.batches - bar.n)
            if not hidden:
                bar.set_postfix_str(_worst_error(measurement.layers, mean), refresh=False)
            if target_se is not None and mean.rows >= FEWEST_TO_STOP_AT and mean.within(target_se).all():
                break
            if enough is not None and enough(mean):
                break
    return _summarize(measurement, mean, target_se)


class Measurement:
    """The road of a batch, for one model, its layers and one way of measuring them.

    Args:
        model, layers, likelihood, check, generator: as for `fisher_trace`.
        labels, method: found by their names.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: LayerChoice,
        likelihood: Likelihood | str | None,
        labels: LabelMode,
        method: Method,
        check: CheckName,
        generator: torch.Generator | None,
    ) -> None:
        method.validate_labels(labels)
        self.device, self.process = device_of(model), rank()
        self.model = ModelIndex(model)
        validate_model(self.model)
        self.layers = resolve_layers(self.model, layers)
        self.reader = OutputReader(model, likelihood)
        self.labels, self.method = labels, method
        method.prepare(self.model, self.layers)
        self.check = PerExampleCheck(check if method.needs_check else "never", self.layers)
        self.generator = generator if generator is not None else rank_generator(torch.Generator().manual_seed(0))
        self.rebatcher = Rebatcher(self.model, NeutralPadding(self._call_of), joins=method.per_example)
        self._most_examples: int | None = None  # that fit into memory, once it has run out

    def measure(self, group: list[Batch]) -> BatchValues:
        """A group of batches, in one pass where they go together."""
        return BatchValues(self._rows(group).cpu(), sum(map(count_in, group)), len(group), self.process)

    def _rows(self, group: list[Batch]) -> Tensor:
        if len(group) > 1:
            state = self.generator.get_state()
            try:
                return self._rows_within_memory(self.rebatcher.join(group))
            except Exception:
                # A model may not take them together, and an error should speak of a batch that the loader gave.
                self.generator.set_state(state)
                self.rebatcher.joins = False
        return torch.cat([self._rows_within_memory(batch) for batch in group])

    def _rows_within_memory(self, batch: Batch) -> Tensor:
        """Half as many examples at a time where memory runs out, from then on.

        Label noise is then drawn part by part: other numbers than those of whole batches, no less right.
        """
        if not self.method.per_example:
            return self._rows_of_batch(batch)
        examples = count_in(batch)
        most = min(examples, self._most_examples or examples)
        while (rows := self._rows_in_parts(batch, examples, most)) is None:
            if most == 1:
                raise MemoryError("out of memory with a single example: free some, or measure fewer layers")
            self._most_examples = most = (most + 1) // 2
        return rows

    def _rows_in_parts(self, batch: Batch, examples: int, most: int) -> Tensor | None:
        """None where memory ran out. By then the frames that hold the tensors are gone."""
        parts = (range(start, min(start + most, examples)) for start in range(0, examples, most))
        try:
            return torch.cat([self._rows_of_batch(rows_of(batch, p) if most < examples else batch) for p in parts])
        except RuntimeError as error:
            if not (isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)):
                raise
        return None

    def _rows_of_batch(self, batch: Batch) -> Tensor:
        """Once more, with the same label noise, where the method found another way for batches like this one."""
        state = self.generator.get_state()
        with _checkpointing_is_refused():
            try:
                return self._measure_batch(batch)
            except NotSeparableError as error:
                if not self.method.falls_back(error):
                    raise
            self.generator.set_state(state)
            self.check = PerExampleCheck("never", self.layers)
            return self._measure_batch(batch)

    def _measure_batch(self, batch: Batch) -> Tensor:
        """Take a batch, run the model, draw cotangents, take per-example norms: (examples, layers)."""
        batch = self.rebatcher.prepare(batch)
        call = self._call_of(batch)
        with self.method.forward(call) as forward:
            likelihood = self.reader.validated(forward.logits, call.examples)
            cotangents = self.labels.cotangents(likelihood, forward.logits, self.generator, batch)
            norms = forward.squared_norms(cotangents, self.generator)
        if self.check.is_due(call, forward):  # now that the graph is gone
            self.check.compare(call, forward, cotangents, norms)
        return norms.sum(dim=0)

    def _call_of(self, batch: Batch) -> ModelCall:
        return ModelCall(self.model, self.layers, self.reader, batch, *inputs_of(batch, self.device))


@contextmanager
def _checkpointing_is_refused() -> Iterator[None]:
    """In words, where checkpointing does not let gradients be taken."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, CheckpointError):
            reason = "gradient checkpointing computes frozen layers again without their gradients"
        elif "use_reentrant=True" in str(error):
            reason = "gradient checkpointing with use_reentrant=True takes gradients by backward() alone"
        else:
            raise
        raise ValueError(
            f"{reason}: turn it off for the measurement, model.gradient_checkpointing_disable() in transformers"
        ) from error


def _validate_options(num_batches: Any, target_se: Any, generator: Any) -> None:
    if num_batches is not None and not (isinstance(num_batches, int) and num_batches >= 1):
        raise ValueError(f"expected num_batches of at least 1, got {num_batches!r}")
    if target_se is not None and not (isinstance(target_se, float) and 0 < target_se < 1):
        raise ValueError(f"expected target_se between 0 and 1, such as 0.05, got {target_se!r}")
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"expected a torch.Generator, got {type(generator).__name__}")


def _worst_error(layers: Layers, mean: RunningMean) -> str:
    error, worst = mean.relative_error().max(dim=0)
    return f"largest relative error {error:.1%} ({list(layers)[int(worst)]})"


def _summarize(measurement: Measurement, mean: RunningMean, target_se: float | None) -> FisherTrace:
    if not mean.rows:
        raise ValueError("the loader gave no batch: expected at least one (a generator can be read only once)")
    values, names = mean.values, tuple(measurement.layers)
    if not torch.isfinite(values).all():
        bad = [name for name, ok in zip(names, torch.isfinite(values).all(dim=0).tolist(), strict=True) if not ok]
        raise ValueError(
            f"tr(F) is not finite in layer(s) {', '.join(bad)}: gradients overflow there; measure in bfloat16 or float32, "
            "or look at the inputs"
        )
    _warn_of_zeros(names, values)
    trace, se = mean.mean_and_error()
    within = mean.within(target_se).tolist() if target_se is not None else [True] * len(names)
    parameters = [[measurement.model.get_parameter(name) for name in layer] for layer in measurement.layers.values()]
    likelihoods = all_gather(measurement.reader.name)  # a process may have had no batch
    return FisherTrace(
        layers=names,
        trace=trace,
        se=se,
        num_params=tuple(sum(p.numel() for p in layer) for layer in parameters),
        trainable=tuple(any(p.requires_grad for p in layer) for layer in parameters),
        values=values,
        examples=mean.examples,
        batches=mean.batches,
        estimator=f"{measurement.method.name}/{measurement.labels.name}",
        likelihood=next((name for name in likelihoods if name), ""),
        imprecise=tuple(name for name, precise in zip(names, within, strict=True) if not precise),
        compared=measurement.check.compared_layers,
    )


def _warn_of_zeros(names: tuple[str, ...], values: Tensor) -> None:
    if zeros := [name for name, is_zero in zip(names, (values == 0).all(dim=0).tolist(), strict=True) if is_zero]:
        warnings.warn(
            f"layer(s) {', '.join(zeros)}: tr(F) is exactly 0 in every example. As the model is now, these weights have no "
            "part in its logits: they meet a factor that is 0 (the other half of a fresh LoRA, a closed gate), no "
            "example comes to them (an idle expert), or evaluation mode reads a "
            "tensor that was made from them before (a cache, merged weights)",
            stacklevel=4,
        )
