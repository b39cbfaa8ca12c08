"""Methods: ways to take squared gradient norms of a batch, each an object that carries its name and what it can do.

A method of your own is a class with these attributes and `forward`; pass an instance as `method=`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor

from ..labels import LabelMode
from .batches import ModelCall
from .capture import Signature


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


class Method(Protocol):
    """One way to measure.

    Attributes:
        name: as in `method="..."` and in a record's `estimator`.
        per_example: whether it gives a row for each example.
        needs_check: whether it can be wrong on an unusual architecture, so that `check` compares it with plain autograd.
    """

    name: str
    per_example: bool
    needs_check: bool

    def validate_labels(self, labels: LabelMode) -> None:
        """Raises ValueError for label modes that make no sense with the method."""
        ...

    def forward(self, call: ModelCall) -> AbstractContextManager[ForwardPass]:
        """Runs the model; what it holds on to is let go at the end of the `with`."""
        ...


def find_method(method: str | Method) -> Method:
    """A method by its name; an instance as it is.

    Raises:
        ValueError: there is none of that name.
    """
    from .batch_gradient import AuthorsGradient, SignedGradient
    from .hooks import Hooks
    from .vmap import VMap

    methods: dict[str, Method] = {m.name: m for m in (Hooks(), VMap(), SignedGradient(), AuthorsGradient())}
    if not isinstance(method, str) and hasattr(method, "forward") and hasattr(method, "per_example"):
        return method
    if not isinstance(method, str) or method not in methods:
        raise ValueError(f"unknown method={method!r}: choose one of {', '.join(methods)}, or pass a Method")
    return methods[method]
