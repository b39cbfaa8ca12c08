"""Which rows of what a module sees belong to which example: a per-example gradient is wrong wherever this is.

A module must see one example after the other: the batch dimension first, or several rows an example that lie together
(multiple choice). Shapes mostly say so. Where they leave it in doubt (as many positions as examples, positions that are the
same for all) the model is asked with a single example, once for a model and its shapes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from .forward import count_examples, one_example

USE_VMAP = 'measure it with method="vmap"'

_ROWS_ALONE: WeakKeyDictionary[nn.Module, dict[tuple, int]] = WeakKeyDictionary()
"""Model -> (module, number of its call, shape of an output's row) -> the output's length for a single example."""


class Separation:
    """One forward pass, as seen by those who must tell its examples apart.

    Attributes:
        examples: in the batch.
    """

    def __init__(self, model: nn.Module, args: tuple[Tensor, ...], kwargs: Mapping[str, Any]) -> None:
        self.model, self.args, self.kwargs = model, args, kwargs
        self.examples = count_examples(args, kwargs)
        self.device = next(x.device for x in (*args, *kwargs.values()) if isinstance(x, Tensor))
        self._doubts: dict[str, list[tuple[GradientEdge, torch.Size, torch.Size]]] = {}

    def one_row_an_example(self, name: str, a: Tensor, output: Tensor) -> tuple[Tensor, Tensor]:
        """Rows broadcast over the batch (BERT's positions) become one an example; lengths that do not fit are refused."""
        if len(output) == 1 and len(a) == 1 and self.examples > 1:
            return a.expand(self.examples, *a.shape[1:]), output.expand(self.examples, *output.shape[1:])
        if output.ndim < 2 or len(output) % self.examples or len(a) != len(output):
            raise ValueError(self._not_separable(name, a.shape))
        return a, output

    def watch(self, name: str, edge: GradientEdge, a: Tensor, output: Tensor) -> None:
        """Notes a call whose shapes leave in doubt whose rows are whose."""
        # Another dimension may be the batch, or there is none (positions that are the same for all).
        elsewhere = output.ndim == 2 or any(n == 1 or n % self.examples == 0 for n in output.shape[1:-1])
        if self.examples > 1 and (elsewhere or len(output) > self.examples):
            self._doubts.setdefault(name, []).append((edge, a.shape, output.shape))

    def check(self, f: Tensor) -> None:
        """A doubtful module's output must be as much longer than that of one example as the batch is.

        Where one example has several rows, they must lie together: the first example's output may depend on no others.

        Raises:
            ValueError: it is not so; names the module.
        """
        known = _ROWS_ALONE.setdefault(self.model, {})
        doubts = {
            (name, i, shape[1:]): (edge, seen, shape)
            for name, calls in self._doubts.items()
            for i, (edge, seen, shape) in enumerate(calls)
        }
        if any(doubt not in known for doubt in doubts):
            alone = self._rows_alone()
            known.update({doubt: alone[doubt[0]][doubt[1]] for doubt in doubts})
        for doubt, (_, seen, shape) in doubts.items():
            if shape[0] != known[doubt] * self.examples:
                raise ValueError(self._not_separable(doubt[0], seen))
        self._check_together(f, [(doubt[0], *doubts[doubt][:2]) for doubt in doubts if known[doubt] > 1])

    def _rows_alone(self) -> dict[str, list[int]]:
        """How long the outputs of the doubtful modules are for one example, call by call."""
        rows: dict[str, list[int]] = {name: [] for name in self._doubts}
        handles = [
            self.model.get_submodule(name).register_forward_hook(
                lambda *call, name=name: rows[name].append(len(call[-1])), prepend=True
            )
            for name in rows
        ]
        try:
            with torch.no_grad():
                one = {key: one_example(x, 0) for key, x in self.kwargs.items()}
                self.model(*(one_example(x, 0) for x in self.args), **one)
        finally:
            for handle in handles:
                handle.remove()
        return rows

    def _check_together(self, f: Tensor, calls: list[tuple[str, GradientEdge, torch.Size]]) -> None:
        if not calls:
            return
        only_first = torch.zeros_like(f)
        only_first[0] = 1.0
        edges = [edge for _, edge, _ in calls]
        gradients = torch.autograd.grad(f, edges, only_first, retain_graph=True, allow_unused=True)
        for (name, _, seen), d in zip(calls, gradients, strict=True):
            if d is not None and d[len(d) // self.examples :].any():
                raise ValueError(self._not_separable(name, seen))

    def _not_separable(self, name: str, seen: torch.Size) -> str:
        return (
            f"module {name!r} sees {tuple(seen)} for a batch of {self.examples} examples, and not one example after the "
            f"other: its gradient is not separable by example here; {USE_VMAP}"
        )
