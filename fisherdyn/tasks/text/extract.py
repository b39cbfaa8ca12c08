"""Question answering by extraction: the metric is F1, and the exact match is kept beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForQuestionAnswering

from ...settings import Metric
from .. import tuning as tunings
from ..batches import Batch, pad
from ..metrics import MLQA as MLQA_NORMALISERS
from ..metrics import SQUAD, AnswerMetric, Normaliser, score_answers
from . import sources
from .reading import MissingError, Row
from .task import SOURCE, TextTask
from .windows import Window, best_answers, make_windows

STRIDE = 128
TEST_BATCH = 64


class _ExtractionTask(TextTask):
    head: ClassVar = AutoModelForQuestionAnswering
    longest = 384

    def normaliser(self, code: str) -> Normaliser:
        """How answers in a language are compared."""
        return SQUAD

    def windows(self, rows: list[Row]) -> list[Window]:
        return make_windows(self.tokenizer, rows, self.max_length, STRIDE)

    def examples(self, rows: list[Row]) -> Sequence[Window]:
        return self.windows(rows)

    def collate(self, examples: list[Window]) -> Batch:
        return {
            **self._inputs(examples),
            "start_positions": torch.tensor([window.start for window in examples]),
            "end_positions": torch.tensor([window.end for window in examples]),
        }

    def _inputs(self, windows: list[Window]) -> Batch:
        ids = [window.input_ids for window in windows]
        batch = {
            "input_ids": pad(ids, self.tokenizer.pad_token_id),
            "attention_mask": pad([np.ones(len(one), dtype=np.int64) for one in ids], 0),
        }
        if "token_type_ids" in self.tokenizer.model_input_names:
            batch["token_type_ids"] = pad([window.token_type_ids for window in windows], 0)
        return batch

    def validate(self, rows: list[Row], where: str) -> None:
        for i, row in enumerate(rows):
            answers = row["answers"]
            if not answers["text"] or len(answers["text"]) != len(answers["answer_start"]):
                raise MissingError(f"{where}: question {i} has no answer with its place")

    def metric(self, rows: list[Row], code: str) -> Metric:
        return AnswerMetric(partial(self.score, rows=rows, windows=self.windows(rows), code=code))

    def score(self, model: nn.Module, rows: list[Row], windows: list[Window], code: str) -> tuple[float, float]:
        """(F1, exact match), 0 to 1, in a language."""
        golds = [row["answers"]["text"] for row in rows]
        return score_answers(self.predict(model, rows, windows, code), golds, self.normaliser(code))

    def predict(self, model: nn.Module, rows: list[Row], windows: list[Window], code: str) -> list[str]:
        """The model's answer to each question."""
        with tunings.in_language(model, self.tuning, code, SOURCE) as device:
            return best_answers(self._read(model, windows, device), rows)

    def _read(
        self, model: nn.Module, windows: list[Window], device: torch.device
    ) -> Iterator[tuple[Window, np.ndarray, np.ndarray]]:
        for at in range(0, len(windows), TEST_BATCH):
            some = windows[at : at + TEST_BATCH]
            output = model(**{name: x.to(device) for name, x in self._inputs(some).items()})
            logits = output.start_logits.float().cpu().numpy(), output.end_logits.float().cpu().numpy()
            yield from zip(some, *logits, strict=True)


class XQuAD(_ExtractionTask):
    """Trained on SQuAD v1.1, tested on XQuAD by SQuAD's own F1."""

    name = "xquad"
    splits = (sources.SQUAD_TRAIN, sources.SQUAD_DEV, sources.XQUAD_TEST)
    known = ("ar", "de", "el", "es", "hi", "ro", "ru", "th", "tr", "vi", "zh")
    targets_of_paper = ("ar", "de", "el", "es", "hi", "ru", "th", "tr", "vi", "zh")


class MLQA(_ExtractionTask):
    """Trained on SQuAD v1.1, tested on MLQA (context and question in one language) by MLQA's F1 for that language."""

    name = "mlqa"
    splits = (sources.SQUAD_TRAIN, sources.SQUAD_DEV, sources.MLQA_TEST)
    known = targets_of_paper = ("ar", "de", "es", "hi", "vi", "zh")

    def normaliser(self, code: str) -> Normaliser:
        return SQUAD if code == SOURCE else MLQA_NORMALISERS[code]
