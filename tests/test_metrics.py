"""The answer metrics against a second implementation, written another way, and against cases worked out by hand."""

from __future__ import annotations

import random
import string
import unicodedata

import pytest
import torch
from torch import nn

from fisherdyn.tasks.batches import Batches
from fisherdyn.tasks.metrics import MLQA, SQUAD, AnswerMetric, accuracy, score_answers

ARTICLES = {
    "squad": "a an the",
    "en": "a an the",
    "es": "un una unos unas el la los las",
    "de": "ein eine einen einem eines einer der die das den dem des",
    "vi": "của là cái chiếc những",
    "hi": "",
    "zh": "",
}
"""Whole words; Arabic's prefix is dealt with by itself."""


def words(text: str, kind: str) -> list[str]:
    """Character by character and word by word, without a regular expression."""
    kept = []
    for character in text.lower():
        ascii_mark = character in string.punctuation
        if not (ascii_mark or (kind != "squad" and unicodedata.category(character).startswith("P"))):
            kept.append(character)
    text = "".join(kept)
    if kind == "ar":
        text = " ".join(text.split("ال"))
    if kind == "zh":
        text = "".join(f" {c} " if 0x4E00 <= ord(c) <= 0x9FA5 else c for c in text)
    return " ".join(without_articles(text, set(ARTICLES.get(kind, "").split()))).split()


def without_articles(text: str, articles: set[str]) -> list[str]:
    """Runs of word characters (a combining mark is none) that are articles go; what stands between them stays."""
    parts, run = [], ""
    for character in [*text, "\n"]:
        if character.isalnum() or character == "_":
            run += character
            continue
        parts.append(" " if run in articles else run)
        parts.append(character)
        run = ""
    return "".join(parts).split()


def second_opinion(said: str, gold: str, kind: str) -> tuple[float, float]:
    a, b = words(said, kind), words(gold, kind)
    left, shared = list(b), 0
    for word in a:
        if word in left:
            left.remove(word)
            shared += 1
    precision, recall = (shared / len(a), shared / len(b)) if shared else (0.0, 0.0)
    return (2 * precision * recall / (precision + recall) if shared else 0.0), float(a == b)


PIECES = [
    *("the", "The", "a", "An", "THE", "der", "die", "das", "ein", "la", "los", "una", "unas", "của", "là", "những"),
    *("ال", "الكتاب", "كتابال", "第六", "黑豹队", "NFL中国", "308分", "อันดับ", "ที่หก", "हिन्दी", "में", "पाँच"),
    *("Straße", "L'Amour", "naïve", "İstanbul", "don't", "U.S.", "3,5", "½", "²", "_x_"),
    *("。", "，", "、", "؟", "،", "…", "—", "«", "»", "'", '"', "-", "(", ")", "$", "€", "+"),
    *("\u3000", "\t", "\u00a0", "\u200b", ""),
]


@pytest.mark.parametrize("kind", ["squad", *MLQA])
def test_agrees_with_a_second_implementation(kind):
    """2,000 pairs of random and adversarial texts, some of them copies."""
    rng = random.Random(kind)
    normaliser = SQUAD if kind == "squad" else MLQA[kind]
    seen = set()
    for _ in range(2000):
        gold = rng.choice(["", " "]).join(rng.choices(PIECES, k=rng.randint(0, 6)))
        said = (
            gold
            if rng.random() < 0.2
            else rng.choice(["", " "]).join(rng.choices([*PIECES, gold], k=rng.randint(0, 5)))
        )
        expected = second_opinion(said, gold, kind)
        assert (normaliser.f1(said, [gold]), normaliser.exact_match(said, [gold])) == pytest.approx(expected), (
            said,
            gold,
        )
        seen.add((round(expected[0], 3), expected[1]))
    assert len(seen) > 10
    assert {(1.0, 1.0), (0.0, 0.0)} <= seen


def test_a_wrong_normalisation_would_be_seen():
    """The control: MLQA's Chinese under SQuAD's rules, and SQuAD's under MLQA's, give other numbers."""
    assert SQUAD.f1("中国队", ["中国"]) == 0
    assert MLQA["zh"].f1("中国队", ["中国"]) == pytest.approx(0.8)
    assert SQUAD.exact_match("黑豹队。", ["黑豹队"]) == 0
    assert MLQA["zh"].exact_match("黑豹队。", ["黑豹队"]) == 1


@pytest.mark.parametrize(
    ("normaliser", "said", "gold", "f1", "exact"),
    [
        (SQUAD, "The Denver Broncos!", "denver broncos", 1, 1),
        (SQUAD, "Broncos", "the Denver Broncos", 2 / 3, 0),
        (SQUAD, "", "308", 0, 0),
        (SQUAD, "the", "a", 0, 1),  # nothing is left of either: SQuAD v1.1 calls that an exact match without F1
        (SQUAD, "a cat cat", "a cat cat cat", 0.8, 0),
        (MLQA["es"], "la casa roja", "una casa roja", 1, 1),
        (MLQA["de"], "der Hund", "ein Hund", 1, 1),
        (MLQA["ar"], "الكتاب", "كتاب", 1, 1),
        (MLQA["vi"], "những con mèo", "con mèo", 1, 1),
        (MLQA["zh"], "NFL中国", "NFL 中国", 1, 1),
        (MLQA["hi"], "पाँच", "पाँच।", 1, 1),
        (SQUAD, "อันดับที่หก", "อันดับ", 0, 0),  # Thai is not cut into words
    ],
)
def test_by_hand(normaliser, said, gold, f1, exact):
    assert normaliser.f1(said, [gold]) == pytest.approx(f1)
    assert normaliser.exact_match(said, [gold]) == exact


def test_the_best_gold_answer_counts_and_means_are_over_questions():
    f1, exact = score_answers(["red cat", "no"], [["blue dog", "the red cat"], ["yes"]])
    assert (f1, exact) == (0.5, 0.5)


@pytest.mark.parametrize(
    ("said", "golds", "message"),
    [
        ([], [], "got 0 for 0 questions"),
        (["a"], [["a"], ["b"]], "got 1 for 2"),
        (["a"], [[]], "question 0 has no gold"),
    ],
)
def test_what_cannot_be_scored_is_refused(said, golds, message):
    with pytest.raises(ValueError, match=message):
        score_answers(said, golds)


def test_exact_matches_are_kept_call_by_call():
    metric = AnswerMetric(lambda model: (model, model / 2))
    assert [metric(0.8), metric(0.4)] == [0.8, 0.4]
    assert metric.exact_matches == [0.4, 0.2]


class Logits(nn.Module):
    """A classifier whose inputs are its logits."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, inputs):
        self.logits = self.weight * inputs
        return self


@pytest.mark.parametrize("batch", [1, 3, 4, 7])
def test_accuracy_is_the_share_of_right_answers_whatever_the_batches(batch):
    """5 of 7 are right; a short last batch weighs by its examples, and the batches can be read again."""
    predicted, labels = torch.tensor([0, 1, 2, 0, 1, 2, 0]), torch.tensor([0, 1, 2, 0, 1, 0, 1])
    inputs = nn.functional.one_hot(predicted, 3).float()
    batches = Batches(7, batch, lambda rows: {"inputs": inputs[rows], "labels": labels[rows]})
    assert len(batches) == len(list(batches)) == -(-7 // batch)
    assert torch.equal(torch.cat([b["labels"] for b in batches]), labels)
    assert [accuracy(Logits(), batches) for _ in range(2)] == [5 / 7] * 2
