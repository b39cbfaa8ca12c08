"""The ontology: the concepts that sentences are made of, before any language has words for them.

A concept is a positive integer; 0 stands for an empty slot. Nouns belong to types, which have a hypernym, verbs to groups,
which have a hyper-verb, and adjectives come in antonym pairs. A group of verbs selects the types of its subject and
object. The tables for the grammar are arrays indexed by concept, so that thousands of sentences are made at once.
"""

from __future__ import annotations

import numpy as np

NOUN_TYPES: dict[str, tuple[str, ...]] = {
    "animal": ("dog", "cat", "horse", "cow", "bird"),
    "person": ("child", "woman", "man", "teacher", "farmer"),
    "food": ("bread", "apple", "fish", "cheese", "rice"),
    "tool": ("knife", "hammer", "rope", "spoon", "brush"),
    "vehicle": ("car", "boat", "train", "cart", "bicycle"),
    "garment": ("coat", "shoe", "hat", "shirt", "scarf"),
    "building": ("house", "school", "shop", "barn", "church"),
    "furniture": ("table", "chair", "bed", "lamp", "shelf"),
}
"""Hypernym -> its nouns, the most frequent first."""

LIVING = ("animal", "person")
THINGS = ("food", "tool", "vehicle", "garment", "furniture")

VERB_GROUPS: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "perceive": (("see", "hear", "watch"), LIVING, tuple(NOUN_TYPES)),
    "move": (("carry", "push", "pull"), (*LIVING, "vehicle"), THINGS),
    "consume": (("eat", "taste", "cook"), LIVING, ("food", "animal")),
    "get": (("buy", "find", "steal"), ("person",), THINGS),
    "change": (("build", "paint", "repair"), ("person",), ("building", "furniture", "vehicle")),
    "meet": (("follow", "help", "call"), LIVING, LIVING),
}
"""Hyper-verb -> (its verbs, types of its subject, types of its object), the most frequent first."""

ANTONYMS = (
    ("big", "small"),
    ("old", "new"),
    ("good", "bad"),
    ("clean", "dirty"),
    ("dark", "bright"),
    ("heavy", "light"),
)
NUMBERS = ("one", "two", "three", "four")
ADVERBS = ("today", "often", "quickly", "quietly", "gladly", "alone")
NEGATION, COPULA, SUBJECT_CASE, OBJECT_CASE = "not", "is", "SUBJ", "OBJ"


def _names() -> list[str]:
    names = ["-"]
    for hypernym, nouns in NOUN_TYPES.items():
        names += [hypernym, *nouns]
    for hyper_verb, (verbs, _, _) in VERB_GROUPS.items():
        names += [hyper_verb, *verbs]
    names += [adjective for pair in ANTONYMS for adjective in pair]
    return [*names, *NUMBERS, *ADVERBS, NEGATION, COPULA, SUBJECT_CASE, OBJECT_CASE]


NAMES: tuple[str, ...] = tuple(_names())
"""The English gloss of every concept; NAMES[0] is that of an empty slot."""
ID: dict[str, int] = {name: i for i, name in enumerate(NAMES)}
COUNT = len(NAMES)
FUNCTION_CONCEPTS = tuple(ID[name] for name in (NEGATION, COPULA, SUBJECT_CASE, OBJECT_CASE))


def _ids(names: tuple[str, ...]) -> np.ndarray:
    return np.array([ID[name] for name in names])


def zipf(n: int) -> np.ndarray:
    """Probabilities proportional to 1 / rank."""
    weights = 1.0 / np.arange(1, n + 1)
    return weights / weights.sum()


HYPERNYM_IDS = _ids(tuple(NOUN_TYPES))
HYPER_VERB_IDS = _ids(tuple(VERB_GROUPS))
NOUNS = np.stack([_ids(nouns) for nouns in NOUN_TYPES.values()])
"""(type, rank) -> noun."""
VERBS = np.stack([_ids(verbs) for verbs, _, _ in VERB_GROUPS.values()])
"""(group, rank) -> verb."""
ADJECTIVE_IDS = _ids(tuple(a for pair in ANTONYMS for a in pair))
NUMBER_IDS = _ids(NUMBERS)
ADVERB_IDS = _ids(ADVERBS)

HYPERNYM = np.zeros(COUNT, dtype=np.int64)
"""Noun -> its hypernym, verb -> its hyper-verb, anything else -> 0."""
HYPERNYM[NOUNS] = HYPERNYM_IDS[:, None]
HYPERNYM[VERBS] = HYPER_VERB_IDS[:, None]

ANTONYM = np.zeros(COUNT, dtype=np.int64)
"""Adjective -> its antonym, anything else -> 0."""
ANTONYM[ADJECTIVE_IDS] = ADJECTIVE_IDS.reshape(-1, 2)[:, ::-1].ravel()

TYPE = np.full(COUNT, -1)
"""Noun or hypernym -> index of its type, verb or hyper-verb -> index of its group, anything else -> -1."""
TYPE[NOUNS] = np.arange(len(NOUNS))[:, None]
TYPE[HYPERNYM_IDS] = np.arange(len(NOUNS))
TYPE[VERBS] = np.arange(len(VERBS))[:, None]
TYPE[HYPER_VERB_IDS] = np.arange(len(VERBS))


def _selection(which: int) -> np.ndarray:
    """Probabilities (group, type), uniform over the types that entry `which` of VERB_GROUPS lists."""
    types = list(NOUN_TYPES)
    table = np.zeros((len(VERB_GROUPS), len(types)))
    for group, entry in enumerate(VERB_GROUPS.values()):
        for noun_type in entry[which]:
            table[group, types.index(noun_type)] = 1.0
    return table / table.sum(axis=1, keepdims=True)


SUBJECT_TYPES = _selection(1)
"""(group, type) -> probability that a subject of the group's verbs is of the type."""
OBJECT_TYPES = _selection(2)
"""(group, type) -> probability that an object of the group's verbs is of the type."""
