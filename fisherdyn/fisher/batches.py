"""A batch of any usual shape: its examples, the call of the model that it becomes, and small batches joined to one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from ..layers import Layers
from ..likelihoods import IGNORED, labels_in
from ..model_index import ModelIndex
from ..outputs import OutputReader, is_decoder_of_labels

Batch = Any
"""A dict (HF), a tuple (inputs, targets), or inputs: a tensor, or a dict, list or tuple of what is inputs."""

TARGETS = ("labels", "label", "start_positions", "end_positions")
"""What a dict batch holds beside the inputs; the true Fisher needs none of it."""

JOINED_WORK = 2**31
"""Numbers in the inputs times weights in the model, up to which batches are joined: what a core multiplies in the time of
some hundred calls. No large model has batches as small as that."""
JOINED_NUMBERS = 2**18
"""Most numbers in joined inputs, however small the model."""
MOST_WIDENING = 1.5
"""Batches are padded to at most so many times their columns in order to be joined."""


_FILL = {"input_ids": 0, "attention_mask": 0, "token_type_ids": 0, "labels": IGNORED}
"""Names that are known to have a value a token, and the value of a token that is none."""


# The call that a batch becomes


@dataclass(frozen=True)
class ModelCall:
    """One call of a model: its inputs, the layers that are measured, and how the output is read.

    Attributes:
        model: in evaluation mode.
        layers: layer -> its parameters.
        reader: what the model returns -> the logits f.
        batch: as the loader gave it; its labels may say what the logits mean.
        args, kwargs: the inputs, batch dimension first in every tensor that has one.
    """

    model: ModelIndex
    layers: Layers
    reader: OutputReader
    batch: Batch
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @cached_property
    def examples(self) -> int:
        return count_examples(self.args, self.kwargs)

    def logits(self) -> Tensor:
        """Runs the model."""
        return self.read(self.model.model(*self.args, **self.kwargs))

    def read(self, output: Any) -> Tensor:
        """The logits in what the model returned."""
        return self.reader(output, self.batch, self.examples)

    def example(self, i: int) -> ModelCall:
        """The call with example i alone, still with a batch dimension."""
        args, kwargs = rows_of((self.args, self.kwargs), range(i, i + 1))
        return ModelCall(self.model, self.layers, self.reader, self.batch, args, kwargs)


def plain_batch(batch: Batch) -> Batch:
    """A batch in one of three forms: a dict by argument name, with "labels" if it has some; (inputs, targets); inputs."""
    if isinstance(batch, Mapping):
        return dict(batch)
    pair = isinstance(batch, tuple | list) and len(batch) in (1, 2)
    if not pair or not isinstance(batch[0], Mapping):
        return batch
    labels = batch[-1]
    return {**batch[0], "labels": labels} if isinstance(labels, Tensor) else dict(batch[0])


def inputs_of(batch: Batch, device: torch.device | None = None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of the model, targets left out, on a device (None: where they are)."""
    if isinstance(batch := plain_batch(batch), dict):
        inputs = {name: value for name, value in batch.items() if name not in TARGETS}
        return (), tree_map(lambda x: _moved(x, device), inputs)
    x = batch[0] if isinstance(batch, tuple | list) and len(batch) in (1, 2) else batch
    if not isinstance(x, Tensor) and (x is batch or not tree_leaves(x) or not _are_tensors(x)):
        several = f" of {len(batch)}" if isinstance(batch, tuple | list) else ""
        raise TypeError(
            "expected a batch that is a tensor, (inputs, targets) or a dict of tensors by argument name, got "
            f"{type(batch).__name__}{several}"
        )
    return (tree_map(lambda x: _moved(x, device), x),), {}


def _are_tensors(x: Any) -> bool:
    return all(isinstance(leaf, Tensor) for leaf in tree_leaves(x))


def _moved(x: Any, device: torch.device | None) -> Any:
    if not isinstance(x, Tensor):
        return x
    if x.is_meta:
        raise ValueError(
            f"a tensor of the batch, of shape {tuple(x.shape)}, is on device 'meta', which holds no numbers"
        )
    if x.is_nested:
        raise ValueError(
            "a tensor of the batch is nested (jagged), its examples have shapes of their own: give batches of one example, "
            "x[None] for x in tensor.unbind()"
        )
    return x.to(device)


def with_decoder_inputs(batch: Batch, model: nn.Module) -> Batch:
    """The batch with what the decoder reads, made from its labels by the model itself, which is not given the labels.

    Raises:
        ValueError: an encoder-decoder's batch without either.
    """
    if not is_decoder_of_labels(model) or not isinstance(batch, dict):
        return batch
    if any(name in batch for name in ("decoder_input_ids", "decoder_inputs_embeds")):
        return batch
    make = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    if make is None or "labels" not in batch:
        which = "decoder_input_ids" if make is None else "labels or decoder_input_ids"
        raise ValueError(f"the decoder of {type(model).__name__} needs something to read: give the batch {which}")
    return {**batch, "decoder_input_ids": make(labels=batch["labels"])}


# Its examples


def count_examples(args: tuple[Tensor, ...], kwargs: Mapping[str, Any]) -> int:
    """The length of the batch dimension that all tensors share."""
    tensors = [x for x in tree_leaves((args, dict(kwargs))) if isinstance(x, Tensor)]
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

    return tree_map(select, plain_batch(batch))


# Small batches, joined


class Rebatcher:
    """Groups small batches, and joins each group to one: a pass over little is spent on calls, not on arithmetic.

    A gradient of one example does not depend on the batch it came in, so the numbers are the same up to rounding. Label
    noise is drawn for a whole group: other draws than batch by batch, and no less right.

    A group never exceeds the batches already read, so early stopping over-reads by at most 2x. No batch is asked for before
    it is needed, except one that turns out not to fit the group before it.

    Args:
        model: of the measurement.
        neutral: whether columns of padding change nothing: compares a batch with a longer twin (see `padding`).
        joins: whether batches may be joined: not where the method sees no single example.
    """

    def __init__(self, model: ModelIndex, neutral: Callable[[Batch, Batch], bool], joins: bool) -> None:
        self.model, self.neutral, self.joins = model, neutral, joins
        weights = sum(parameter.numel() for parameter in model.parameters.values())
        self.most_numbers = min(JOINED_WORK / weights, JOINED_NUMBERS)

    def groups(self, batches: Iterable[Batch]) -> Iterator[list[Batch]]:
        """Consecutive batches whose examples have equal shapes, or equal shapes once padded."""
        group: list[Batch] = []
        read = largest = 0
        for batch in map(plain_batch, batches):
            if group and not self._fit(group, batch):
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

    def prepare(self, batch: Batch) -> Batch:
        """With what a decoder reads, and without the columns of padding on its right, where they change nothing."""
        batch = with_decoder_inputs(batch, self.model.model)
        trimmed = trim_padding(batch)
        return trimmed if trimmed is not batch and self.neutral(trimmed, batch) else batch

    def _fit(self, group: list[Batch], batch: Batch) -> bool:
        first = group[0]
        if count_in(first) == 1:  # some models take one example alone, and no more
            return False
        shapes = _example_shapes(first)
        if type(first) is not type(batch) or shapes is None or shapes != _example_shapes(batch):
            return False
        if token_columns(first) is None or token_columns(batch) is None:
            return True
        by_columns = sorted([*group, batch], key=lambda b: b["input_ids"].shape[-1])
        columns, widest = (b["input_ids"].shape[-1] for b in (by_columns[0], by_columns[-1]))
        if columns == widest:
            return True
        shortest = by_columns[0]
        near = widest <= MOST_WIDENING * columns
        return near and self.neutral(shortest, widen_padding(shortest, widest, self.model.model))


def _numbers_in(batch: Batch) -> int:
    args, kwargs = inputs_of(batch)
    return max((x.numel() for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)), default=0)


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


# Columns of padding


def trim_padding(batch: Any) -> Any:
    """A Hugging Face batch without the columns on the right that no example attends to; any other as it is."""
    ids, mask = _tokens(batch)
    if ids is None or mask is None:
        return batch
    counted, labels = mask != 0, labels_in(batch)
    if labels is not None and labels.shape == mask.shape:
        counted = counted | (labels != IGNORED)
    used = counted.flatten(0, -2).any(dim=0).nonzero()
    end = int(used[-1]) + 1 if len(used) else ids.shape[-1]
    if end == ids.shape[-1]:
        return batch
    columns = (slice(None),) * (ids.ndim - 1) + (slice(end),)
    return {name: x[columns] if _has_token_rows(x, ids) else x for name, x in batch.items()}


def token_columns(batch: Any) -> int | None:
    """The number of token columns of a batch that could be padded on the right; None for any other."""
    ids, _ = _tokens(batch)
    if ids is None or not all(name in _FILL for name, x in batch.items() if _has_token_rows(x, ids)):
        return None
    return ids.shape[-1]


def widen_padding(batch: Any, columns: int, model: nn.Module) -> Any:
    """The batch with so many columns; no example attends to the new ones, on the right."""
    ids = batch["input_ids"]
    fill = {**_FILL, "input_ids": pad_token(model) or 0}

    def wider(name: str, x: Tensor) -> Tensor:
        return torch.cat([x, x.new_full((*ids.shape[:-1], columns - ids.shape[-1]), fill[name])], dim=-1)

    return {name: wider(name, x) if _has_token_rows(x, ids) else x for name, x in batch.items()}


def pad_token(model: nn.Module) -> int | None:
    """The model's, if it is a token."""
    config = getattr(model, "config", None)
    pad, tokens = getattr(config, "pad_token_id", None), getattr(config, "vocab_size", 0)
    return pad if pad is not None and 0 <= pad < tokens else None


def _tokens(batch: Any) -> tuple[Tensor | None, Tensor | None]:
    """The ids and the attention mask of a batch that has both, in one shape of at least two dimensions."""
    if not isinstance(batch, Mapping):
        return None, None
    ids, mask = batch.get("input_ids"), batch.get("attention_mask")
    alike = isinstance(ids, Tensor) and isinstance(mask, Tensor) and mask.shape == ids.shape and ids.ndim >= 2
    return (ids, mask) if alike else (None, None)


def _has_token_rows(x: Any, ids: Tensor) -> bool:
    return isinstance(x, Tensor) and x.shape[: ids.ndim] == ids.shape


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
