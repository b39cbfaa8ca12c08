"""Whether columns that hold only padding are neutral: whether no number depends on them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..labels import widen
from ..likelihoods import LIKELIHOODS
from .batches import Batch, ModelCall, rows_of
from .plain import PlainPass

MOST_TRIED = 8


class NeutralPadding:
    """Tries on the model itself whether columns that no example attends to change a measurement, and remembers it.

    A model's class does not tell: gates and heads may average over positions, prompts may come before the text, hooks may do
    anything. And logits alone do not tell either, where a fresh adapter adds nothing to them yet. So a few texts of a batch,
    from the shortest to the longest, are pulled back with the columns and without, and must have the same cotangents and
    together the same squared gradient in every layer. One text could be the same by chance: attention to a single token
    is the same from every position, and a maximum may not be at the padding.

    What was tried holds for batches with the same keys, and numbers of columns between those that were tried: rotary
    frequencies or sparse attention may set in with the length. Batches of a model that fails are measured as they are.

    Args:
        call_of: a batch -> the call of the model that it becomes.

    Cost: two plain forward and backward passes of up to 8 examples, seldom more than once a measurement.
    """

    def __init__(self, call_of: Callable[[Batch], ModelCall]) -> None:
        self.call_of = call_of
        self._tried: dict[frozenset[str], tuple[int, int]] = {}
        self._changes: set[frozenset[str]] = set()

    def __call__(self, short: Batch, long: Batch) -> bool:
        """Whether two batches that differ in columns of padding on the right alone are one to the model."""
        keys, few, many = frozenset(short), short["input_ids"].shape[-1], long["input_ids"].shape[-1]
        if keys in self._changes:
            return False
        low, high = self._tried.get(keys, (few, few))
        if low <= few and many <= high:
            return True
        rows = _of_all_lengths(long["attention_mask"])
        if not self._same(rows_of(short, rows), rows_of(long, rows)):
            self._changes.add(keys)
            return False
        overlap = few <= high and low <= many
        self._tried[keys] = (min(low, few), max(high, many)) if overlap else (few, many)
        return True

    def _same(self, short: Batch, long: Batch) -> bool:
        if any(hasattr(module, "set_attention_type") for module in self.call_of(short).model.modules):
            return False  # BigBird's, which change to other attention for good when they read a short text
        try:
            measured, expected = self._pull_back(short), self._pull_back(long)
        except Exception:  # a fixed length, for one; where the batch as it is fails too, the measurement says so
            return False
        return measured is not None and expected is not None and _agree(*measured, *expected)

    def _pull_back(self, batch: Batch) -> tuple[Tensor, Tensor] | None:
        """A cotangent at the logits, and the squared gradients (layers,) that it gives; None for an unknown likelihood."""
        call = self.call_of(batch)
        forward, likelihood = PlainPass(call), call.reader.likelihood
        if likelihood is None or type(likelihood) not in LIKELIHOODS.values():
            return None
        f = widen(forward.logits.detach())
        cotangent = likelihood.mixed(f, torch.ones_like(f), batch)
        return cotangent.to(forward.logits.dtype), forward.squared_gradients([cotangent])[0, 0]


def _of_all_lengths(mask: Tensor) -> Tensor:
    """Up to `MOST_TRIED` rows, from the shortest text to the longest."""
    order = mask.flatten(1).sum(dim=1).argsort()
    return order[torch.linspace(0, len(order) - 1, min(MOST_TRIED, len(order)), device=order.device).long()]


def _agree(c: Tensor, norms: Tensor, c_long: Tensor, norms_long: Tensor) -> bool:
    """Up to rounding; further positions of the longer cotangent must be 0. Where all is 0, nothing is known."""
    if c.ndim != c_long.ndim or (c.ndim == 2 and c.shape != c_long.shape):
        return False
    if c.shape != c_long.shape:
        c = torch.nn.functional.pad(c, (0, 0, 0, c_long.shape[1] - c.shape[1]))
    if c.shape != c_long.shape:
        return False
    share = {torch.float64: 1e-6, torch.float32: 1e-3}.get(c.dtype, 8 * torch.finfo(c.dtype).eps)
    drowned = (1e3 * torch.finfo(c.dtype).eps) ** 2
    same = (c - c_long).abs().max() <= share * c.abs().max()
    off = (norms - norms_long).abs() > share * norms + min(drowned, 1e-3) * norms.max()
    return bool(same & ~off.any() & norms.any())
