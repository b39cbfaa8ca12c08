"""The check that no architecture escapes: two examples of the first batch, each alone, by plain autograd.

Hooks read a per-example gradient off the rows of what modules see. That is wrong, without a sign of it, where a model
mixes examples, orders their rows otherwise, or uses a weight outside its module's call. So the first time that a model is
measured, two of its examples are run alone and differentiated in the weights themselves, and must have the norms that their
rows were given. Cost: two plain forward and backward passes of one example, once for a model, the layers and the way their
modules are called.
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
from .forward import one_example

USE_VMAP = 'measure it with method="vmap"'

Checked = tuple[frozenset[Hashable], frozenset[tuple[str, tuple[str, ...]]]]
"""How modules were called, and the layers whose norms were compared then."""

_CHECKED: WeakKeyDictionary[nn.Module, set[Checked]] = WeakKeyDictionary()
"""Model -> what was found right. It covers fewer of the modules and layers: each one is listened to for itself."""

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


class Alone:
    """The check of one model and batch.

    Args:
        model, args, kwargs: as for the estimator.
        layers: layer -> its parameters.
        outputs: what the model returns -> f.
        way: how each module was called, how often, and with how many dimensions: what is right once is right again.
        folded: whether that is not so, and every batch has to be checked.
    """

    def __init__(
        self,
        model: nn.Module,
        args: tuple[Tensor, ...],
        kwargs: Mapping[str, Any],
        layers: Layers,
        outputs: Callable[[Any], Tensor],
        way: frozenset[Hashable],
        folded: bool,
    ) -> None:
        self.model, self.args, self.kwargs, self.layers, self.outputs = model, args, kwargs, layers, outputs
        self.checks = way, frozenset((name, tuple(parameters)) for name, parameters in layers.items())
        self.needed = not _left_to_the_caller and (folded or not self._known)

    @property
    def _known(self) -> bool:
        way, layers = self.checks
        return any(way <= calls and layers <= compared for calls, compared in _CHECKED.get(self.model, ()))

    def check(self, cotangent: Tensor, norms: Tensor) -> None:
        """Compares rows of `norms` (examples, layers) with what their examples give alone: the largest, and a middle one.

        Neither the first nor the last: reversed or rotated rows keep one of those, or both, in their place.

        Raises:
            ValueError: they differ; names the layers.
        """
        middle = len(norms) // 2 + (len(norms) % 2 and len(norms) > 1)
        for i in {int(norms.sum(dim=1).argmax()), middle}:
            self._check(norms[i], self._norms(i, cotangent[i : i + 1]), cotangent.dtype)
        if bool(norms.any()):  # where nothing has a gradient, nothing was compared
            _CHECKED.setdefault(self.model, set()).add(self.checks)

    def _check(self, found: Tensor, truth: Tensor, dtype: torch.dtype) -> None:
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
