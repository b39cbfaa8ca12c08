"""sampling="importance": a forward pass over all inputs, the backward pass over those that matter.

In a confident model few inputs hold nearly all of tr(F), and a forward pass tells which: the head's own trace,
u = tr(S) (1 + ||h||^2) with h the head's input, is known from it alone. Each input is kept for the backward pass by a coin
of its own, with probability pi that grows with u, and weighted back (Horvitz-Thompson), as a correction of what u says:

    z = beta u + [kept] (g - beta u) / pi,        E[z] = g  for every input,

whatever u, pi and beta are, as long as they are fixed before the coin is tossed: they come from this input's forward pass
and from earlier batches. The rows z are uncorrelated given the past, so their mean and standard error are taken as those of
any other rows. Poisson sampling: Särndal, Swensson, Wretman 1992, ch. 3.5; the difference estimator: ch. 6.3; the share
drawn evenly, which bounds the weights: Hesterberg 1995 (defensive mixtures).

Unbiased. Variance of one row: Var(g) + E[(1 - pi) / pi (g - beta u)^2], never below that of `sampling="all"`: it pays where
the forward pass is much cheaper than the rest and u says nearly everything. Cost: a forward pass for every input, and the
estimator's own for the kept ones (a quarter).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .forward import Batch, count_examples, rows_of
from .measure import Measure, Rows

KEPT = 0.25
"""Share of the inputs that see a backward pass, on average."""
EVEN = 0.1
"""Share of pi that is the same for all inputs."""


class Importance:
    """A batch -> one unbiased row an example, most of them by their forward pass alone.

    Args:
        measure: what knows the model, and how its outputs are read.
        rows: takes the norms of those that are kept.
    """

    def __init__(self, measure: Measure, rows: Rows) -> None:
        self.measure, self.rows = measure, rows
        self.sum_u = torch.zeros((), dtype=torch.float64)
        self.sum_z = torch.zeros(len(measure.layers), dtype=torch.float64)
        self.examples = 0

    def __call__(self, batch: Batch) -> Tensor:
        u = self._proxies(batch).cpu()
        z = self._rows_by(batch, u)
        self.sum_u += u.sum()
        self.sum_z += z.sum(dim=0)
        self.examples += len(u)
        return z

    def _rows_by(self, batch: Batch, u: Tensor) -> Tensor:
        if not self.examples or not self.sum_u > 0:
            return self.rows(batch).cpu()  # of the first batch everything is measured: it says what u is worth
        pi = (KEPT * ((1 - EVEN) * u * self.examples / self.sum_u + EVEN)).clamp(max=1.0)
        generator = self.measure.generator
        coin = torch.rand(pi.shape, generator=generator, device=generator.device, dtype=torch.float64).cpu()
        kept = (coin < pi).nonzero()[:, 0]
        z = u[:, None] * (self.sum_z / self.sum_u)
        if len(kept):
            z[kept] += (self.rows(rows_of(batch, kept)).cpu() - z[kept]) / pi[kept, None]
        return z

    @torch.no_grad()
    def _proxies(self, batch: Batch) -> Tensor:
        """The head's own trace, (examples,); tr(S) alone where the logits are not a Linear's of one row an example."""
        batch, args, kwargs = self.measure.prepared(batch)
        examples = count_examples(args, kwargs)
        with _last_linear(self.measure.model) as last:
            f = self.measure.reading(self.measure.model(*args, **kwargs))
        likelihood = self.measure.reading.likelihood
        assert likelihood is not None
        likelihood.check(f, examples)
        u = likelihood.spread(f, batch)
        h, out = last.get("input"), last.get("output")
        if h is not None and out is not None and h.ndim == 2 and out.data_ptr() == f.data_ptr():
            u = u * (1 + h.double().square().sum(dim=1))
        return u


@contextmanager
def _last_linear(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Input and output of the Linear that is called last."""
    last: dict[str, Tensor] = {}

    def keep(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        if args:
            last.update(input=args[0], output=output)

    handles = [m.register_forward_hook(keep) for m in model.modules() if isinstance(m, nn.Linear)]
    try:
        yield last
    finally:
        for handle in handles:
            handle.remove()
