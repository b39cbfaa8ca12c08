"""What one batch says: its examples' squared gradient norms, by whichever estimator; halved where memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..layers import Layers
from ..likelihoods import LIKELIHOODS, Likelihood, find_likelihood, likelihood_of
from .batches import Batch, count_examples, count_in, inputs_of, rows_of
from .padding import without_padding

Rows = Callable[[Batch], Tensor]
"""A batch -> (examples, layers), or (1, layers) by the methods that see no single example."""


class OutputReader:
    """A model's output -> the tensor f that its likelihood reads; where none is given, model or first output say which."""

    def __init__(self, model: nn.Module, likelihood: Likelihood | str | None) -> None:
        if likelihood in list(LIKELIHOODS.values()):
            raise ValueError(f"expected a likelihood, got its class: pass likelihood={likelihood.__name__}()")  # type: ignore[union-attr]
        if isinstance(likelihood, str) and likelihood in LIKELIHOODS:
            likelihood = LIKELIHOODS[likelihood]()
        if not (likelihood is None or isinstance(likelihood, Likelihood)):
            raise ValueError(f"unknown likelihood={likelihood!r}: choose one of {', '.join(LIKELIHOODS)}")
        self.model = model
        self.likelihood = likelihood_of(model) if likelihood is None else likelihood

    def __call__(self, output: Any) -> Tensor:
        if self.likelihood is None:
            self.likelihood = find_likelihood(self.model, output)
        return self.likelihood.outputs(output)

    @property
    def name(self) -> str:
        return self.likelihood.name if self.likelihood is not None else ""


@dataclass(frozen=True)
class BatchEstimator:
    """A batch -> the estimator's answer."""

    model: nn.Module
    layers: Layers
    reader: OutputReader
    estimate: Callable[..., Tensor]
    labels: str
    generator: torch.Generator
    device: torch.device

    def __call__(self, batch: Batch) -> Tensor:
        batch, args, kwargs = self.prepared(batch)
        examples = count_examples(args, kwargs)

        def cotangents(f: Tensor) -> Iterable[Tensor]:
            assert self.reader.likelihood is not None
            self.reader.likelihood.check(f, examples)
            return self.reader.likelihood.cotangents(f, self.labels, self.generator, batch)

        return self.estimate(self.model, args, kwargs, self.layers, self.reader, cotangents)

    def prepared(self, batch: Batch) -> tuple[Batch, tuple[Tensor, ...], dict[str, Any]]:
        """The batch without columns of padding, and the model's arguments."""
        batch = without_padding(batch, self.model, self.reader.likelihood)
        return batch, *inputs_of(batch, self.device)


class SplitOnOOM:
    """Goes on with half as many examples at a time where memory runs out, and stays there.

    Label noise is drawn part by part: other numbers than those of whole batches, no less right.
    """

    def __init__(self, measure: Rows) -> None:
        self.measure = measure
        self.most: int | None = None

    def __call__(self, batch: Batch) -> Tensor:
        examples = count_in(batch)
        most = min(examples, self.most or examples)
        while (rows := self._in_parts(batch, examples, most)) is None:
            if most == 1:
                raise MemoryError("out of memory with a single example: free some, or measure fewer layers")
            self.most = most = (most + 1) // 2
        return rows

    def _in_parts(self, batch: Batch, examples: int, most: int) -> Tensor | None:
        """None where memory ran out. By then the frames that hold the tensors are gone."""
        parts = (range(start, min(start + most, examples)) for start in range(0, examples, most))
        try:
            return torch.cat([self.measure(rows_of(batch, part) if most < examples else batch) for part in parts])
        except RuntimeError as error:
            if not (isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)):
                raise
        return None
