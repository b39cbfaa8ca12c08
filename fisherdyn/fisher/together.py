"""Small batches are measured several at a time: a pass over little is spent on calls, not on arithmetic.

A gradient of one example does not know which batch it came in, so the numbers are the same, up to rounding. Label noise is
drawn for all of them at once: other draws, where the generator or the padding makes it so, and no less right.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .forward import Batch, count_in, inputs_of
from .measure import Reading
from .padding import columns_in, padded, padding_changes_nothing

WORK = 2**31
"""Numbers in the inputs times weights in the model, up to which batches are put together: what a core multiplies in the time
of some hundred calls. No large model has batches as small as that, so that it never costs memory that is missed."""
NUMBERS = 2**18
"""No more than that in the inputs, however small the model."""


def together(batches: Iterable[Batch], model: nn.Module, reading: Reading) -> Iterator[tuple[Batch, int]]:
    """Batches, and of how many of the loader's each is made: consecutive ones that are alike, or alike when padded.

    Never of more than there were before, so that who stops has read at most twice what was needed. No batch is asked for
    before it is needed, but for one that turns out not to go with those before.
    """
    for group in _groups(batches, model, reading):
        yield _joined(group, model), len(group)


def _groups(batches: Iterable[Batch], model: nn.Module, reading: Reading) -> Iterator[list[Batch]]:
    most = min(WORK / sum(p.numel() for p in model.parameters()), NUMBERS)
    group: list[Batch] = []
    before = 0
    for batch in batches:
        if group and not _alike(group[0], batch, model, reading):
            yield group
            before += len(group)
            group = []
        group.append(batch)
        if len(group) >= before or sum(map(_numbers_in, [*group, batch])) > most:
            yield group
            before += len(group)
            group = []
    if group:
        yield group


def _numbers_in(batch: Batch) -> int:
    args, kwargs = inputs_of(batch)
    return max((x.numel() for x in (*args, *kwargs.values()) if isinstance(x, Tensor)), default=0)


def _alike(first: Batch, second: Batch, model: nn.Module, reading: Reading) -> bool:
    one, other = columns_in(first), columns_in(second)
    if one and other and one != other and padding_changes_nothing(model, reading.likelihood):
        first, second = (padded(batch, max(one, other), model) for batch in (first, second))
    return type(first) is type(second) and _shapes(first) == _shapes(second) is not None


def _shapes(batch: Batch) -> Any:
    """Of one example's tensors, by name or place; None where something is not a tensor of one row an example."""
    parts, examples = _parts(batch), count_in(batch)
    if not all(isinstance(x, Tensor) and x.ndim > 0 and len(x) == examples for x in parts.values()):
        return None
    return {name: (x.shape[1:], x.dtype, x.device) for name, x in parts.items()}


def _parts(batch: Batch) -> Mapping[Any, Any]:
    if isinstance(batch, Mapping):
        return batch
    return dict(enumerate(batch)) if isinstance(batch, tuple | list) else {0: batch}


def _joined(group: list[Batch], model: nn.Module) -> Batch:
    if len(group) == 1:
        return group[0]
    if columns_in(group[0]) is not None:
        columns = max(batch["input_ids"].shape[-1] for batch in group)
        group = [padded(batch, columns, model) for batch in group]
    parts = {name: torch.cat([_parts(batch)[name] for batch in group]) for name in _parts(group[0])}
    if isinstance(group[0], Mapping):
        return parts
    return tuple(parts.values()) if isinstance(group[0], tuple | list) else parts[0]
