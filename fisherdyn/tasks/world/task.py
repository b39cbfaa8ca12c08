"""What the world's tasks share: splits made from a seed, trained in the source language, tested in the nine others."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import nn
from transformers import BertPreTrainedModel

from ...settings import Metric
from .. import tuning as tunings
from ..batches import Batch, Batches, ShuffledBatches, select
from ..transfer import DEVELOPMENT, PROBE, TEST, TEST_BATCH, TRAIN, TransferTask
from . import encoder
from .languages import LANGUAGES, SOURCE, Languages, distance

INPUTS = ("input_ids", "token_type_ids", "attention_mask")
PROBE_BATCH = 64


class WorldTask(TransferTask):
    """A task of the world: a head on the shipped encoder, and splits that are made on demand.

    Args:
        train_examples, dev_examples: examples in the source.
        test_examples: examples in each target.
        probe_examples: unlabelled source inputs, not used for anything else, that tr(F) is measured on.
        batch: examples a training step.
        tuning: one of `tuning.TUNINGS`.
        reduction: hidden size divided by the task adapter's bottleneck.
        dropout: of the encoder in training.
        languages: codes of the targets (default: all nine).
        seed: of the splits. The world itself is always the one that the encoder was pretrained on.
        weights: folder of the encoder.

    Raises:
        ValueError: an unknown language or tuning, or a split without examples.
    """

    head: ClassVar[type[BertPreTrainedModel]]
    num_labels: ClassVar[int] = 2
    stream: ClassVar[int]
    """Part of the seed of the task's splits, so that no two tasks share random numbers."""
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
        self.coordinates = {"distance": self.distances}

    def make_split(self, language: str, n: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """n examples in one language: INPUTS (n, ..., tokens) and labels (n,)."""
        raise NotImplementedError

    def check(self) -> None:
        """Reads everything that a run will read.

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

    def split(self, which: int, language: str = SOURCE) -> Batch:
        """TRAIN, DEVELOPMENT, TEST or PROBE in a language, as one padded batch."""
        rng = np.random.default_rng([self.seed, self.stream, self.languages.index(language), which])
        arrays = self.make_split(language, self.sizes[which], rng)
        return {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in arrays.items()}

    @cached_property
    def _train(self) -> Batch:
        return self.split(TRAIN)

    def train_loader(self, seed: int) -> ShuffledBatches:
        return ShuffledBatches(self.sizes[TRAIN], self.batch, seed, partial(select, self._train))

    def probe_loader(self) -> list[Batch]:
        inputs = {name: x for name, x in self.split(PROBE).items() if name in INPUTS}
        return list(Batches(self.sizes[PROBE], PROBE_BATCH, partial(select, inputs)))


class ClassifyingTask(WorldTask):
    """A task with one label for each example; the metric is accuracy."""

    def metric(self, split: Batch, language: str) -> Metric:
        batches = Batches(len(split["labels"]), TEST_BATCH, partial(select, split))
        return partial(self.accuracy, batches=batches, language=language)
