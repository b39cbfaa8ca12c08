"""Meanings and what follows from what: the semantics of the world, before any language.

A meaning is a row of nine slots (subject number, adjective, noun; negation; verb; adverb; object number, adjective,
noun), each holding a concept or 0. Two meanings without their negations stand in one of five relations, made by
editing one into the other, as in natural logic (MacCartney & Manning 2009, "An extended model of natural logic"):

    EQUAL       the same
    FORWARD     the first implies the second: a modifier dropped, a noun or verb replaced by its hypernym
    REVERSE     the second implies the first: the inverse edits
    DISJOINT    they exclude each other, by stipulation: an antonym, another number
    INDEPENDENT neither: roles swapped, another noun, verb, adjective or adverb
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from . import concepts as c

S_NUM, S_ADJ, S_NOUN, NEG, VERB, ADV, O_NUM, O_ADJ, O_NOUN = range(9)
SLOTS = 9
EQUAL, FORWARD, REVERSE, DISJOINT, INDEPENDENT = range(5)
RELATIONS = ("equal", "forward", "reverse", "disjoint", "independent")

MODIFIERS = {
    S_NUM: c.NUMBER_IDS,
    S_ADJ: c.ADJECTIVE_IDS,
    ADV: c.ADVERB_IDS,
    O_NUM: c.NUMBER_IDS,
    O_ADJ: c.ADJECTIVE_IDS,
}
"""Slots that may be empty, and what fills them."""
HEADS = (S_NOUN, VERB, O_NOUN)


def _choose_rows(table: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One column index for each row of a table of probabilities (n, m) -> (n,)."""
    return np.minimum((rng.random((len(table), 1)) > table.cumsum(axis=1)).sum(axis=1), table.shape[1] - 1)


def sample_meanings(
    n: int, rng: np.random.Generator, modifier: float = 0.45, negated: float = 0.2, hyper: float = 0.15
) -> np.ndarray:
    """n clauses (n, SLOTS): Zipf priors, selectional preferences; modifiers, negation and hypernyms by their rates."""
    m = np.zeros((n, SLOTS), dtype=np.int64)
    group = rng.choice(len(c.VERBS), size=n, p=c.zipf(len(c.VERBS)))
    m[:, VERB] = c.VERBS[group, rng.choice(3, size=n, p=c.zipf(3))]
    for slot, types in ((S_NOUN, c.SUBJECT_TYPES), (O_NOUN, c.OBJECT_TYPES)):
        m[:, slot] = c.NOUNS[_choose_rows(types[group], rng), rng.choice(5, size=n, p=c.zipf(5))]
    for slot, words in MODIFIERS.items():
        m[:, slot] = np.where(rng.random(n) < modifier, rng.choice(words, size=n), 0)
    for slot in HEADS:
        m[:, slot] = np.where(rng.random(n) < hyper, c.HYPERNYM[m[:, slot]], m[:, slot])
    m[:, NEG] = np.where(rng.random(n) < negated, c.ID[c.NEGATION], 0)
    return m


@dataclass(frozen=True)
class Edit:
    """One change of meaning: which relation it makes, which slot it touches, where it applies and how."""

    relation: int
    slot: int
    applies: Callable[[np.ndarray], np.ndarray]
    """meanings (n, SLOTS) -> bool (n,)"""
    new: Callable[[np.ndarray, np.random.Generator], np.ndarray]
    """meanings (n, SLOTS), rng -> the slot's new concepts (n,), or whole meanings (n, SLOTS) for ROLES"""


ROLES = -1
"""The slot of an edit that rewrites subject and object together."""


def _other(words: np.ndarray, current: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A word of `words`, drawn uniformly among those that are neither `current` nor of its type nor its antonym."""
    draw = np.array(current)
    while len(rows := np.flatnonzero(_related(draw, current))):
        draw[rows] = rng.choice(words, size=len(rows))
    return draw


def _related(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a == b) | (c.ANTONYM[a] == b) | ((c.TYPE[a] >= 0) & (c.TYPE[a] == c.TYPE[b]))


def _swap_roles(m: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    swapped = m.copy()
    swapped[:, [S_NUM, S_ADJ, S_NOUN, O_NUM, O_ADJ, O_NOUN]] = m[:, [O_NUM, O_ADJ, O_NOUN, S_NUM, S_ADJ, S_NOUN]]
    return swapped


def _swappable(m: np.ndarray) -> np.ndarray:
    """Subject and object differ, and the verb takes each in the other's place."""
    group, subject, obj = c.TYPE[m[:, VERB]], c.TYPE[m[:, S_NOUN]], c.TYPE[m[:, O_NOUN]]
    allowed = (c.SUBJECT_TYPES[group, obj] > 0) & (c.OBJECT_TYPES[group, subject] > 0)
    return allowed & (m[:, S_NOUN] != m[:, O_NOUN])


def _modifier_edits(slot: int, words: np.ndarray) -> list[Edit]:
    present: Callable = lambda m: m[:, slot] > 0  # noqa: E731
    edits = [
        Edit(FORWARD, slot, present, lambda m, rng: np.zeros(len(m), dtype=np.int64)),
        Edit(REVERSE, slot, lambda m: m[:, slot] == 0, lambda m, rng: rng.choice(words, size=len(m))),
    ]
    if slot in (S_NUM, O_NUM):
        return [*edits, Edit(DISJOINT, slot, present, lambda m, rng: _other(words, m[:, slot], rng))]
    if slot in (S_ADJ, O_ADJ):
        edits.append(Edit(DISJOINT, slot, present, lambda m, rng: c.ANTONYM[m[:, slot]]))
    return [*edits, Edit(INDEPENDENT, slot, present, lambda m, rng: _other(words, m[:, slot], rng))]


def _head_edits(slot: int, members: np.ndarray) -> list[Edit]:
    specific: Callable = lambda m: c.HYPERNYM[m[:, slot]] > 0  # noqa: E731
    return [
        Edit(FORWARD, slot, specific, lambda m, rng: c.HYPERNYM[m[:, slot]]),
        Edit(
            REVERSE,
            slot,
            lambda m: c.HYPERNYM[m[:, slot]] == 0,
            lambda m, rng: members[c.TYPE[m[:, slot]], rng.integers(members.shape[1], size=len(m))],
        ),
        Edit(INDEPENDENT, slot, lambda m: m[:, slot] > 0, lambda m, rng: _other(members.ravel(), m[:, slot], rng)),
    ]


EDITS: tuple[Edit, ...] = (
    *(edit for slot, words in MODIFIERS.items() for edit in _modifier_edits(slot, words)),
    *_head_edits(S_NOUN, c.NOUNS),
    *_head_edits(VERB, c.VERBS),
    *_head_edits(O_NOUN, c.NOUNS),
    Edit(INDEPENDENT, ROLES, _swappable, _swap_roles),
)


def _apply_one(
    m: np.ndarray, relation: np.ndarray, touched: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """One edit of the wanted relation in each row, in a slot other than `touched`: (edited, slot; SLOTS where none)."""
    wanted = np.stack([(relation == e.relation) & (touched != e.slot) & e.applies(m) for e in EDITS], axis=1)
    odds = np.where(wanted, rng.random(wanted.shape), -1.0)
    choice = odds.argmax(axis=1)
    possible = wanted.any(axis=1)
    edited, slot = m.copy(), np.full(len(m), SLOTS)
    for i, edit in enumerate(EDITS):
        rows = np.flatnonzero(possible & (choice == i))
        slot[rows] = edit.slot
        if edit.slot == ROLES:
            edited[rows] = edit.new(m[rows], rng)
        else:
            edited[rows, edit.slot] = edit.new(m[rows], rng)
    return edited, slot


def rewrite(
    m: np.ndarray, relation: np.ndarray, rng: np.random.Generator, twice: float = 0.3
) -> tuple[np.ndarray, np.ndarray]:
    """A second meaning in the wanted relation to each first one.

    Args:
        m: meanings (n, SLOTS). Their negation is carried over as it is.
        relation: (n,) of the five relations.
        twice: the share of rows edited in two slots (FORWARD and REVERSE twice; DISJOINT and INDEPENDENT, then FORWARD,
            which keeps them so).

    Returns:
        The rewritten meanings (n, SLOTS) and whether each could be made (n,): a row with no modifier, say, has nothing
        to drop.
    """
    edited, slot = _apply_one(m, relation, np.full(len(m), SLOTS), rng)
    done = (relation == EQUAL) | (slot < SLOTS)
    second = np.where(np.isin(relation, (FORWARD, REVERSE)), relation, FORWARD)
    again = done & (relation != EQUAL) & (slot != ROLES) & (rng.random(len(m)) < twice)
    if again.any():
        edited[again] = _apply_one(edited[again], second[again], slot[again], rng)[0]
    return edited, done


def sample_related(n: int, relation: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """n pairs of unnegated meanings in the wanted relations; rows that cannot be made are drawn again."""
    first = sample_meanings(n, rng, negated=0.0)
    second, done = rewrite(first, relation, rng)
    if not done.all():
        rows = np.flatnonzero(~done)
        first[rows], second[rows] = sample_related(len(rows), relation[rows], rng)
    return first, second


def sample_facts(n: int, rng: np.random.Generator) -> np.ndarray:
    """n encyclopaedic sentences (n, SLOTS): "dog is animal", "carry is move", "big is not small"."""
    m = np.zeros((n, SLOTS), dtype=np.int64)
    m[:, VERB] = c.ID[c.COPULA]
    specific = np.flatnonzero(c.HYPERNYM)
    word = rng.choice(np.concatenate([specific, c.ADJECTIVE_IDS]), size=n)
    adjective = c.ANTONYM[word] > 0
    m[:, S_NOUN] = word
    m[:, O_NOUN] = np.where(adjective, c.ANTONYM[word], c.HYPERNYM[word])
    m[:, NEG] = np.where(adjective, c.ID[c.NEGATION], 0)
    return m
