"""Small batches are measured several at a time: a pass over little is spent on calls, not on arithmetic.

A gradient of one example does not know which batch it came in, so the numbers are the same, up to rounding. Label noise is
drawn for all of them at once: other draws, where the generator or the padding makes it so, and no less right.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from .batches import Batch, count_in, inputs_of
from .measure import BatchEstimator, Rows
from .padding import by_token, columns_in, padded, padding_changes_nothing
from .running_mean import Found

WORK = 2**31
"""Numbers in the inputs times weights in the model, up to which batches are put together: what a core multiplies in the time
of some hundred calls. No large model has batches as small as that."""
NUMBERS = 2**18
"""No more than that in the inputs, however small the model."""
WIDER = 1.5
"""Batches are padded to no more than so many times their columns."""


class Rebatcher:
    """Batches -> what is found in them, some of them in one pass: consecutive ones that are alike, or alike when padded.

    Never more than there were before, so that who stops has read at most twice what was needed. No batch is asked for before
    it is needed, but for one that turns out not to go with those before. Where a pass over several fails, they are measured
    one by one from then on: a model may not take them together, and an error should speak of a batch that the loader gave.

    Args:
        measure: what knows the model, and how its outputs are read.
        rows: takes the norms.
        joins: whether it may put batches together: not where the method sees no single example.
    """

    def __init__(self, measure: BatchEstimator, rows: Rows, joins: bool) -> None:
        self.measure, self.rows, self.joins = measure, rows, joins
        weights = sum(p.numel() for p in measure.model.parameters())
        self.most_numbers = min(WORK / weights, NUMBERS)

    def found(self, batches: Iterable[Batch]) -> Iterator[Found]:
        for group in self._groups(batches):
            yield self._rows(group).cpu(), sum(map(count_in, group)), len(group)

    def _groups(self, batches: Iterable[Batch]) -> Iterator[list[Batch]]:
        group: list[Batch] = []
        before = largest = 0
        for batch in batches:
            if group and not self._alike(group[0], batch):
                yield group
                before, largest, group = before + len(group), 0, []
            group.append(batch)
            largest = max(largest, _numbers_in(batch))
            full = (len(group) + 1) * largest > self.most_numbers
            if full or not self.joins or len(group) >= before:  # at most as many as before: groups double
                yield group
                before, largest, group = before + len(group), 0, []
        if group:
            yield group

    def _rows(self, group: list[Batch]) -> Tensor:
        if len(group) > 1:
            state = self.measure.generator.get_state()
            try:
                return self.rows(self._joined(group))
            except Exception:  # whatever the model raises: it may not take them together
                self.measure.generator.set_state(state)
                self.joins = False
        return torch.cat([self.rows(batch) for batch in group])

    def _alike(self, first: Batch, second: Batch) -> bool:
        if count_in(first) == 1:  # some models take one example alone, and no more
            return False
        shapes = _shapes(first)
        if type(first) is not type(second) or shapes is None or shapes != _shapes(second):
            return False
        one, other = columns_in(first), columns_in(second)
        if one is None or other is None or one == other:
            return True
        return max(one, other) <= WIDER * min(one, other) and self._may_be_padded

    @cached_property
    def _may_be_padded(self) -> bool:
        """Asked from the second batch on, when the likelihood is known."""
        return padding_changes_nothing(self.measure.model, self.measure.reader.likelihood)

    def _joined(self, group: list[Batch]) -> Batch:
        if columns_in(group[0]) is not None:
            wide = max(batch["input_ids"].shape[-1] for batch in group)
            group = [padded(batch, wide, self.measure.model) for batch in group]
        parts = {name: torch.cat([_parts(batch)[name] for batch in group]) for name in _parts(group[0])}
        if isinstance(group[0], Mapping):
            return parts
        return tuple(parts.values()) if isinstance(group[0], tuple | list) else parts[0]


def _numbers_in(batch: Batch) -> int:
    args, kwargs = inputs_of(batch)
    return max((x.numel() for x in (*args, *kwargs.values()) if isinstance(x, Tensor)), default=0)


def _shapes(batch: Batch) -> Any:
    """Of one example's tensors, by name or place, without the columns that can be padded; None where something is not a
    tensor of one row an example."""
    parts, examples = _parts(batch), count_in(batch)
    if not all(isinstance(x, Tensor) and x.ndim > 0 and len(x) == examples for x in parts.values()):
        return None
    ids = batch["input_ids"] if columns_in(batch) is not None else None
    return {name: (_one_example(x, ids), x.dtype, x.device) for name, x in parts.items()}


def _one_example(x: Tensor, ids: Tensor | None) -> tuple[int, ...]:
    """The shape of one example, without columns."""
    if ids is None or not by_token(x, ids):
        return tuple(x.shape[1:])
    return tuple(x.shape[1 : ids.ndim - 1]) + tuple(x.shape[ids.ndim :])


def _parts(batch: Batch) -> Mapping[Any, Any]:
    if isinstance(batch, Mapping):
        return batch
    return dict(enumerate(batch)) if isinstance(batch, tuple | list) else {0: batch}
