"""Whose row is it? The example that each row of a module belongs to, where rows are not one example after the other.

Experts see the tokens that were routed to them, and torch's transformer layers see the sequence first. A second backward
pass tells: its cotangent is the first's with each example's part multiplied by a tag of its own. What comes to a row is then
the same gradient times the tag of its example, whatever lies between, if the row belongs to one example alone.

Cost: one backward pass more for each cotangent, where there are such modules; nothing elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .methods import NotSeparableError

_OCTAVES = {torch.float16: 8.0}
"""log2 of the largest tag: the tagged gradient must not overflow. 60 for types that have float32's range."""


@dataclass
class RowOrder:
    """What a measurement has learnt of the rows that modules see.

    Attributes:
        expands: whether a row that all examples share may become one an example: not once a model did not go on with those.
        sorted: whether several rows an example are one example after the other; None before any were seen.
        ragged: modules that once saw another number of rows than there were examples, or a multiple of it.
        idle: modules without a call whose weights nobody else reads either.
    """

    expands: bool = True
    sorted: bool | None = None
    ragged: set[str] = field(default_factory=set)
    idle: set[str] = field(default_factory=set)


def is_sorted(owner: Tensor, examples: int) -> bool:
    """Whether rows are as many for each example, one example after the other."""
    if len(owner) % examples:
        return False
    expected = torch.arange(examples, device=owner.device).repeat_interleave(len(owner) // examples)
    return bool(((owner == expected) | (owner < 0)).all())


def tags(examples: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(examples,) factors, each the same multiple of the one before: in powers they are easier told apart than in steps."""
    octaves = _OCTAVES.get(dtype, 60.0)
    if examples - 1 <= octaves:
        octaves = octaves // max(1, examples - 1) * (examples - 1)  # powers of two, which rounding does not change
    return torch.logspace(0, octaves, examples, base=2.0, dtype=torch.float64, device=device)


def examples_of_rows(d: Tensor, tagged: Tensor, factors: Tensor, name: str) -> Tensor:
    """(rows,) the example of each row; -1 for rows without a gradient, which are anybody's.

    Args:
        d, tagged: (rows, ...) the gradient at a module's output, and the one whose cotangent was tagged.
        factors: the tags.
        name: of the module.

    Raises:
        NotSeparableError: some row has the gradient of several examples, or rounding hides whose it is.
    """
    if not len(d):
        return torch.zeros(0, dtype=torch.long, device=d.device)
    tolerance = 1e-3 if torch.finfo(d.dtype).bits >= 32 else 5e-2
    d, tagged = d.flatten(1).double(), tagged.flatten(1).double()
    size = d.abs().amax(dim=1, keepdim=True)
    empty = size[:, 0] == 0
    unit = d / size.masked_fill(size == 0, 1.0)
    ratio = torch.linalg.vecdot(tagged / size.masked_fill(size == 0, 1.0), unit) / torch.linalg.vecdot(unit, unit)
    step = factors[1:2].log2().clamp(min=4 * tolerance) if len(factors) > 1 else factors
    number = (ratio.log2() / step).nan_to_num(0.0).round().clamp(0, len(factors) - 1).long()
    apart = (tagged - factors[number, None] * d).abs().amax(dim=1) > tolerance * tagged.abs().amax(dim=1)
    if bool(apart.any()):
        raise NotSeparableError(f"module {name!r} has rows that are several examples' at once")
    return number.masked_fill(empty, -1)


def regroup(x: Tensor, owner: Tensor, examples: int) -> Tensor:
    """(rows, ...) -> (examples, most rows of one example, ...): the rows of each, and zeros."""
    kept = owner >= 0
    x, owner = x[kept], owner[kept]
    order = owner.argsort(stable=True)
    counts = torch.bincount(owner, minlength=examples)
    place = torch.arange(len(owner), device=x.device) - (counts.cumsum(0) - counts)[owner[order]]
    grouped = x.new_zeros(examples, max(1, int(counts.max())), *x.shape[1:])
    grouped[owner[order], place] = x[order]
    return grouped
