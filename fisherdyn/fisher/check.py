"""The check of a method against plain autograd: two examples of a batch, each run alone.

Hooks read a per-example gradient off the rows of what modules see. That is wrong, without a sign of it, where a model mixes
examples, orders their rows otherwise, or uses a weight outside its module's call. So two examples are run alone and
differentiated in the weights themselves, and must have the norms that their rows were given.

When: in the first batch of a measurement ("first"), in every batch ("always"), or not at all ("never"). "first" also
checks a later batch whose modules are called otherwise, and every batch where a module sees several rows an example, because
the owner of a row can change. A layer is not compared where its gradient is zero, or drowned in the others' rounding.
Input-dependent behaviour can go undetected.

Cost: two plain forward and backward passes of one example each.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Literal

import torch
from torch import Tensor

from ..layers import Layers
from ..likelihoods import to_unit_size
from .batches import ModelCall
from .methods import USE_LOOP, DisagreementError, ForwardPass
from .plain import run_alone

CheckName = Literal["first", "always", "never"]
CHECKS = ("first", "always", "never")


Key = tuple[str, Hashable]
"""A layer, and how its modules were called."""


def check_of_repeat(measurement: int) -> CheckName:
    """ "first" in the 1st, 2nd, 4th, 8th, ... measurement of a model that trains, else "never".

    Training can open a gate that was shut when the model was checked before; a check each time would cost too much.
    """
    return "first" if measurement & (measurement - 1) == 0 else "never"


class PerExampleCheck:
    """What of one measurement was compared with plain autograd.

    Args:
        when: "first", "always" or "never".
        layers: layer -> its parameters.

    Attributes:
        compared: keys of which the comparison would have shown a difference.
    """

    def __init__(self, when: str, layers: Layers) -> None:
        if when not in CHECKS:
            raise ValueError(f"unknown check={when!r}: choose one of {', '.join(CHECKS)}")
        self.when, self.layers = when, layers
        self.compared: set[Key] = set()
        self._tried: set[frozenset[Key]] = set()  # sets of keys that were compared together, some of them in vain

    @property
    def compared_layers(self) -> tuple[str, ...]:
        """Layers that were compared at least once, bottom first."""
        layers = {layer for layer, _ in self.compared}
        return tuple(layer for layer in self.layers if layer in layers)

    def is_due(self, forward: ForwardPass) -> bool:
        """Whether this batch is to be compared."""
        if self.when != "first":
            return self.when == "always"
        keys = frozenset(self._keys(forward))
        return forward.folded or not (keys <= self.compared or keys in self._tried)

    def compare(self, call: ModelCall, forward: ForwardPass, cotangent: Tensor, norms: Tensor) -> None:
        """Compares rows of `norms` (examples, layers) with what their examples give alone: the largest, and a middle one.

        Neither the first nor the last: reversed or rotated rows keep one of those, or both, in their place.

        Raises:
            DisagreementError: they differ; names the layers.
        """
        middle = len(norms) // 2 + (len(norms) % 2 and len(norms) > 1)
        unit, size = to_unit_size(cotangent)
        unit = unit.to(forward.logits.dtype)
        unit_norms = norms / size.square()[:, None]
        rows = {int(unit_norms.sum(dim=1).argmax()), middle}
        compared = [self._compare_row(unit_norms[i], _norms_alone(call, i, unit[i : i + 1]), unit.dtype) for i in rows]
        keys = self._keys(forward)
        could_tell = torch.stack(compared).any(dim=0).tolist()
        self.compared |= {key for key, told in zip(keys, could_tell, strict=True) if told}
        if bool(norms.any()):  # else the next batch may say something
            self._tried.add(frozenset(keys))

    def _keys(self, forward: ForwardPass) -> list[Key]:
        return list(zip(self.layers, forward.signatures, strict=True))

    def _compare_row(self, measured: Tensor, truth: Tensor, dtype: torch.dtype) -> Tensor:
        """(layers,): whether a difference would have been seen."""
        # An example alone is rounded otherwise than in a batch, and where gradients cancel there is nothing but rounding.
        share = {torch.float64: 1e-3, torch.float32: 1e-2}.get(dtype, 0.1)
        eps = torch.finfo(dtype).eps
        rounding = min((1e3 * eps) ** 2, 1e-3) * truth.max() + min((100 * eps) ** 2, 1e-6)
        off = (measured - truth).abs() > share * truth + rounding
        if bool(off.any()):
            wrong = [name for name, is_off in zip(self.layers, off.tolist(), strict=True) if is_off]
            half = (
                ""
                if torch.finfo(dtype).bits >= 32
                else (
                    '. In half precision rounding alone may do it: measure in float32, or without the check (check="never")'
                )
            )
            raise DisagreementError(
                f"layer(s) {', '.join(wrong)}: one example alone has another gradient than its rows in the batch give. "
                "Either modules see something else than one example after the other, or the model mixes examples, or it "
                "uses a weight outside its own module's call, as F.linear(x, layer.weight) does; "
                f"{USE_LOOP}, which is right for the first and the last{half}"
            )
        return share * truth > rounding


def _norms_alone(call: ModelCall, i: int, cotangent: Tensor) -> Tensor:
    """(layers,): ||J_l^T c||^2 of example i, by plain autograd."""
    before = _random_states(cotangent.device)
    norms = run_alone(call, i).squared_gradients([cotangent])
    if any(not torch.equal(x, y) for x, y in zip(before, _random_states(cotangent.device), strict=True)):
        raise ValueError(
            "the model draws random numbers in evaluation mode (a dropout with training=True?): every reading would be "
            "of another model"
        )
    return norms[0, 0]


def _random_states(device: torch.device) -> list[Tensor]:
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]
