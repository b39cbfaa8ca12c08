"""The world's tasks, as a study sees them: trained in the source language, tested in the nine others."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import nn
from transformers import BertForSequenceClassification, BertPreTrainedModel

from ...layers import Layers
from ...settings import Metric
from .. import tuning as tunings
from ..batches import Batch, ShuffledBatches, in_order, select
from . import encoder, inference
from .languages import LANGUAGES, SOURCE, Languages, distance

INPUTS = ("input_ids", "token_type_ids", "attention_mask")
TRAIN, DEVELOPMENT, TEST, PROBE = range(4)
"""The last number of each split's seed: splits never share random numbers."""


class WorldTask:
    """A task of the world: a head on the shipped encoder, and splits that are made as they are asked for.

    Args:
        train_examples, dev_examples, test_examples: in the source; in the source; in each target.
        probe_examples: unlabelled source inputs, apart from the others, that tr(F) is measured on.
        batch: examples a training step.
        tuning: what is trained: "adapter", "lora" or "full".
        reduction: hidden size over the task adapter's bottleneck.
        dropout: of the encoder while it trains.
        languages: targets, by their codes; all nine by default.
        seed: of the splits; the world itself is the one that the encoder knows.
        weights: folder of the encoder.

    Raises:
        ValueError: an unknown language or tuning, or a split without examples.
    """

    name: ClassVar[str]
    head: ClassVar[type[BertPreTrainedModel]]
    num_labels: ClassVar[int] = 2
    stream: ClassVar[int]
    """Of the task's random numbers: two tasks never share any."""
    source = SOURCE
    skipped: ClassVar[Mapping[str, str]] = {}

    def __init__(
        self,
        train_examples: int = 4000,
        dev_examples: int = 200,
        test_examples: int = 200,
        probe_examples: int = 64,
        batch: int = 32,
        tuning: str = tunings.ADAPTER,
        reduction: int = 8,
        dropout: float = 0.0,
        languages: tuple[str, ...] = (),
        seed: int = 0,
        weights: Path = encoder.WEIGHTS,
    ) -> None:
        self.sizes = {
            TRAIN: train_examples,
            DEVELOPMENT: dev_examples,
            TEST: test_examples,
            PROBE: probe_examples,
        }
        if min(*self.sizes.values(), batch) < 1:
            raise ValueError(f"expected at least one example in every split and batch, got {self.sizes}, batch {batch}")
        tunings.check(tuning)
        self.batch, self.tuning, self.reduction, self.dropout = batch, tuning, reduction, dropout
        self.seed, self.weights = seed, weights
        self.languages = Languages(encoder.WORLD_SEED)
        self.targets = tuple(languages) or self.languages.codes[1:]
        self.distances = {code: distance(LANGUAGES[self.languages.index(code)]) for code in self.targets}

    def make_split(self, code: str, n: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """n examples in one language: INPUTS (n, ..., T) and what is to be predicted (n,)."""
        raise NotImplementedError

    def metric(self, split: Batch, code: str) -> Metric:
        """What a model is worth on a split in a language."""
        raise NotImplementedError

    def check(self) -> None:
        """Reads all that a run will read.

        Raises:
            CheckpointError: weights are missing or damaged.
        """
        self.build_model(0)

    def build_model(self, seed: int) -> nn.Module:
        return encoder.build(
            self.head,
            seed,
            num_labels=self.num_labels,
            tuning=self.tuning,
            reduction=self.reduction,
            dropout=self.dropout,
            weights=self.weights,
        )

    def layers(self, model: nn.Module) -> Layers:
        return tunings.layers_of(model, self.tuning)

    def split(self, which: int, code: str = SOURCE) -> Batch:
        """One of TRAIN, DEVELOPMENT, TEST, PROBE in one language."""
        rng = np.random.default_rng([self.seed, self.stream, self.languages.index(code), which])
        arrays = self.make_split(code, self.sizes[which], rng)
        return {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in arrays.items()}

    @cached_property
    def _train(self) -> Batch:
        return self.split(TRAIN)

    def train_loader(self, seed: int) -> ShuffledBatches:
        return ShuffledBatches(self.sizes[TRAIN], self.batch, seed, partial(select, self._train))

    def probe_loader(self) -> list[Batch]:
        split = {name: x for name, x in self.split(PROBE).items() if name in INPUTS}
        return list(in_order(torch.arange(self.sizes[PROBE]), 64, partial(select, split)))

    def evaluate_source(self) -> Metric:
        return self.metric(self.split(DEVELOPMENT), SOURCE)

    def evaluate(self) -> dict[str, Metric]:
        return {code: self.metric(self.split(TEST, code), code) for code in self.targets}


class ClassifyingTask(WorldTask):
    """A task whose answer is one of a few: the metric is accuracy."""

    def metric(self, split: Batch, code: str) -> Metric:
        return partial(accuracy, split=split, code=code, tuning=self.tuning)


class InferenceTask(ClassifyingTask):
    """Three-way inference between two sentences."""

    name = "world"
    head: ClassVar = BertForSequenceClassification
    num_labels = len(inference.CLASSES)
    stream = 5

    def make_split(self, code: str, n: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return inference.make_split(self.languages, code, n, rng)


def accuracy(model: nn.Module, split: Batch, code: str, tuning: str = tunings.ADAPTER) -> float:
    """Share of right answers, 0 to 1, with the language's adapter in; the source's is back in afterwards."""
    right = 0
    with tunings.in_language(model, tuning, code, SOURCE) as device:
        for batch in in_order(torch.arange(len(split["labels"])), 128, partial(select, split)):
            labels = batch.pop("labels").to(device)
            logits = model(**{name: x.to(device) for name, x in batch.items()}).logits
            right += int((logits.argmax(dim=1) == labels).sum())
    return right / len(split["labels"])
