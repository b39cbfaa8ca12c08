"""Extraction: the participant that a question leaves out.

The context is two sentences. The question repeats the verb and one participant of one of them, with a mask in place of
the other participant. The answer is that participant as the context says it, with its number and adjective. The other
sentence shares the verb or the given participant with the question, never both.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from transformers import BertForQuestionAnswering

from ...settings import Metric
from ..batches import Batch, Batches, select
from ..metrics import AnswerMetric
from ..transfer import TEST_BATCH
from . import grammar as g
from .languages import MASK, PAD, Languages, pack_pairs
from .task import WorldTask

LONGEST = 3
"""Words of the longest answer: number, adjective, noun."""
PHRASES = {g.S_NOUN: (g.S_NUM, g.S_ADJ, g.S_NOUN), g.O_NOUN: (g.O_NUM, g.O_ADJ, g.O_NOUN)}


def sample_questions(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sentences with the answer (n, SLOTS), distractors (n, SLOTS), and the slot of the noun that is asked for (n,)."""
    answering, distractor = (g.sample_meanings(n, rng, negated=0.0, hyper=0.0) for _ in range(2))
    asked = rng.choice([g.S_NOUN, g.O_NOUN], size=n)
    known = g.S_NOUN + g.O_NOUN - asked
    rows = np.arange(n)
    shared = np.where(rng.random(n) < 0.5, known, g.VERB)
    distractor[rows, shared] = answering[rows, shared]
    same_verb, same_known, same_asked = (
        distractor[rows, slot] == answering[rows, slot] for slot in (g.VERB, known, asked)
    )
    again = (same_verb & same_known) | same_asked
    if again.any():
        answering[again], distractor[again], asked[again] = sample_questions(int(again.sum()), rng)
    return answering, distractor, asked


def speak_marked(
    languages: Languages, meanings: np.ndarray, marked: np.ndarray, row: int
) -> tuple[np.ndarray, np.ndarray]:
    """Says meanings, and marks the tokens that say a marked slot.

    Args:
        marked: bool (n, SLOTS).

    Returns:
        Tokens (n, COLUMNS), PAD at the right, and 1 where a token says a marked slot (n, COLUMNS).
    """
    language = np.full(len(meanings), row)
    tokens = languages.lexicon[row, languages.order_columns(meanings, language, case=False)]
    marks = languages.order_columns(marked.astype(np.int64), language, case=False) * (tokens != PAD)
    order = np.argsort(tokens == PAD, axis=1, kind="stable")
    return np.take_along_axis(tokens, order, axis=1), np.take_along_axis(marks, order, axis=1)


class SpanTask(WorldTask):
    """Question answering by extraction. The metric is F1 over word positions; exact match is kept distractor it."""

    name = "world-span"
    head: ClassVar = BertForQuestionAnswering
    stream = 8

    def make_split(self, language: str, n: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        answering, distractor, asked = sample_questions(n, rng)
        row, rows = self.languages.index(language), np.arange(n)
        question = np.zeros_like(answering)
        for slot in (g.S_NOUN, g.VERB, g.O_NOUN):
            question[:, slot] = answering[:, slot]
        gap = np.zeros(question.shape, dtype=bool)
        gap[rows, asked] = True
        words, gaps = speak_marked(self.languages, question, gap, row)
        phrase = np.zeros(answering.shape, dtype=bool)
        for slot, parts in PHRASES.items():
            phrase[:, parts] = (asked == slot)[:, None]
        sentence, marks = speak_marked(self.languages, answering, phrase, row)
        other = self.languages.speak(distractor, row, case=False)
        first = (rng.random(n) < 0.5)[:, None]
        context = np.where(
            np.tile(first, 2 * sentence.shape[1]), np.hstack([sentence, other]), np.hstack([other, sentence])
        )
        before = np.where(first[:, 0], 0, (other != PAD).sum(axis=1))
        start = 2 + (words != PAD).sum(axis=1) + before + marks.argmax(axis=1)
        return {
            **pack_pairs(np.where(gaps > 0, MASK, words), context),
            "start_positions": start,
            "end_positions": start + marks.sum(axis=1) - 1,
        }

    def metric(self, split: Batch, language: str) -> Metric:
        batches = Batches(len(split["start_positions"]), TEST_BATCH, partial(select, split))
        return AnswerMetric(partial(self.score, batches=batches, language=language))

    def score(self, model: nn.Module, batches: Batches, language: str) -> tuple[float, float]:
        """F1 over word positions and exact match in a language, 0 to 1."""
        f1 = exact = 0.0
        with self.in_language(model, language) as device:
            for batch in batches:
                gold_start, gold_end = batch.pop("start_positions"), batch.pop("end_positions")
                output = model(**{name: x.to(device) for name, x in batch.items()})
                context = batch["token_type_ids"].bool()
                start, end = best_spans(output.start_logits.cpu(), output.end_logits.cpu(), context)
                shared = (torch.minimum(end, gold_end) - torch.maximum(start, gold_start) + 1).clamp(min=0)
                f1 += float((2 * shared / (end - start + gold_end - gold_start + 2)).sum())
                exact += float(((start == gold_start) & (end == gold_end)).sum())
        return f1 / batches.examples, exact / batches.examples


def best_spans(start: Tensor, end: Tensor, context: Tensor, longest: int = LONGEST) -> tuple[Tensor, Tensor]:
    """First and last positions (batch,) of the spans with the largest sum of logits, in the context and not too long.

    Args:
        start, end: logits (batch, tokens).
        context: bool (batch, tokens).
        longest: words of the longest span.
    """
    start, end = (logits.masked_fill(~context, -torch.inf) for logits in (start, end))
    score = start[:, :, None] + end[:, None, :]
    possible = torch.ones_like(score[0], dtype=torch.bool).triu().tril(longest - 1)
    best = score.masked_fill(~possible, -torch.inf).flatten(1).argmax(dim=1)
    return best // score.shape[2], best % score.shape[2]
