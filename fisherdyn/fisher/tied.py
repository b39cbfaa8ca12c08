"""A weight that several modules read: its gradient is the sum of theirs, and the sum comes before the square.

A language model's embedding and head share one weight. With the embedding's gradient G_1, a few rows, and the head's
G_2 = sum_s e_s a_s^T,

    ||G_1 + G_2||^2 = ||G_1||^2 + ||G_2||^2 + 2 sum_j g_j . (sum_s e_s[token_j] a_s),

where g_j is the sum of the gradients that came to token j. Neither G_2 nor any (tokens, vocabulary) product is formed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .rules import (
    CANCELLED,
    Rule,
    budget_of,
    elementwise,
    lookup,
    outer,
    outer_weight,
    square_sum,
    sum_by_token,
    without_padding,
)


@dataclass(frozen=True)
class Use:
    """One module's use of a parameter: all its inputs and output gradients, (examples, positions, ...)."""

    module: nn.Module
    rule: Rule
    short: str
    a: Tensor
    d: Tensor

    @staticmethod
    def known(module: nn.Module, rule: Rule | None) -> bool:
        """Whether its gradients can be added to those of others."""
        return rule is not None and rule.norms in (outer, elementwise, lookup) and getattr(module, "groups", 1) == 1

    @property
    def kind(self) -> str:
        if self.rule.norms is lookup:
            return "lookup"
        return "outer" if self.rule.norms is outer and self.short == "weight" else "vector"

    def vector(self) -> Tensor:
        """(examples, ...): the gradient of a bias or a scale."""
        scaled = self.d * self.a if self.short == "weight" else self.d
        return scaled.sum(dim=1).flatten(1)

    def factors(self) -> tuple[Tensor, Tensor]:
        """(examples, positions, rows of the weight), (examples, positions, columns), whose products add to the gradient."""
        a, d = self.a[:, :, 0], self.d[:, :, 0]
        return (a, d) if type(self.module).__name__ == "Conv1D" else (d, a)


class TiedWeight:
    """A parameter whose norm is taken when all modules that read it have had their gradients.

    Attributes:
        layer: number of its layer.
        name: of the parameter.
    """

    def __init__(self, layer: int, name: str) -> None:
        self.layer, self.name = layer, name
        self._uses: list[Use] = []

    @property
    def used(self) -> bool:
        return bool(self._uses)

    def begin_backward(self) -> None:
        self._uses = []

    def add(self, use: Use) -> None:
        self._uses.append(use)

    def squared_norms(self) -> Tensor:
        """(examples,) ||sum of the gradients of all uses||^2. The uses are let go."""
        uses, self._uses = self._uses, []
        vectors = [use.vector() for use in uses if use.kind == "vector"]
        if vectors:
            return square_sum(torch.stack(vectors).sum(dim=0))
        products = [use.factors() for use in uses if use.kind == "outer"]
        lookups = [
            (use.a, without_padding(use.module, use.a, use.d)) for use in uses if isinstance(use.module, nn.Embedding)
        ]
        if not lookups:
            return _of_products(*_joined(products))
        tokens, sums = sum_by_token(*_joined(lookups))
        return _of_both(tokens, sums, *_joined(products)) if products else square_sum(sums)


def _joined(pairs: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    first, second = zip(*pairs, strict=True)
    return torch.cat(first, dim=1), torch.cat(second, dim=1)


def _of_products(rows: Tensor, columns: Tensor) -> Tensor:
    return outer_weight(columns[:, :, None], rows[:, :, None])


def _of_both(tokens: Tensor, sums: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Of lookups and products together; by the gradient itself for examples in which they cancel."""
    apart = square_sum(sums) + _of_products(rows, columns)
    chunk = max(1, budget_of(sums) // (tokens.shape[1] * (rows.shape[1] + columns.shape[2])))
    parts = (x.split(chunk) for x in (tokens, sums, rows, columns))
    norms = apart + 2 * torch.cat([_inner_products(*part) for part in zip(*parts, strict=True)])
    cancelled = norms < CANCELLED * apart
    if cancelled.any():
        for i in cancelled.nonzero()[:, 0].tolist():
            gradient = (rows[i].mT @ columns[i]).index_add_(0, tokens[i], sums[i])
            norms[i] = square_sum(gradient[None])[0]
    return norms


def _inner_products(tokens: Tensor, sums: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """sum_j g_j . (sum_s e_s[token_j] a_s), example by example."""
    seen = rows.gather(2, tokens[:, None].expand(-1, rows.shape[1], -1))
    return (sums * (seen.mT @ columns)).sum(dim=(1, 2))
