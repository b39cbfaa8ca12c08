"""A check of every model, whatever its architecture: two examples of a batch, each alone, by plain autograd.

Hooks read a per-example gradient off the rows of what modules see. That is wrong, without a sign of it, where a model
mixes examples, orders their rows otherwise, or uses a weight outside its module's call. So the first time that a layer is
measured, two examples are run alone and differentiated in the weights themselves, and must have the norms that their rows
were given. Again in the second, fourth, eighth ... measurement of the model, as a gate may have been shut before (not in
half precision, whose rounding would refuse a right model sooner or later); and at once when modules or likelihood are
others. A layer whose gradient is zero, or drowned in the others' rounding, was not compared, and is asked again then or in
other company. What a model does with some inputs only stays unseen.

Cost: two plain forward and backward passes of one example each time.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..layers import Layers
from .batch import plain_squared
from .batches import one_example

USE_VMAP = 'measure it with method="vmap"'

Key = tuple[str, tuple[str, ...], Hashable]
"""A layer, its parameters, and how their modules were called."""


class Memory:
    """Of one model: what was compared.

    Attributes:
        compared: what was found right.
        tried: sets of layers that were compared together, some of them in vain.
        exact: whether rounding is small enough to compare again and again.
    """

    def __init__(self) -> None:
        self.compared: set[Key] = set()
        self.tried: set[frozenset[Key]] = set()
        self.exact = True
        self.structure: Hashable = None
        self.measurements = 0

    def begin(self, structure: Hashable) -> None:
        """A measurement; forgets what may no longer hold."""
        if structure != self.structure:
            self.measurements, self.structure = 0, structure
        self.measurements += 1
        power_of_two = not self.measurements & (self.measurements - 1)
        if self.measurements == 1 or (power_of_two and self.exact):
            self.compared, self.tried = set(), set()

    def knows(self, keys: frozenset[Key]) -> bool:
        """Whether there is nothing to learn from comparing these layers now."""
        return keys <= self.compared or keys in self.tried


_MEMORY: WeakKeyDictionary[nn.Module, Memory] = WeakKeyDictionary()


def before_measuring(model: nn.Module, likelihood: object) -> None:
    """To be called once a measurement."""
    _MEMORY.setdefault(model, Memory()).begin((type(likelihood), tuple(map(id, model.modules()))))


_left_to_the_caller = False


@contextmanager
def left_to_the_caller() -> Iterator[None]:
    """No check inside: for `verify`, which compares for itself and shows what it finds."""
    global _left_to_the_caller
    before, _left_to_the_caller = _left_to_the_caller, True
    try:
        yield
    finally:
        _left_to_the_caller = before


class PerExampleCheck:
    """The check of one model and batch.

    Args:
        model, args, kwargs: as for the estimator.
        layers: layer -> its parameters.
        outputs: what the model returns -> f.
        ways: how the modules of each layer were called, how often, and with how many dimensions.
        folded: whether what is right once need not be right again, so that every batch has to be checked.
    """

    def __init__(
        self,
        model: nn.Module,
        args: tuple[Tensor, ...],
        kwargs: Mapping[str, Any],
        layers: Layers,
        outputs: Callable[[Any], Tensor],
        ways: list[Hashable],
        folded: bool,
    ) -> None:
        self.model, self.args, self.kwargs, self.layers, self.outputs = model, args, kwargs, layers, outputs
        self.keys = [(name, tuple(own), way) for (name, own), way in zip(layers.items(), ways, strict=True)]
        self.memory = _MEMORY.setdefault(model, Memory())
        self.needed = not _left_to_the_caller and (folded or not self.memory.knows(frozenset(self.keys)))

    def check(self, cotangent: Tensor, norms: Tensor) -> None:
        """Compares rows of `norms` (examples, layers) with what their examples give alone: the largest, and a middle one.

        Neither the first nor the last: reversed or rotated rows keep one of those, or both, in their place.

        Raises:
            ValueError: they differ; names the layers.
        """
        middle = len(norms) // 2 + (len(norms) % 2 and len(norms) > 1)
        rows = {int(norms.sum(dim=1).argmax()), middle}
        told = [self._compare(norms[i], self._norms(i, cotangent[i : i + 1]), cotangent.dtype) for i in rows]
        compared = torch.stack(told).any(dim=0).tolist()
        self.memory.exact = torch.finfo(cotangent.dtype).bits >= 32
        self.memory.compared |= {key for key, could_tell in zip(self.keys, compared, strict=True) if could_tell}
        if bool(norms.any()):  # else the next batch may say something
            self.memory.tried.add(frozenset(self.keys))

    def _compare(self, found: Tensor, truth: Tensor, dtype: torch.dtype) -> Tensor:
        """(layers,): whether a difference would have been seen."""
        # An example alone is rounded otherwise than in a batch, and where gradients cancel there is nothing but rounding.
        share = {torch.float64: 1e-3, torch.float32: 1e-2}.get(dtype, 0.1)
        eps = torch.finfo(dtype).eps
        rounding = min((1e3 * eps) ** 2, 1e-3) * truth.max() + min((100 * eps) ** 2, 1e-6)
        off = (found - truth).abs() > share * truth + rounding
        if bool(off.any()):
            wrong = [name for name, is_off in zip(self.layers, off.tolist(), strict=True) if is_off]
            raise ValueError(
                f"layer(s) {', '.join(wrong)}: one example alone has another gradient than its rows in the batch give. "
                "Either modules see something else than one example after the other, or the model mixes examples, or it "
                "uses a weight outside its own module's call, as F.linear(x, layer.weight) does; "
                f"{USE_VMAP}, which is right for the first and the last"
            )
        return share * truth > rounding

    def _norms(self, i: int, cotangent: Tensor) -> Tensor:
        """(layers,): ||J_l^T c||^2 of example i, by plain autograd."""
        args = tuple(one_example(x, i) for x in self.args)
        kwargs = {key: one_example(x, i) for key, x in self.kwargs.items()}
        before = _random_states(cotangent.device)
        norms = plain_squared(self.model, args, kwargs, self.layers, self.outputs, lambda f: [cotangent])
        if any(not torch.equal(x, y) for x, y in zip(before, _random_states(cotangent.device), strict=True)):
            raise ValueError(
                "the model draws random numbers in evaluation mode (a dropout with training=True?): every reading would be "
                "of another model"
            )
        return norms[0]


def _random_states(device: torch.device) -> list[Tensor]:
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]
