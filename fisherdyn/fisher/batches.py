"""A batch of any usual shape: its examples, the call of the model that it becomes, and small batches joined to one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..layers import Layers
from ..likelihoods import OutputReader
from ..model_index import ModelIndex
from .padding import padding_is_neutral, token_columns, trim_padding, widen_padding

Batch = Any
"""A dict (HF), a tuple (inputs, targets), or a tensor of inputs."""

TARGETS = ("labels", "label", "start_positions", "end_positions")
"""What a dict batch holds beside the inputs; the true Fisher needs none of it."""

JOINED_WORK = 2**31
"""Numbers in the inputs times weights in the model, up to which batches are joined: what a core multiplies in the time of
some hundred calls. No large model has batches as small as that."""
JOINED_NUMBERS = 2**18
"""Most numbers in joined inputs, however small the model."""
MOST_WIDENING = 1.5
"""Batches are padded to at most so many times their columns in order to be joined."""


# The call that a batch becomes


@dataclass(frozen=True)
class ModelCall:
    """One call of a model: its inputs, the layers that are measured, and how the output is read.

    Attributes:
        model: in evaluation mode.
        layers: layer -> its parameters.
        reader: what the model returns -> the logits f.
        args, kwargs: the inputs, batch dimension first in every tensor that has one.
    """

    model: ModelIndex
    layers: Layers
    reader: OutputReader
    args: tuple[Tensor, ...]
    kwargs: dict[str, Any]

    @cached_property
    def examples(self) -> int:
        return count_examples(self.args, self.kwargs)

    def logits(self) -> Tensor:
        """Runs the model."""
        return self.reader(self.model.model(*self.args, **self.kwargs))

    def example(self, i: int) -> ModelCall:
        """The call with example i alone, still with a batch dimension."""
        args = tuple(one_example(x, i) for x in self.args)
        kwargs = {name: one_example(x, i) for name, x in self.kwargs.items()}
        return ModelCall(self.model, self.layers, self.reader, args, kwargs)


def inputs_of(batch: Batch, device: torch.device | None = None) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
    """Positional and keyword arguments of the model, targets left out, on a device (None: where they are)."""
    if isinstance(batch, Mapping):
        inputs = {name: value for name, value in batch.items() if name not in TARGETS}
        return (), {name: _moved(x, device) if isinstance(x, Tensor) else x for name, x in inputs.items()}
    x = batch[0] if isinstance(batch, tuple | list) and len(batch) in (1, 2) else batch
    if not isinstance(x, Tensor):
        several = f" of {len(batch)}" if isinstance(batch, tuple | list) else ""
        raise TypeError(
            "expected a batch that is a tensor, (inputs, targets) or a dict of tensors by argument name, got "
            f"{type(batch).__name__}{several}"
        )
    return (_moved(x, device),), {}


def _moved(x: Tensor, device: torch.device | None) -> Tensor:
    if x.is_meta:
        raise ValueError(
            f"a tensor of the batch, of shape {tuple(x.shape)}, is on device 'meta', which holds no numbers"
        )
    return x.to(device)


# Its examples


def count_examples(args: tuple[Tensor, ...], kwargs: Mapping[str, Any]) -> int:
    """The length of the batch dimension that all tensors share."""
    tensors = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
    if not tensors:
        raise ValueError("expected a batch with at least one tensor, got none")
    sizes = {len(x) for x in tensors if x.ndim > 0}
    if len(sizes) != 1 or 0 in sizes:
        raise ValueError(f"expected tensors that share one batch dimension of at least 1, got lengths {sorted(sizes)}")
    return sizes.pop()


def count_in(batch: Batch) -> int:
    """The number of examples in a batch."""
    return count_examples(*inputs_of(batch))


def rows_of(batch: Batch, rows: range | Tensor) -> Batch:
    """Some of a batch's examples, with their targets."""
    index = slice(rows.start, rows.stop, rows.step) if isinstance(rows, range) else rows

    def select(x: Any) -> Any:
        return x[index] if isinstance(x, Tensor) and x.ndim > 0 else x

    if isinstance(batch, Mapping):
        return {name: select(x) for name, x in batch.items()}
    return type(batch)(map(select, batch)) if isinstance(batch, tuple | list) else select(batch)


def one_example(x: Any, i: int) -> Any:
    """Example i, still with a batch dimension; anything but a tensor that has one as it is."""
    return x[i : i + 1] if isinstance(x, Tensor) and x.ndim > 0 else x


# Small batches, joined


class Rebatcher:
    """Groups small batches, and joins each group to one: a pass over little is spent on calls, not on arithmetic.

    A gradient of one example does not depend on the batch it came in, so the numbers are the same up to rounding. Label
    noise is drawn for a whole group: other draws than batch by batch, and no less right.

    A group never exceeds the batches already read, so early stopping over-reads by at most 2x. No batch is asked for before
    it is needed, except one that turns out not to fit the group before it.

    Args:
        model, reader: of the measurement.
        joins: whether batches may be joined: not where the method sees no single example.
    """

    def __init__(self, model: ModelIndex, reader: OutputReader, joins: bool) -> None:
        self.model, self.reader, self.joins = model, reader, joins
        weights = sum(parameter.numel() for parameter in model.parameters.values())
        self.most_numbers = min(JOINED_WORK / weights, JOINED_NUMBERS)

    def groups(self, batches: Iterable[Batch]) -> Iterator[list[Batch]]:
        """Consecutive batches whose examples have equal shapes, or equal shapes once padded."""
        group: list[Batch] = []
        read = largest = 0
        for batch in batches:
            if group and not self._fit(group[0], batch):
                yield group
                read, largest, group = read + len(group), 0, []
            group.append(batch)
            largest = max(largest, _numbers_in(batch))
            full = (len(group) + 1) * largest > self.most_numbers
            if full or not self.joins or len(group) >= read:  # at most as many as were read before: groups double
                yield group
                read, largest, group = read + len(group), 0, []
        if group:
            yield group

    def join(self, group: list[Batch]) -> Batch:
        """One batch with the examples of all."""
        if token_columns(group[0]) is not None:
            columns = max(batch["input_ids"].shape[-1] for batch in group)
            group = [widen_padding(batch, columns, self.model.model) for batch in group]
        parts = {name: torch.cat([_parts(batch)[name] for batch in group]) for name in _parts(group[0])}
        if isinstance(group[0], Mapping):
            return parts
        return tuple(parts.values()) if isinstance(group[0], tuple | list) else parts[0]

    def trim(self, batch: Batch) -> Batch:
        """The batch without the columns of padding on its right, where they are certain to change nothing."""
        return trim_padding(batch) if self._padding_is_neutral else batch

    def _fit(self, first: Batch, second: Batch) -> bool:
        if count_in(first) == 1:  # some models take one example alone, and no more
            return False
        shapes = _example_shapes(first)
        if type(first) is not type(second) or shapes is None or shapes != _example_shapes(second):
            return False
        columns, others = token_columns(first), token_columns(second)
        if columns is None or others is None or columns == others:
            return True
        return max(columns, others) <= MOST_WIDENING * min(columns, others) and self._padding_is_neutral

    @property
    def _padding_is_neutral(self) -> bool:
        """Not known before the likelihood is: a first output may have to say what it is."""
        return self.reader.likelihood is not None and self._padding_is_neutral_for_likelihood

    @cached_property
    def _padding_is_neutral_for_likelihood(self) -> bool:
        return padding_is_neutral(self.model, self.reader.likelihood)


def _numbers_in(batch: Batch) -> int:
    args, kwargs = inputs_of(batch)
    return max((x.numel() for x in (*args, *kwargs.values()) if isinstance(x, Tensor)), default=0)


def _example_shapes(batch: Batch) -> Any:
    """Of one example's tensors, by name or place, without the columns that can be padded; None where something is not a
    tensor of one row an example."""
    parts, examples = _parts(batch), count_in(batch)
    if not all(isinstance(x, Tensor) and x.ndim > 0 and len(x) == examples for x in parts.values()):
        return None
    ids = batch["input_ids"] if token_columns(batch) is not None else None
    return {name: (_example_shape(x, ids), x.dtype, x.device) for name, x in parts.items()}


def _example_shape(x: Tensor, ids: Tensor | None) -> tuple[int, ...]:
    if ids is None or x.shape[: ids.ndim] != ids.shape:
        return tuple(x.shape[1:])
    return tuple(x.shape[1 : ids.ndim - 1]) + tuple(x.shape[ids.ndim :])


def _parts(batch: Batch) -> Mapping[Any, Any]:
    if isinstance(batch, Mapping):
        return batch
    return dict(enumerate(batch)) if isinstance(batch, tuple | list) else {0: batch}


# Loaders


def batches_of(loader: Iterable[Batch]) -> Iterable[Batch]:
    """The loader's batches; a single batch in its place is refused."""
    if not isinstance(loader, Iterable):
        raise TypeError(f"expected a loader, that is batches, got {type(loader).__name__}")
    single = isinstance(loader, Mapping) and any(isinstance(value, Tensor) for value in loader.values())
    if isinstance(loader, Tensor) or single:
        raise ValueError("expected a loader, that is batches, got a single batch: wrap it as [batch]")
    return loader


def length_of(loader: Iterable[Any]) -> int | None:
    """Batches of one reading; None where that is not known before (a DataLoader over a stream has a len that raises)."""
    try:
        return len(loader)  # type: ignore[arg-type]
    except (TypeError, NotImplementedError):
        return None


def generators_of(loader: Iterable) -> list[torch.Generator]:
    """Those that the order of a loader is drawn from; a loader without any draws from the global random state."""
    batches = getattr(loader, "batch_sampler", None)
    owners = [loader, getattr(loader, "sampler", None), batches, getattr(batches, "sampler", None)]
    generators = [getattr(owner, "generator", None) for owner in owners]
    return list({id(g): g for g in generators if isinstance(g, torch.Generator)}.values())
