"""verify(): for those who doubt that their own architecture is measured right."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..layers import LayerChoice, resolve_layers
from ..likelihoods import Likelihood
from .batches import Batch, rows_of
from .methods import Method
from .trace import MethodName, fisher_trace


@dataclass(frozen=True)
class Verification:
    """What brute force and the estimator say of the same examples.

    Attributes:
        layers: names, bottom first.
        expected, found: (layers,) tr(F) over the examples.
        tolerance: the largest relative difference that is put down to rounding.
        rounding: and the largest absolute one: where gradients cancel to 0, there is nothing but rounding.
    """

    layers: tuple[str, ...]
    expected: Tensor
    found: Tensor
    tolerance: float
    rounding: float

    @property
    def wrong(self) -> tuple[str, ...]:
        """Layers that the estimator gets wrong."""
        off = (self.found - self.expected).abs() > self.tolerance * self.expected.abs() + self.rounding
        return tuple(layer for layer, is_off in zip(self.layers, off.tolist(), strict=True) if is_off)

    def __str__(self) -> str:
        width = max(len("layer"), *map(len, self.layers))
        rows = [f"{'layer':{width}}  brute force    estimator"]
        for layer, expected, found in zip(self.layers, self.expected.tolist(), self.found.tolist(), strict=True):
            rows.append(f"{layer:{width}}  {expected:11.5g}  {found:11.5g}  {'WRONG' if layer in self.wrong else 'ok'}")
        return "\n".join(rows)


def verify(
    model: nn.Module,
    batch: Batch,
    *,
    layers: LayerChoice = None,
    likelihood: Likelihood | str | None = None,
    method: MethodName | Method = "hooks",
    examples: int = 2,
    tolerance: float = 1e-3,
) -> Verification:
    """Measures the first examples of a batch twice: by `fisher_trace` with exact labels, and by brute force.

    Brute force is plain autograd in the weights, one example and one cotangent at a time, with no hook and no torch.func
    transform: it sees tied weights and weights that are used outside their module. Cost: examples x (C - 1) backward passes.

    Returns:
        Verification; print it for a table, layer by layer. `.wrong` names the layers that differ.

    Raises:
        ValueError: as `fisher_trace`.
    """
    few = rows_of(batch, range(examples))
    chosen = resolve_layers(model, layers)
    found = fisher_trace(
        model, [few], layers=chosen, likelihood=likelihood, labels="exact", method=method, check="never"
    )
    singles = [rows_of(few, range(i, i + 1)) for i in range(found.examples)]
    # With a single example the signed gradient of the batch is that example's gradient, whatever its sign.
    expected = fisher_trace(model, singles, layers=chosen, likelihood=likelihood, labels="exact", method="batch")
    eps = max(torch.finfo(p.dtype).eps for p in model.parameters() if p.is_floating_point())
    rounding = (1e3 * eps) ** 2 * float(expected.trace.max())
    return Verification(found.layers, expected.trace, found.trace, tolerance, rounding)
