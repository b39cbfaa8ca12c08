"""The check of a method against plain autograd, and of a batch against its examples alone.

Hooks read a per-example gradient off the rows of what modules see. That is wrong, without a sign of it, where a model mixes
examples, orders their rows otherwise, or uses a weight outside its module's call. So

- the logits of each example alone, of at most `MOST_ALONE` examples, must be those that it has in the batch: an exit that
  the whole batch takes together, experts whose capacity the batch shares, or positions that are cut to the longest example
  show there, and so does a model that draws random numbers;
- two examples alone are differentiated in the weights themselves, and must have the norms that their rows were given;
- pulling back must be linear in the cotangent: a backward hook that clips or rounds is not.

When: in the first batch of a measurement ("first"; "brief" with the logits of 4 examples alone, for a model that was checked
before it was trained further), in every batch ("always"), or not at all ("never"). "first" also
checks a later batch that has other keys, dimensions or types, or whose modules are called otherwise; where a module sees
several rows an example, it compares two gradients in every batch, because the owner of a row can change. A layer is not
compared where its gradient is zero, or drowned in the others' rounding. What happens only for the inputs of a later batch
can go undetected.

Cost: a forward pass for each of up to 32 examples ("brief": 4), one at a time; two forward and three backward passes of one
example. Fewer than 32 would miss faults: of 3,000 batches that left by an exit all their examples must agree to, 16 examples
missed 58, and 4 missed 594; capacities and trimmed lengths show in 6 examples, and but for 13 and 7 of 3,000 in 4.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from ..layers import Layers
from ..likelihoods import to_unit_size
from .batches import ModelCall
from .methods import USE_LOOP, DisagreementError, ForwardPass
from .plain import PlainPass, one_example_alone, run_alone

CheckName = Literal["first", "brief", "always", "never"]
CHECKS = get_args(CheckName)

MOST_ALONE = 32
"""Examples whose logits are compared; of a larger batch they are spread evenly over it."""
MOST_ALONE_IN_BRIEF = 4

STEEPER = -4.0
"""Times which a cotangent is pulled back to see whether that is linear. A power of two, small enough for half precision."""

Key = tuple[Hashable, str, Hashable]
"""The form of a batch, a layer, and how its modules were called."""


def check_of_repeat(measurement: int) -> CheckName:
    """ "first" in the 1st measurement of a model that trains, "brief" in the 2nd, 4th, 8th, ..., else "never".

    Training can open a gate that was shut when the model was checked before; a check each time would cost too much.
    """
    if measurement & (measurement - 1):
        return "never"
    return "first" if measurement == 1 else "brief"


class PerExampleCheck:
    """What of one measurement was compared with plain autograd.

    Args:
        when: "first", "brief", "always" or "never".
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
        self._forms: set[Hashable] = set()  # of batches whose logits were compared

    @property
    def compared_layers(self) -> tuple[str, ...]:
        """Layers that were compared at least once, bottom first."""
        layers = {layer for _, layer, _ in self.compared}
        return tuple(layer for layer in self.layers if layer in layers)

    def is_due(self, call: ModelCall, forward: ForwardPass) -> bool:
        """Whether this batch is to be compared."""
        if self.when in ("always", "never"):
            return self.when == "always"
        keys = frozenset(self._keys(call, forward))
        return forward.folded or not (keys <= self.compared or keys in self._tried)

    def compare(self, call: ModelCall, forward: ForwardPass, cotangents: Sequence[Tensor], norms: Tensor) -> None:
        """Compares a batch with its examples alone.

        Two rows of `norms` (cotangents, examples, layers) are compared, each for the cotangent that gave it most: the
        largest, and the middle one. A reversed or rotated batch keeps its middle, its first or its last row in place, but
        not the largest too, unless that is one of them.

        Raises:
            ValueError: the logits differ, or the model draws random numbers.
            DisagreementError: gradients differ; names the layers.
        """
        unit, measured = _largest_cotangents(cotangents, norms)
        unit = unit.to(forward.logits.dtype)
        largest, middle = int(measured.sum(dim=1).argmax()), len(measured) // 2
        alone = {i: run_alone(call, i) for i in {largest, middle}}
        truth = {i: plain.squared_gradient(unit[i : i + 1], last=False) for i, plain in alone.items()}
        form = _form(call)
        if self.when == "always" or form not in self._forms:
            _compare_logits(call, forward.logits, MOST_ALONE_IN_BRIEF if self.when == "brief" else MOST_ALONE)
            self._require_linear(alone[largest], unit[largest : largest + 1], truth[largest])
            self._forms.add(form)
        compared = [self._compare_row(measured[i], truth[i], unit.dtype) for i in truth]
        keys = self._keys(call, forward)
        could_tell = torch.stack(compared).any(dim=0).tolist()
        self.compared |= {key for key, told in zip(keys, could_tell, strict=True) if told}
        if bool(norms.any()):  # else the next batch may say something
            self._tried.add(frozenset(keys))

    def _keys(self, call: ModelCall, forward: ForwardPass) -> list[Key]:
        form = _form(call)
        return [(form, layer, signature) for layer, signature in zip(self.layers, forward.signatures, strict=True)]

    def _compare_row(self, measured: Tensor, truth: Tensor, dtype: torch.dtype) -> Tensor:
        """(layers,): whether a difference would have been seen."""
        could_tell, wrong = self._differing(measured, truth, dtype)
        if wrong:
            raise DisagreementError(
                f"layer(s) {', '.join(wrong)}: one example alone has another gradient than its rows in the batch give. "
                "Either modules see something else than one example after the other, or the model mixes examples, or it "
                "uses a weight outside its own module's call, as F.linear(x, layer.weight) does, or a rule of your own is "
                f"wrong; {USE_LOOP}, which is right for all but mixed examples{_in_half_precision(dtype)}"
            )
        return could_tell

    def _require_linear(self, alone: PlainPass, unit: Tensor, once: Tensor) -> None:
        steeper = alone.squared_gradient(STEEPER * unit, last=True) / STEEPER**2
        _, wrong = self._differing(steeper, once, unit.dtype)
        if wrong:
            raise ValueError(
                f"layer(s) {', '.join(wrong)}: {-STEEPER:g} times the gradient at the logits does not give {-STEEPER:g} "
                "times the gradient there, so it is not the derivative of the model's output. A backward hook "
                "(register_hook, register_full_backward_hook) or a custom autograd function clips, rounds or normalises "
                f"gradients: take it off for the measurement{_in_half_precision(unit.dtype)}"
            )

    def _differing(self, measured: Tensor, truth: Tensor, dtype: torch.dtype) -> tuple[Tensor, list[str]]:
        """(layers,) whether a difference would be seen, and the layers that differ."""
        # An example alone is rounded otherwise than in a batch, and where gradients cancel there is nothing but rounding.
        share = {torch.float64: 1e-3, torch.float32: 1e-2}.get(dtype, 0.1)
        eps = torch.finfo(dtype).eps
        rounding = min((1e3 * eps) ** 2, 1e-3) * truth.max() + min((100 * eps) ** 2, 1e-6)
        off = ((measured - truth).abs() > share * truth + rounding).tolist()
        return share * truth > rounding, [name for name, is_off in zip(self.layers, off, strict=True) if is_off]


def _in_half_precision(dtype: torch.dtype) -> str:
    if torch.finfo(dtype).bits >= 32:
        return ""
    return '. In half precision rounding alone may do it: measure in float32, or without the check (check="never")'


def _form(call: ModelCall) -> Hashable:
    """What a model may branch on: which inputs there are, their dimensions and types, and flags."""
    inputs = (*enumerate(call.args), *sorted(call.kwargs.items()))
    return tuple((name, x.ndim, x.dtype) if isinstance(x, Tensor) else (name, _flag(x)) for name, x in inputs)


def _flag(x: object) -> Hashable:
    return x if isinstance(x, str | int | float | None) else type(x).__name__


def _largest_cotangents(cotangents: Sequence[Tensor], norms: Tensor) -> tuple[Tensor, Tensor]:
    """For each example the cotangent that gave it most, at unit size, and its squared norms (examples, layers) at that."""
    each = norms.sum(dim=2).argmax(dim=0)
    unit, size = to_unit_size(torch.stack([cotangents[k][i] for i, k in enumerate(each.tolist())]))
    return unit, norms[each, torch.arange(len(each), device=each.device)] / size.square()[:, None]


def _compare_logits(call: ModelCall, together: Tensor, most: int) -> None:
    """Raises ValueError where an example alone has other logits than in its batch."""
    together = together.detach()
    rows = torch.linspace(0, call.examples - 1, min(call.examples, most)).long().tolist()
    apart = torch.stack([_distance(together[i : i + 1], _logits_alone(call, i)) for i in rows])
    scale = torch.nan_to_num(together.abs(), posinf=0.0).amax()
    off = ~(apart <= _rounding_of(together) * scale)
    if not bool(off.any()):
        return
    row = rows[int(off.nonzero()[0])]
    if _distance(_logits_alone(call, row), _logits_alone(call, row)) > 1e-5 * scale:
        raise ValueError(
            "the model draws random numbers in evaluation mode (a dropout with training=True?): it gives other logits each "
            "time, and every reading would be of another model"
        )
    raise ValueError(
        f"one example alone (number {row} of the batch) has other logits than in its batch: the model mixes examples, by "
        "statistics, attention, experts or an early exit that a batch has in common, or by padding that counts, and then "
        "there is no gradient of one example. Measure it in batches of one example, which have nothing to mix, or give all "
        f"examples one length if it is the padding{_in_half_precision(together.dtype)}"
    )


def _logits_alone(call: ModelCall, i: int) -> Tensor:
    with torch.no_grad(), one_example_alone(call):
        return call.example(i).logits()


def _distance(one: Tensor, other: Tensor) -> Tensor:
    """The largest difference between two outputs; infinite where their shapes differ, 0 between equal infinities."""
    if one.shape != other.shape:
        return torch.full((), torch.inf, device=one.device)
    return torch.where(one == other, 0.0, (one - other).abs()).amax().float()


def _rounding_of(logits: Tensor) -> float:
    """What share of the logits rounding may be: an example alone takes other kernels than a batch."""
    half = logits.dtype in (torch.float16, torch.bfloat16) or torch.is_autocast_enabled(logits.device.type)
    if half:
        return 0.1
    return 1e-2 if logits.is_cuda and logits.dtype == torch.float32 else 1e-3  # a GPU may multiply in TF32
