"""Inference: does the first sentence entail the second, contradict it, or neither?

The label follows from the relation of the two meanings and from which of them is negated (`LABELS`). Negation reverses
entailment: "a big dog eats" entails "a dog eats", and "no dog eats" entails "no big dog eats".
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from transformers import BertForSequenceClassification

from . import concepts as c
from . import grammar as g
from .languages import pack_pairs
from .task import ClassifyingTask

CLASSES = ("entailment", "neutral", "contradiction")
_E, _N, _C = range(3)
LABELS = np.array(
    # equal forward reverse disjoint independent
    [
        [_E, _E, _N, _C, _N],  # p,     q
        [_C, _C, _N, _E, _N],  # p,     not q
        [_C, _N, _C, _N, _N],  # not p, q
        [_E, _N, _E, _N, _N],  # not p, not q
    ]
)
"""(2 x first negated + second negated, relation) -> class."""

_WEIGHT = np.array([0.1, 1.0, 1.0, 1.0, 1.0])[None, :] * np.array([1.0, 0.2, 0.2, 0.2])[:, None]
"""Weight of each cell of LABELS among the cells of its class: copies and negations are rarer."""


def sample_pairs(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Premises (n, SLOTS), hypotheses (n, SLOTS) and labels (n,); the three classes are equally likely."""
    label = rng.integers(len(CLASSES), size=n)
    cell = np.empty(n, dtype=np.int64)
    for k in range(len(CLASSES)):
        cells = np.flatnonzero(LABELS.ravel() == k)
        weight = _WEIGHT.ravel()[cells]
        rows = label == k
        cell[rows] = rng.choice(cells, size=rows.sum(), p=weight / weight.sum())
    negated, relation = np.divmod(cell, len(g.RELATIONS))
    premise, hypothesis = g.sample_related(n, relation, rng)
    premise[:, g.NEG] = np.where(negated // 2, c.ID[c.NEGATION], 0)
    hypothesis[:, g.NEG] = np.where(negated % 2, c.ID[c.NEGATION], 0)
    return premise, hypothesis, label


class InferenceTask(ClassifyingTask):
    """Three-way inference between two sentences: chance is one third."""

    name = "world"
    head: ClassVar = BertForSequenceClassification
    num_labels = len(CLASSES)
    stream = 5

    def make_split(self, language: str, n: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        premise, hypothesis, label = sample_pairs(n, rng)
        row = self.languages.index(language)
        spoken = (self.languages.speak(meanings, row, case=False) for meanings in (premise, hypothesis))
        return {**pack_pairs(*spoken), "labels": label}
