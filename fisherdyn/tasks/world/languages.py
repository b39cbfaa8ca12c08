"""Ten languages over the same concepts: how each says a meaning, and its distance from the source.

A language is defined by a few parameters (`Language`). `Languages` turns them into arrays, a lexicon (language, concept)
-> token and an order of slots, so that a batch that mixes languages, even within a sentence, is said in one step.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from . import concepts as c
from . import grammar as g

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PAD, UNK, CLS, SEP, MASK = range(5)

S_CASE, O_CASE = g.SLOTS, g.SLOTS + 1
"""Columns for the case markers of subject and object, after the grammar's slots."""
COLUMNS = g.SLOTS + 2


@dataclass(frozen=True)
class Language:
    """The parameters of one language.

    Attributes:
        overlap: share of content words that are the source's (cognates and loans).
        order: of subject, verb and object.
        adjective: "before" or "after" its noun.
        negation: "before" the verb, "after" it, or "last" in the clause.
        case: whether subject and object have case markers.
        share: amount of pretraining text, relative to the source.
        sounds: consonants and vowels of its words, which only a human reader sees.
    """

    code: str
    name: str
    overlap: float
    order: str
    adjective: str
    negation: str
    case: bool
    share: float
    sounds: tuple[str, str]


SOURCE = "so"
LANGUAGES: tuple[Language, ...] = (
    Language("so", "Sorel", 1.0, "SVO", "before", "before", False, 1.0, ("s r l t n m", "o e a")),
    Language("ka", "Kasin", 0.4, "SVO", "before", "before", False, 1.0, ("k s n p d", "a i")),
    Language("vo", "Voltu", 0.35, "SVO", "after", "before", False, 0.9, ("v l t b g", "o u")),
    Language("mi", "Mirian", 0.3, "SVO", "before", "after", True, 0.8, ("m r n d j", "i a e")),
    Language("te", "Tekke", 0.25, "SOV", "before", "before", True, 0.75, ("t k b s g", "e u")),
    Language("hu", "Hulan", 0.2, "SVO", "after", "last", False, 0.6, ("h l n w y", "u a o")),
    Language("zi", "Zibra", 0.15, "VSO", "after", "before", False, 0.5, ("z b r d v", "i a u")),
    Language("po", "Pokhan", 0.1, "SOV", "before", "after", True, 0.4, ("p kh n g f", "o a e")),
    Language("xu", "Xurqi", 0.05, "OVS", "after", "after", True, 0.3, ("x q r th j", "u i")),
    Language("ny", "Nyembe", 0.0, "VSO", "after", "last", True, 0.25, ("ny mb w nd y", "e o i")),
)
"""The source, then the targets. The parameters were set before any model was trained on them."""


def slot_order(language: Language) -> list[int]:
    """All COLUMNS in the order in which the language says them; empty ones are skipped when a sentence is said."""
    nouns = {
        "S": (g.S_NUM, g.S_ADJ, g.S_NOUN, S_CASE),
        "O": (g.O_NUM, g.O_ADJ, g.O_NOUN, O_CASE),
    }
    if language.adjective == "after":
        nouns = {role: (num, noun, adj, case) for role, (num, adj, noun, case) in nouns.items()}
    verb = {"before": (g.NEG, g.VERB, g.ADV), "after": (g.VERB, g.NEG, g.ADV), "last": (g.VERB, g.ADV)}
    order = [slot for part in language.order for slot in (verb[language.negation] if part == "V" else nouns[part])]
    return [*order, g.NEG] if language.negation == "last" else order


def order_distance(a: Language, b: Language) -> float:
    """Kendall's tau distance between two languages' slot orders, 0 (equal) to 1 (reversed)."""
    first, second = slot_order(a), slot_order(b)
    rank = np.array([second.index(slot) for slot in first])
    later = np.triu(rank[:, None] > rank[None, :], k=1)
    return float(later.sum() / (COLUMNS * (COLUMNS - 1) / 2))


def distance(language: Language, source: Language | None = None) -> float:
    """Distance of a language from the source, 0 to 1, defined by the parameters alone.

    It is the mean of 1 - lexical overlap, Kendall's tau distance of the slot orders, and 1 - share of pretraining text.
    """
    source = source or LANGUAGES[0]
    if language == source:
        return 0.0
    return float(np.mean([1 - language.overlap, order_distance(language, source), 1 - language.share]))


def _invent_word(language: Language, syllables: int, taken: set[str], rng: np.random.Generator) -> str:
    """A word that is not taken, one syllable longer after every 200 that are."""
    consonants, vowels = (part.split() for part in language.sounds)
    for attempt in range(10_000):
        n = syllables + attempt // 200
        word = "".join(rng.choice(consonants) + rng.choice(vowels) for _ in range(n))
        if word not in taken:
            taken.add(word)
            return word
    raise RuntimeError(f"{language.name} has run out of words: give it more sounds")


class Languages:
    """The lexicons and slot orders of all languages, made from one seed.

    Attributes:
        vocabulary: all tokens, special tokens first.
        lexicon: (language, concept) -> token id; PAD for concept 0 and for case markers that a language lacks.
        orders: (language, column), the slots in the order in which the language says them.
    """

    def __init__(self, seed: int = 0, languages: tuple[Language, ...] = LANGUAGES) -> None:
        self.languages = languages
        self.codes = tuple(language.code for language in languages)
        self.vocabulary: list[str] = list(SPECIAL_TOKENS)
        self.lexicon = np.zeros((len(languages), c.COUNT), dtype=np.int64)
        self.orders = np.array([slot_order(language) for language in languages])
        rng = np.random.default_rng([seed, 1])
        taken: set[str] = set()
        content = np.setdiff1d(np.arange(1, c.COUNT), c.FUNCTION_CONCEPTS)
        for row, language in enumerate(languages):
            shared = rng.permutation(content)[: round(language.overlap * len(content))] if row else ()
            self.lexicon[row, shared] = self.lexicon[0, shared]
            for concept in np.setdiff1d(np.arange(1, c.COUNT), shared):
                is_case = concept in (c.ID[c.SUBJECT_CASE], c.ID[c.OBJECT_CASE])
                if is_case and not language.case:
                    continue
                syllables = 1 if concept in c.FUNCTION_CONCEPTS else 2
                self.lexicon[row, concept] = len(self.vocabulary)
                self.vocabulary.append(_invent_word(language, syllables, taken, rng))

    def index(self, code: str) -> int:
        """The row of a language.

        Raises:
            ValueError: an unknown code; the message lists those that exist.
        """
        if code not in self.codes:
            raise ValueError(f"unknown language {code!r}: the world's languages are {', '.join(self.codes)}")
        return self.codes.index(code)

    def order_columns(self, meanings: np.ndarray, language: np.ndarray, case: bool) -> np.ndarray:
        """Concepts in the order in which the languages (n,) say them: (n, COLUMNS), 0 where a column is empty."""
        columns = np.concatenate([meanings, np.zeros((len(meanings), 2), dtype=meanings.dtype)], axis=1)
        columns[:, S_CASE] = np.where(case & (columns[:, g.S_NOUN] > 0), c.ID[c.SUBJECT_CASE], 0)
        columns[:, O_CASE] = np.where(case & (columns[:, g.O_NOUN] > 0), c.ID[c.OBJECT_CASE], 0)
        return np.take_along_axis(columns, self.orders[language], axis=1)

    def speak(
        self,
        meanings: np.ndarray,
        language: np.ndarray | int,
        words_from: np.ndarray | None = None,
        case: bool = True,
    ) -> np.ndarray:
        """Says meanings: token ids (n, COLUMNS), PAD at the right.

        Args:
            meanings: (n, SLOTS).
            language: row of the language whose word order is used, one for all or (n,).
            words_from: row of the language of each word (n, COLUMNS), for code-switching (default: `language`).
            case: whether languages that have case markers say them. They do in pretraining text, not in the tasks.
        """
        language = np.broadcast_to(language, len(meanings))
        spoken = self.order_columns(meanings, language, case)
        tokens = self.lexicon[language[:, None] if words_from is None else words_from, spoken]
        return np.take_along_axis(tokens, np.argsort(tokens == PAD, axis=1, kind="stable"), axis=1)

    def words(self, tokens: np.ndarray) -> str:
        """One row of token ids as text."""
        return " ".join(self.vocabulary[token] for token in tokens if token != PAD)

    def gloss(self, meaning: np.ndarray, language: int) -> str:
        """One meaning (SLOTS,) in English, word by word in the language's order, without case markers."""
        spoken = self.order_columns(meaning[None], np.array([language]), case=False)[0]
        return " ".join(c.NAMES[concept] for concept in spoken if self.lexicon[language, concept] != PAD)


def pack_pairs(first: np.ndarray, second: np.ndarray) -> dict[str, np.ndarray]:
    """[CLS] first [SEP] second [SEP], padded at the right: input_ids, token_type_ids and attention_mask (n, T)."""
    n = len(first)
    cls, sep = np.full((n, 1), CLS), np.full((n, 1), SEP)
    tokens = np.concatenate([cls, first, sep, second, sep], axis=1)
    segment = np.concatenate([np.zeros((n, first.shape[1] + 2)), np.ones((n, second.shape[1] + 1))], axis=1)
    order = np.argsort(tokens == PAD, axis=1, kind="stable")
    tokens = np.take_along_axis(tokens, order, axis=1)
    length = int((tokens != PAD).sum(axis=1).max(initial=1))
    mask = (tokens != PAD).astype(np.int64)
    segment = np.take_along_axis(segment.astype(np.int64), order, axis=1) * mask
    return {
        "input_ids": tokens[:, :length],
        "token_type_ids": segment[:, :length],
        "attention_mask": mask[:, :length],
    }
