"""Extraction: who or what is the one that a question leaves out?

The context is two sentences; the question says the verb and one of the two participants of one of them, with a mask in
place of the other, and the answer is that participant as the context says it, number and adjective included. The other
sentence has the verb or the participant too, never both.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from transformers import BertForQuestionAnswering

from ...settings import Metric
from ..batches import Batch, in_order, select
from ..metrics import AnswerMetric
from ..tuning import in_language
from . import grammar as g
from .languages import MASK, PAD, SOURCE, Languages, pack_pairs
from .task import WorldTask

LONGEST = 3
"""Words of the longest answer: number, adjective, noun."""
PHRASES = {g.S_NOUN: (g.S_NUM, g.S_ADJ, g.S_NOUN), g.O_NOUN: (g.O_NUM, g.O_ADJ, g.O_NOUN)}


def sample_questions(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sentences that answer (n, SLOTS), sentences beside them (n, SLOTS), and the slot of the noun asked for (n,)."""
    answering, beside = (g.sample_meanings(n, rng, negated=0.0, hyper=0.0) for _ in range(2))
    asked = rng.choice([g.S_NOUN, g.O_NOUN], size=n)
    known = g.S_NOUN + g.O_NOUN - asked
    rows = np.arange(n)
    shared = np.where(rng.random(n) < 0.5, known, g.VERB)
    beside[rows, shared] = answering[rows, shared]
    same = [beside[rows, slot] == answering[rows, slot] for slot in (g.VERB, known, asked)]
    again = (same[0] & same[1]) | same[2]
    if again.any():
        answering[again], beside[again], asked[again] = sample_questions(int(again.sum()), rng)
    return answering, beside, asked


def speak_marked(
    languages: Languages, meanings: np.ndarray, marked: np.ndarray, row: int
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens (n, COLUMNS), PAD at the right, and which of them say a marked slot; marked: bool (n, SLOTS)."""
    language = np.full(len(meanings), row)
    tokens = languages.lexicon[row, languages.order_columns(meanings, language, case=False)]
    marks = languages.order_columns(marked.astype(np.int64), language, case=False) * (tokens != PAD)
    order = np.argsort(tokens == PAD, axis=1, kind="stable")
    return np.take_along_axis(tokens, order, axis=1), np.take_along_axis(marks, order, axis=1)


class SpanTask(WorldTask):
    """Question answering by extraction. The metric is F1 over word positions; exact match is kept beside it."""

    name = "world-span"
    head: ClassVar = BertForQuestionAnswering
    stream = 8

    def make_split(self, code: str, n: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        answering, beside, asked = sample_questions(n, rng)
        row, rows = self.languages.index(code), np.arange(n)
        question = np.zeros_like(answering)
        for slot in (g.S_NOUN, g.VERB, g.O_NOUN):
            question[:, slot] = answering[:, slot]
        gap = np.zeros(question.shape, dtype=bool)
        gap[rows, asked] = True
        words, gaps = speak_marked(self.languages, question, gap, row)
        phrase = np.zeros(answering.shape, dtype=bool)
        for slot, parts in PHRASES.items():
            phrase[:, parts] = (asked == slot)[:, None]
        said, marks = speak_marked(self.languages, answering, phrase, row)
        other = self.languages.speak(beside, row, case=False)
        first = (rng.random(n) < 0.5)[:, None]
        context = np.where(np.tile(first, 2 * said.shape[1]), np.hstack([said, other]), np.hstack([other, said]))
        before = np.where(first[:, 0], 0, (other != PAD).sum(axis=1))
        start = 2 + (words != PAD).sum(axis=1) + before + marks.argmax(axis=1)
        return {
            **pack_pairs(np.where(gaps > 0, MASK, words), context),
            "start_positions": start,
            "end_positions": start + marks.sum(axis=1) - 1,
        }

    def metric(self, split: Batch, code: str) -> Metric:
        return AnswerMetric(partial(score_spans, split=split, code=code, tuning=self.tuning))


def score_spans(model: nn.Module, split: Batch, code: str, tuning: str) -> tuple[float, float]:
    """(F1 over positions, exact match), 0 to 1."""
    f1 = exact = 0.0
    n = len(split["start_positions"])
    with in_language(model, tuning, code, SOURCE) as device:
        for batch in in_order(torch.arange(n), 128, partial(select, split)):
            gold = batch.pop("start_positions"), batch.pop("end_positions")
            output = model(**{name: x.to(device) for name, x in batch.items()})
            context = batch["token_type_ids"].bool()
            start, end = best_spans(output.start_logits.cpu(), output.end_logits.cpu(), context)
            shared = (torch.minimum(end, gold[1]) - torch.maximum(start, gold[0]) + 1).clamp(min=0)
            f1 += float((2 * shared / (end - start + gold[1] - gold[0] + 2)).sum())
            exact += float(((start == gold[0]) & (end == gold[1])).sum())
    return f1 / n, exact / n


def best_spans(start: Tensor, end: Tensor, context: Tensor, longest: int = LONGEST) -> tuple[Tensor, Tensor]:
    """The spans inside the context, of at most `longest` words, with the largest sum of logits: two (batch,)."""
    outside = ~context
    score = start.masked_fill(outside, -torch.inf)[:, :, None] + end.masked_fill(outside, -torch.inf)[:, None, :]
    possible = torch.ones_like(score[0], dtype=torch.bool).triu().tril(longest - 1)
    best = score.masked_fill(~possible, -torch.inf).flatten(1).argmax(dim=1)
    return best // score.shape[2], best % score.shape[2]
