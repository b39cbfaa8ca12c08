"""Pretraining text: unlabelled pairs of sentences in all languages, masked, with a next-sentence label.

A document is two sentences. The second repeats the first with something dropped, added or replaced, in any relation but
EQUAL, which the text does not tell. Most pairs cross languages, and most of these are translations. Many pairs switch
between languages from word to word. Some first sentences are facts ("dog is animal"). The next-sentence label tells
whether the second sentence belongs to the first, or comes from another document and shares some of its words.

The text holds no class of the inference task: the next-sentence label is the same for all three.
"""

from __future__ import annotations

import numpy as np

from . import grammar as g
from .languages import COLUMNS, MASK, PAD, SEP, SPECIAL_TOKENS, Languages, pack_pairs

CROSS_LANGUAGE = 0.7  # share of documents whose second sentence has a language of its own
TRANSLATIONS = 0.8  # share of these that are translations
CODE_SWITCHED = 0.4  # share of documents with words of other languages
SWITCHED_WORDS = 0.4  # share of their words that are switched
FACTS = 0.08  # share of first sentences that are facts

IS_NEXT, NOT_NEXT, IGNORED = 0, 1, -100
"""BERT's values of the next-sentence label."""


def sample_documents(
    n: int, rng: np.random.Generator, broken: float = 0.5
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First and second meanings (n, SLOTS), and the next-sentence label (n,), IGNORED after a fact.

    Args:
        broken: share of second sentences that come from another document.
    """
    relation = rng.choice([g.FORWARD, g.REVERSE, g.DISJOINT, g.INDEPENDENT], size=n)
    first, second = g.sample_related(n, relation, rng)
    for meanings in (first, second):
        meanings[:, g.NEG] = np.where(rng.random(n) < 0.25, g.c.ID[g.c.NEGATION], 0)
    belongs = rng.random(n) >= broken
    other = g.sample_meanings(n, rng)
    for slot in g.HEADS:
        keep = rng.random(n) < 0.5
        other[keep, slot] = second[keep, slot]
    second = np.where(belongs[:, None], second, other)
    fact = rng.random(n) < FACTS
    first[fact] = g.sample_facts(int(fact.sum()), rng)
    return first, second, np.where(fact, IGNORED, np.where(belongs, IS_NEXT, NOT_NEXT))


class Corpus:
    """Batches of pretraining text.

    Args:
        languages: of the text, each with its share.
        only: code of a single language, for monolingual text as language adapters are trained on.
    """

    def __init__(self, languages: Languages, only: str | None = None) -> None:
        self.languages = languages
        share = np.array([language.share for language in languages.languages])
        self.rows = np.arange(len(share)) if only is None else np.array([languages.index(only)])
        self.share = share[self.rows] / share[self.rows].sum()

    def batch(self, n: int, rng: np.random.Generator, mask: float = 0.2, broken: float = 0.5) -> dict[str, np.ndarray]:
        """n documents: input_ids, token_type_ids, attention_mask, labels (n, T) and next_sentence_label (n,).

        Args:
            mask: share of masked tokens; labels are -100 elsewhere.
            broken: share of second sentences that come from another document.
        """
        first, second, next_label = sample_documents(n, rng, broken)
        language = rng.choice(self.rows, size=(n, 2), p=self.share)
        cross = (rng.random(n) < CROSS_LANGUAGE) & (len(self.rows) > 1)
        language[:, 1] = np.where(cross, language[:, 1], language[:, 0])
        translated = cross & (next_label == IS_NEXT) & (rng.random(n) < TRANSLATIONS)
        second = np.where(translated[:, None], first, second)
        switched = (rng.random(n) < CODE_SWITCHED) & (len(self.rows) > 1)
        packed = pack_pairs(
            self._speak(first, language[:, 0], switched, rng), self._speak(second, language[:, 1], switched, rng)
        )
        inputs, labels = mask_tokens(packed["input_ids"], len(self.languages.vocabulary), mask, rng)
        return {**packed, "input_ids": inputs, "labels": labels, "next_sentence_label": next_label}

    def _speak(self, m: np.ndarray, row: np.ndarray, switched: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Meanings in the languages of `row`, with words of other languages where `switched`."""
        words_from = np.broadcast_to(row[:, None], (len(m), COLUMNS))
        switch = switched[:, None] & (rng.random((len(m), COLUMNS)) < SWITCHED_WORDS)
        other = rng.choice(self.rows, size=(len(m), COLUMNS), p=self.share)
        return self.languages.speak(m, row, np.where(switch, other, words_from))


def mask_tokens(
    tokens: np.ndarray, vocabulary: int, share: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """BERT's masking: of the chosen tokens 80 % become [MASK], 10 % a random word, and 10 % stay.

    Args:
        tokens: (n, T); special tokens are never chosen.
        vocabulary: its size.
        share: of tokens that are chosen.

    Returns:
        Inputs (n, T), and labels (n, T), -100 where no token was chosen.
    """
    ordinary = (tokens != PAD) & (tokens > SEP)
    chosen = ordinary & (rng.random(tokens.shape) < share)
    draw = rng.random(tokens.shape)
    inputs = np.where(chosen & (draw < 0.8), MASK, tokens)
    random_words = rng.integers(len(SPECIAL_TOKENS), vocabulary, size=tokens.shape)
    inputs = np.where(chosen & (draw >= 0.9), random_words, inputs)
    return inputs, np.where(chosen, tokens, -100)
