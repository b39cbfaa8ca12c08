"""XNLI and XCOPA, whose metric is accuracy."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import AutoModelForMultipleChoice, AutoModelForSequenceClassification

from ...settings import Metric
from ..batches import Batch, Batches
from ..transfer import TEST_BATCH
from . import sources
from .reading import Row, check_labels
from .task import TextTask


class ClassifyingTask(TextTask):
    """A task with one label for each example; the metric is accuracy."""

    def metric(self, split: list[Row], language: str) -> Metric:
        def collate(rows: Tensor) -> Batch:
            return self.collate([split[i] for i in rows])

        return partial(self.accuracy, batches=Batches(len(split), TEST_BATCH, collate), language=language)

    def validate(self, rows: list[Row], where: str) -> None:
        check_labels(rows, self.num_labels, where)

    def tokenise(self, first: list[str], second: list[str] | None = None) -> Any:
        """Texts, or pairs of them, as padded tensors."""
        return self.tokenizer(
            first, second, truncation=True, max_length=self.max_length, padding=True, return_tensors="pt"
        )


class XNLI(ClassifyingTask):
    """Inference: the premise entails the hypothesis (0), leaves it open (1), or contradicts it (2)."""

    name = "xnli"
    splits = (sources.MNLI_TRAIN, sources.XNLI_DEV, sources.XNLI_TEST)
    known = ("ar", "bg", "de", "el", "es", "fr", "hi", "ru", "sw", "th", "tr", "ur", "vi", "zh")
    targets_of_paper = ("ar", "de", "el", "es", "hi", "ru", "sw", "th", "tr", "vi", "zh")
    head: ClassVar = AutoModelForSequenceClassification
    num_labels = 3

    def collate(self, examples: list[Row]) -> Batch:
        encoded = self.tokenise([row["premise"] for row in examples], [row["hypothesis"] for row in examples])
        return {**encoded, "labels": torch.tensor([row["label"] for row in examples])}


class XCOPA(ClassifyingTask):
    """Choice: which of two sentences is the cause, or the effect, of the premise?

    The first text is the premise followed by the question, "cause" or "effect", in English for every language.
    """

    name = "xcopa"
    splits = (sources.COPA_TRAIN, sources.COPA_DEV, sources.XCOPA_TEST)
    known = targets_of_paper = ("et", "ht", "id", "it", "qu", "sw", "ta", "th", "tr", "vi", "zh")
    head: ClassVar = AutoModelForMultipleChoice
    num_labels = 2

    def collate(self, examples: list[Row]) -> Batch:
        premises = [f"{row['premise']} {row['question']}" for row in examples for _ in range(2)]
        encoded = self.tokenise(premises, [row[choice] for row in examples for choice in ("choice1", "choice2")])
        batch = {name: x.reshape(len(examples), 2, -1) for name, x in encoded.items()}
        return {**batch, "labels": torch.tensor([row["label"] for row in examples])}
