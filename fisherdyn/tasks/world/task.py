"""The world's inference task, as a study sees it: trained in the source language, tested in the nine others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ...layers import Layers, adapter_layers
from ...train import Metric
from .encoder import TASK_ADAPTER, WEIGHTS, WORLD_SEED, build_madx, set_language
from .inference import CLASSES, make_split
from .languages import LANGUAGES, SOURCE, Languages, distance

Split = dict[str, Tensor]
TRAIN, DEVELOPMENT, TEST, PROBE = range(4)
"""The last number of each split's seed: splits never share random numbers."""


class InferenceTask:
    """Three-way inference between two sentences.

    Args:
        train_examples, dev_examples, test_examples: in the source; in the source; in each target.
        probe_examples: unlabelled source inputs, apart from the others, that tr(F) is measured on.
        batch: examples a training step.
        reduction: hidden size over the task adapter's bottleneck.
        dropout: of the encoder while it trains.
        seed: of the splits; the world itself is the one that the encoder knows.
        weights: folder of the encoder.
    """

    name = "world"
    source = SOURCE
    distances: ClassVar[Mapping[str, float]] = {language.code: distance(language) for language in LANGUAGES[1:]}

    def __init__(
        self,
        train_examples: int = 4000,
        dev_examples: int = 200,
        test_examples: int = 200,
        probe_examples: int = 64,
        batch: int = 32,
        reduction: int = 8,
        dropout: float = 0.0,
        seed: int = 0,
        weights: Path = WEIGHTS,
    ) -> None:
        self.sizes = {
            TRAIN: train_examples,
            DEVELOPMENT: dev_examples,
            TEST: test_examples,
            PROBE: probe_examples,
        }
        if min(*self.sizes.values(), batch) < 1:
            raise ValueError(f"expected at least one example in every split and batch, got {self.sizes}, batch {batch}")
        self.batch, self.reduction, self.dropout = batch, reduction, dropout
        self.seed, self.weights = seed, weights
        self.languages = Languages(WORLD_SEED)

    def build_model(self, seed: int) -> nn.Module:
        return build_madx(len(CLASSES), seed, self.reduction, self.dropout, self.weights)

    def layers(self, model: nn.Module) -> Layers:
        return adapter_layers(model, TASK_ADAPTER)

    def split(self, which: int, code: str = SOURCE) -> Split:
        """One of TRAIN, DEVELOPMENT, TEST, PROBE in one language."""
        rng = np.random.default_rng([self.seed, 5, self.languages.index(code), which])
        arrays = make_split(self.languages, code, self.sizes[which], rng)
        return {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in arrays.items()}

    @cached_property
    def _train(self) -> Split:
        return self.split(TRAIN)

    def train_loader(self, seed: int) -> ShuffledBatches:
        return ShuffledBatches(self._train, self.batch, seed)

    def probe_loader(self) -> list[Split]:
        split = self.split(PROBE)
        return [{name: x for name, x in batch.items() if name != "labels"} for batch in _batches(split, 64)]

    def evaluate_source(self) -> Metric:
        return partial(accuracy, split=self.split(DEVELOPMENT), code=SOURCE)

    def evaluate(self) -> dict[str, Metric]:
        return {code: partial(accuracy, split=self.split(TEST, code), code=code) for code in self.distances}


class ShuffledBatches:
    """A loader with an order of its own: each reading is a new shuffle, drawn from its own generator.

    The last batch of a reading is short where the batch size does not divide the examples. Batches are trimmed to their
    longest example.
    """

    def __init__(self, split: Split, batch: int, seed: int) -> None:
        self.split, self.batch = split, batch
        self.generator = torch.Generator().manual_seed(seed)

    def __iter__(self) -> Iterator[Split]:
        order = torch.randperm(len(self.split["labels"]), generator=self.generator)
        return _batches({name: x[order] for name, x in self.split.items()}, self.batch)


def _batches(split: Split, size: int) -> Iterator[Split]:
    for start in range(0, len(split["input_ids"]), size):
        batch = {name: x[start : start + size] for name, x in split.items()}
        longest = int(batch["attention_mask"].sum(dim=1).max())
        yield {name: x[:, :longest] if x.ndim == 2 else x for name, x in batch.items()}


@torch.no_grad()
def accuracy(model: nn.Module, split: Split, code: str) -> float:
    """Share of right answers, 0 to 1, with the language's adapter in; the source's is back in afterwards."""
    training = model.training
    model.eval()
    set_language(model, code)
    right = 0
    for batch in _batches(split, 128):
        labels = batch.pop("labels")
        right += int((model(**batch).logits.argmax(dim=1) == labels).sum())
    set_language(model, SOURCE)
    model.train(training)
    return right / len(split["labels"])
