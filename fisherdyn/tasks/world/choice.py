"""Choice: which of two sentences is the cause of a premise, or its effect?

What a person does with a thing has four stages: perceiving it, getting it, moving it, and using it (food is consumed;
furniture and vehicles are changed). The right alternative names the stage before the premise's (its cause) or the stage
after it (its effect). The wrong one names another stage, or the right stage of another thing. The pretraining text does
not hold this rule; it is learned from the source's examples. No word says whether a cause or an effect is wanted: the
sentence that comes first in time is the first of the pair.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from transformers import BertForMultipleChoice

from . import concepts as c
from . import grammar as g
from .languages import pack_pairs
from .task import ClassifyingTask

ALTERNATIVES = 2
STAGES = ("perceive", "get", "move", "use")
_GROUP = {name: i for i, name in enumerate(c.VERB_GROUPS)}
_TYPE = {name: i for i, name in enumerate(c.NOUN_TYPES)}
_USE = {"food": "consume", "furniture": "change", "vehicle": "change"}
"""Type of the thing -> the group of verbs for using it."""
_THINGS = np.array([_TYPE[name] for name in _USE])
_VERB_GROUP = np.array([[_GROUP["perceive"], _GROUP["get"], _GROUP["move"], _GROUP[use]] for use in _USE.values()])
"""(thing, stage) -> group of verbs."""


def sample_choices(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Premises (n, SLOTS), alternatives (n, 2, SLOTS), whether the cause is wanted (n,), and the right alternative (n,)."""
    thing = rng.integers(len(_THINGS), size=n)
    cause = rng.random(n) < 0.5
    stage = rng.integers(len(STAGES) - 1, size=n) + cause
    right_stage = np.where(cause, stage - 1, stage + 1)
    premise = np.zeros((n, g.SLOTS), dtype=np.int64)
    premise[:, g.S_NOUN] = rng.choice(c.NOUNS[_TYPE["person"]], size=n)
    premise[:, g.O_NOUN] = c.NOUNS[_THINGS[thing], rng.integers(c.NOUNS.shape[1], size=n)]
    right, wrong = premise.copy(), premise.copy()
    other_thing = rng.random(n) < 0.5
    wrong[:, g.O_NOUN] = np.where(other_thing, _other_noun(premise[:, g.O_NOUN], rng), premise[:, g.O_NOUN])
    wrong_stage = np.where(other_thing, right_stage, _other_stage(stage, right_stage, rng))
    for meaning, its_stage in ((premise, stage), (right, right_stage), (wrong, wrong_stage)):
        meaning[:, g.VERB] = c.VERBS[_VERB_GROUP[thing, its_stage], rng.integers(c.VERBS.shape[1], size=n)]
        for slot, words in g.MODIFIERS.items():
            meaning[:, slot] = np.where(rng.random(n) < 0.25, rng.choice(words, size=n), 0)
    label = rng.integers(ALTERNATIVES, size=n)
    alternatives = np.where((label == 0)[:, None, None], np.stack([right, wrong], 1), np.stack([wrong, right], 1))
    return premise, alternatives, cause, label


def _other_noun(nouns: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Another noun of the same type."""
    of_type = c.NOUNS[c.TYPE[nouns]]
    rank = (of_type == nouns[:, None]).argmax(axis=1)
    shift = rng.integers(1, c.NOUNS.shape[1], size=len(nouns))
    return of_type[np.arange(len(nouns)), (rank + shift) % c.NOUNS.shape[1]]


def _other_stage(stage: np.ndarray, right: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A stage that is neither the premise's nor the right one."""
    stages = np.arange(len(STAGES))
    excluded = (stages == stage[:, None]) | (stages == right[:, None])
    return np.where(excluded, -1.0, rng.random((len(stage), len(STAGES)))).argmax(axis=1)


class ChoiceTask(ClassifyingTask):
    """Choice between two alternatives: chance is one half."""

    name = "world-choice"
    head: ClassVar = BertForMultipleChoice
    stream = 7

    def make_split(self, language: str, n: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        premise, alternatives, cause, label = sample_choices(n, rng)
        row = self.languages.index(language)
        premises = self.languages.speak(np.repeat(premise, ALTERNATIVES, axis=0), row, case=False)
        choices = self.languages.speak(alternatives.reshape(-1, g.SLOTS), row, case=False)
        choice_first = np.repeat(cause, ALTERNATIVES)[:, None]
        packed = pack_pairs(np.where(choice_first, choices, premises), np.where(choice_first, premises, choices))
        return {**{name: a.reshape(n, ALTERNATIVES, -1) for name, a in packed.items()}, "labels": label}
