"""What all tasks of this package share: training in a source language, zero-shot evaluation in others."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import torch
from torch import nn

from ..layers import Layers
from ..settings import Metric
from . import metrics, tuning
from .batches import Batch

TRAIN, DEVELOPMENT, TEST, PROBE = range(4)
"""The splits. Each number is part of its split's seed, so that no two splits share random numbers."""
TEST_BATCH = 128


class TransferTask:
    """The part of a `Task` that does not depend on where its data come from.

    A subclass defines how a model is built, what a split holds, and which metric measures a model on it.
    """

    name: ClassVar[str]
    source: str
    tuning: str
    targets: tuple[str, ...]

    def build_model(self, seed: int) -> nn.Module:
        raise NotImplementedError

    def split(self, which: int, language: str) -> Any:
        """The data of TRAIN, DEVELOPMENT, TEST or PROBE in a language."""
        raise NotImplementedError

    def metric(self, split: Any, language: str) -> Metric:
        """A function from a model to its score on a split in a language."""
        raise NotImplementedError

    def layers(self, model: nn.Module) -> Layers:
        return tuning.layers_of(model, self.tuning)

    def evaluate_source(self) -> Metric:
        return self.metric(self.split(DEVELOPMENT, self.source), self.source)

    def evaluate(self) -> dict[str, Metric]:
        return {language: self.metric(self.split(TEST, language), language) for language in self.targets}

    def in_language(self, model: nn.Module, language: str) -> AbstractContextManager[torch.device]:
        """Evaluation in a language: `tuning.in_language`."""
        return tuning.in_language(model, self.tuning, language, self.source)

    def accuracy(self, model: nn.Module, batches: Iterable[Batch], language: str) -> float:
        """`metrics.accuracy`, with the language's adapter active."""
        with self.in_language(model, language):
            return metrics.accuracy(model, batches)
