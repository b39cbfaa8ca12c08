"""Pretraining text: unlabelled pairs of sentences in all languages, masked, with a next-sentence bit.

A document is two sentences of which the second goes on from the first: it repeats it with something left out, added or
replaced, whatever the relation (never told). Most pairs cross languages, and most of those are translations; in many
pairs words are switched from language to language; some first sentences are facts ("dog is animal"). The next-sentence
bit says whether the second sentence belongs to the first or comes from another document that shares some of its words.

No class of the inference task is ever shown: the bit is the same for all three alike.
"""

from __future__ import annotations

import numpy as np

from . import grammar as g
from .languages import COLUMNS, MASK, PAD, SEP, SPECIAL_TOKENS, Languages, pack_pairs

CROSS_LANGUAGE, TRANSLATIONS, CODE_SWITCHED, SWITCHED_WORDS, FACTS = 0.7, 0.8, 0.4, 0.4, 0.08


IS_NEXT, NOT_NEXT, IGNORED = 0, 1, -100
"""BERT's own convention for the next-sentence label."""


def sample_documents(
    n: int, rng: np.random.Generator, broken: float = 0.5
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First and second meanings (n, SLOTS) and their next-sentence label (n,): IGNORED after a fact."""
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
        languages: who speaks.
        only: the code of one language: monolingual text, as language adapters are trained on.
    """

    def __init__(self, languages: Languages, only: str | None = None) -> None:
        self.languages = languages
        share = np.array([language.share for language in languages.languages])
        self.rows = np.arange(len(share)) if only is None else np.array([languages.index(only)])
        self.share = share[self.rows] / share[self.rows].sum()

    def batch(self, n: int, rng: np.random.Generator, mask: float = 0.2, broken: float = 0.5) -> dict[str, np.ndarray]:
        """input_ids, token_type_ids, attention_mask, labels (n, T; -100 where unmasked), next_sentence_label (n,)."""
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
        words_from = np.broadcast_to(row[:, None], (len(m), COLUMNS))
        switch = switched[:, None] & (rng.random((len(m), COLUMNS)) < SWITCHED_WORDS)
        other = rng.choice(self.rows, size=(len(m), COLUMNS), p=self.share)
        return self.languages.speak(m, row, np.where(switch, other, words_from))


def mask_tokens(
    tokens: np.ndarray, vocabulary: int, share: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """BERT's masking: of the chosen tokens 80 % become [MASK], 10 % any word, 10 % stay. (inputs, labels), (n, T)."""
    ordinary = (tokens != PAD) & (tokens > SEP)
    chosen = ordinary & (rng.random(tokens.shape) < share)
    how = rng.random(tokens.shape)
    inputs = np.where(chosen & (how < 0.8), MASK, tokens)
    random_words = rng.integers(len(SPECIAL_TOKENS), vocabulary, size=tokens.shape)
    inputs = np.where(chosen & (how >= 0.9), random_words, inputs)
    return inputs, np.where(chosen, tokens, -100)
