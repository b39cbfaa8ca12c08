"""Inference and choice: the metric is accuracy."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import AutoModelForMultipleChoice, AutoModelForSequenceClassification

from ...settings import Metric
from .. import tuning as tunings
from ..batches import Batch
from . import sources
from .reading import Row, check_labels
from .task import SOURCE, TextTask

TEST_BATCH = 128


class _ClassifyingTask(TextTask):
    def metric(self, rows: list[Row], code: str) -> Metric:
        return partial(accuracy, task=self, rows=rows, code=code)

    def validate(self, rows: list[Row], where: str) -> None:
        check_labels(rows, self.num_labels, where)

    def tokenise(self, first: list[str], second: list[str]) -> Any:
        return self.tokenizer(
            first, second, truncation=True, max_length=self.max_length, padding=True, return_tensors="pt"
        )


class XNLI(_ClassifyingTask):
    """Does the hypothesis follow from the premise (0), is it open (1), or excluded (2)?"""

    name = "xnli"
    splits = (sources.MNLI_TRAIN, sources.XNLI_DEV, sources.XNLI_TEST)
    known = ("ar", "bg", "de", "el", "es", "fr", "hi", "ru", "sw", "th", "tr", "ur", "vi", "zh")
    targets_of_paper = ("ar", "de", "el", "es", "hi", "ru", "sw", "th", "tr", "vi", "zh")
    head: ClassVar = AutoModelForSequenceClassification
    num_labels = 3

    def collate(self, examples: list[Row]) -> Batch:
        encoded = self.tokenise([row["premise"] for row in examples], [row["hypothesis"] for row in examples])
        return {**encoded, "labels": torch.tensor([row["label"] for row in examples])}


class XCOPA(_ClassifyingTask):
    """Which of two sentences is the cause or the effect of the premise?

    The first text is the premise and the data's own word for what is asked, "cause" or "effect", in every language.
    """

    name = "xcopa"
    splits = (sources.COPA_TRAIN, sources.COPA_DEV, sources.XCOPA_TEST)
    known = targets_of_paper = ("et", "ht", "id", "it", "qu", "sw", "ta", "th", "tr", "vi", "zh")
    head: ClassVar = AutoModelForMultipleChoice
    num_labels = 2

    def collate(self, examples: list[Row]) -> Batch:
        asked = [f"{row['premise']} {row['question']}" for row in examples for _ in range(2)]
        encoded = self.tokenise(asked, [row[choice] for row in examples for choice in ("choice1", "choice2")])
        batch = {name: x.reshape(len(examples), 2, -1) for name, x in encoded.items()}
        return {**batch, "labels": torch.tensor([row["label"] for row in examples])}


def accuracy(model: nn.Module, task: _ClassifyingTask, rows: list[Row], code: str) -> float:
    """Share of right answers, 0 to 1, in a language."""
    right = 0
    with tunings.in_language(model, task.tuning, code, SOURCE) as device:
        for start in range(0, len(rows), TEST_BATCH):
            batch = {name: x.to(device) for name, x in task.collate(rows[start : start + TEST_BATCH]).items()}
            labels = batch.pop("labels")
            right += int((model(**batch).logits.argmax(dim=1) == labels).sum())
    return right / len(rows)
