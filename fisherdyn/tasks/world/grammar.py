"""Meanings and the relations between them, before any language.

A meaning is a row of nine slots: number, adjective and noun of the subject; negation; verb; adverb; number, adjective and
noun of the object. Each slot holds a concept or 0. Two meanings, their negations aside, stand in one of five relations,
which are made by editing one into the other, as in natural logic (MacCartney & Manning 2009, "An extended model of natural
logic"):

    EQUAL       the same
    FORWARD     the first implies the second: a modifier is dropped, a noun or verb replaced by its hypernym
    REVERSE     the second implies the first: the inverse edits
    DISJOINT    they exclude each other, by stipulation: an antonym, another number
    INDEPENDENT none of these: roles are swapped, or a noun, verb, adjective or adverb is replaced
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
"""Slots that may be empty -> the concepts that fill them."""
HEADS = (S_NOUN, VERB, O_NOUN)


def _choose_rows(table: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Samples a column for each row of a table of probabilities: (n, m) -> (n,)."""
    return np.minimum((rng.random((len(table), 1)) > table.cumsum(axis=1)).sum(axis=1), table.shape[1] - 1)


def sample_meanings(
    n: int, rng: np.random.Generator, modifier: float = 0.45, negated: float = 0.2, hyper: float = 0.15
) -> np.ndarray:
    """Samples n meanings (n, SLOTS), with Zipfian frequencies and the verbs' selectional preferences.

    Args:
        modifier, negated, hyper: probabilities of each modifier, of negation, and of a hypernym in place of each head.
    """
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
    """One change of a meaning.

    Attributes:
        relation: of the meaning to the edited one.
        slot: that it changes, or ROLES.
        applies: meanings (n, SLOTS) -> whether the edit can be made (n,).
        new: meanings (n, SLOTS), rng -> the slot's new concepts (n,); for ROLES, whole meanings (n, SLOTS).
    """

    relation: int
    slot: int
    applies: Callable[[np.ndarray], np.ndarray]
    new: Callable[[np.ndarray, np.random.Generator], np.ndarray]


ROLES = -1
"""In place of a slot: the edit exchanges subject and object."""


def _other(words: np.ndarray, current: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Samples words (n,) that are neither the current ones, nor of their type, nor their antonyms."""
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
    """Whether subject and object differ and the verb can take each in the other's place."""
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


def _edit_once(
    m: np.ndarray, relation: np.ndarray, edited_slot: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Makes one random edit of the given relation in each row, in a slot that has not been edited.

    Returns:
        Edited meanings (n, SLOTS), and the slot of each edit (n,), SLOTS where no edit is possible.
    """
    candidates = np.stack([(relation == e.relation) & (edited_slot != e.slot) & e.applies(m) for e in EDITS], axis=1)
    choice = np.where(candidates, rng.random(candidates.shape), -1.0).argmax(axis=1)
    possible = candidates.any(axis=1)
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
    """Edits each meaning into one to which it has the given relation.

    Args:
        m: meanings (n, SLOTS). Negation is not edited.
        relation: (n,), of the five relations.
        twice: share of rows that are edited in two slots. The second edit is of the same relation after FORWARD and
            REVERSE, and FORWARD, which changes neither, after DISJOINT and INDEPENDENT.

    Returns:
        The edited meanings (n, SLOTS), and whether each could be made (n,): without a modifier, for example, none can be
        dropped.
    """
    edited, slot = _edit_once(m, relation, np.full(len(m), SLOTS), rng)
    done = (relation == EQUAL) | (slot < SLOTS)
    second = np.where(np.isin(relation, (FORWARD, REVERSE)), relation, FORWARD)
    again = done & (relation != EQUAL) & (slot != ROLES) & (rng.random(len(m)) < twice)
    if again.any():
        edited[again] = _edit_once(edited[again], second[again], slot[again], rng)[0]
    return edited, done


def sample_related(n: int, relation: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Samples n pairs of meanings without negation in the given relations; impossible ones are sampled again."""
    first = sample_meanings(n, rng, negated=0.0)
    second, done = rewrite(first, relation, rng)
    if not done.all():
        rows = np.flatnonzero(~done)
        first[rows], second[rows] = sample_related(len(rows), relation[rows], rng)
    return first, second


def sample_facts(n: int, rng: np.random.Generator) -> np.ndarray:
    """Samples n facts (n, SLOTS): "dog is animal", "carry is move", "big is not small"."""
    m = np.zeros((n, SLOTS), dtype=np.int64)
    m[:, VERB] = c.ID[c.COPULA]
    specific = np.flatnonzero(c.HYPERNYM)
    word = rng.choice(np.concatenate([specific, c.ADJECTIVE_IDS]), size=n)
    adjective = c.ANTONYM[word] > 0
    m[:, S_NOUN] = word
    m[:, O_NOUN] = np.where(adjective, c.ANTONYM[word], c.HYPERNYM[word])
    m[:, NEG] = np.where(adjective, c.ID[c.NEGATION], 0)
    return m
