"""Methods: ways to take squared gradient norms of a batch, each an object that carries its name and what it can do.

A method of your own is a subclass of `Method` with a name and `forward`; pass an instance as `method=`.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor

from ..labels import LabelMode
from ..layers import Layers
from ..model_index import ModelIndex
from .batches import ModelCall

USE_LOOP = 'measure it with method="loop"'
"""The remedy that has none above it: what plain autograd cannot do either, nobody can."""


class NotSeparableError(ValueError):
    """A batch's gradients cannot be taken apart by example. Plain autograd, one example at a time, may do it."""


class DisagreementError(NotSeparableError):
    """They seemed to be, and plain autograd says otherwise."""


Signature = Hashable
"""How the modules of a layer were called: how often, with how many dimensions, for one example or several."""


class ForwardPass(Protocol):
    """A model that has been run on one batch, ready to be pulled back.

    Attributes:
        logits: (examples, ...), what the likelihood reads.
        signatures: how the modules of each layer were called; layers that are called otherwise are checked again.
        folded: whether some module sees several rows an example, so that each batch has to be checked.
    """

    @property
    def logits(self) -> Tensor: ...
    @property
    def signatures(self) -> Sequence[Signature]: ...
    @property
    def folded(self) -> bool: ...

    def squared_norms(self, cotangents: Sequence[Tensor], generator: torch.Generator) -> Tensor:
        """||J_l^T c||^2 for each cotangent c: (cotangents, examples, layers), float64.

        A method that sees no single example gives one row for the whole batch: (cotangents, 1, layers).
        """
        ...


class Method:
    """One way to measure. A subclass has a name and `forward`, and what of the rest is otherwise.

    Attributes:
        name: as in `method="..."` and in a record's `estimator`.
        per_example: whether it gives a row for each example.
        needs_check: whether it can be wrong on an unusual architecture, so that `check` compares it with plain autograd.
    """

    name: str
    per_example = True
    needs_check = True

    def validate_labels(self, labels: LabelMode) -> None:
        """Raises ValueError for label modes that make no sense with the method. By default, all do."""

    def prepare(self, model: ModelIndex, layers: Layers) -> None:
        """Called once a measurement, before any batch. By default, nothing needs preparing."""

    def falls_back(self, error: NotSeparableError) -> bool:
        """Whether the method goes on in another way, so that the batch can be measured again. By default, it does not."""
        return False

    def forward(self, call: ModelCall) -> AbstractContextManager[ForwardPass]:
        """Runs the model; what it holds on to is let go at the end of the `with`."""
        raise NotImplementedError(f"{type(self).__name__} has no forward()")


def find_method(method: str | Method) -> Method:
    """A method by its name; an instance as it is.

    Raises:
        ValueError: there is none of that name.
    """
    from .batch_gradient import AuthorsGradient, SignedGradient
    from .hooks import Hooks
    from .loop import Loop
    from .vmap import VMap

    methods: dict[str, Method] = {m.name: m for m in (Hooks(), Loop(), VMap(), SignedGradient(), AuthorsGradient())}
    if isinstance(method, Method):
        return method
    if not isinstance(method, str) or method not in methods:
        raise ValueError(f"unknown method={method!r}: choose one of {', '.join(methods)}, or pass a Method")
    return methods[method]
