"""What an answer is worth: exact match and F1 over tokens, as SQuAD and MLQA define them.

SQuAD v1.1 (Rajpurkar et al. 2016), also XQuAD's: lower case, ASCII punctuation and English articles away, tokens between
white space. MLQA (Lewis et al. 2020): every Unicode punctuation away, the articles of the context's language, and each Han
character of a Chinese text a token of its own. Of several gold answers the best one counts. Both definitions give an empty
prediction no F1, whatever the gold answer is.
"""

from __future__ import annotations

import re
import string
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

_ASCII = frozenset(string.punctuation)
_UNICODE = _ASCII | {c for c in map(chr, range(sys.maxunicode + 1)) if unicodedata.category(c)[0] == "P"}
_HAN = re.compile("([\u4e00-\u9fa5])")


@dataclass(frozen=True)
class Normaliser:
    """How a text becomes the tokens that are compared.

    Attributes:
        punctuation: characters that are dropped, before the articles are.
        articles: what is replaced by a space, in lower case.
        han: whether a Han character is a token by itself.
    """

    punctuation: frozenset[str]
    articles: re.Pattern[str] | None = None
    han: bool = False

    def tokens(self, text: str) -> list[str]:
        bare = "".join(c for c in text.lower() if c not in self.punctuation)
        if self.articles is not None:
            bare = self.articles.sub(" ", bare)
        return (_HAN.sub(r" \1 ", bare) if self.han else bare).split()

    def exact_match(self, prediction: str, answers: Sequence[str]) -> float:
        """1 where the tokens are those of a gold answer, else 0."""
        said = self.tokens(prediction)
        return float(any(said == self.tokens(answer) for answer in answers))

    def f1(self, prediction: str, answers: Sequence[str]) -> float:
        """2 x shared tokens / (tokens predicted + tokens of the gold answer), the best over the gold answers."""
        said = self.tokens(prediction)
        return max(_f1(said, self.tokens(answer)) for answer in answers)


def _f1(said: list[str], gold: list[str]) -> float:
    shared = sum((Counter(said) & Counter(gold)).values())
    return 2 * shared / (len(said) + len(gold)) if shared else 0.0


def _words(*articles: str) -> re.Pattern[str]:
    return re.compile(rf"\b(?:{'|'.join(articles)})\b")


SQUAD = Normaliser(_ASCII, _words("a", "an", "the"))
"""SQuAD's and XQuAD's, for every language."""

MLQA = {
    "ar": Normaliser(_UNICODE, re.compile("ال")),  # the article is a prefix; MLQA's pattern meets it in words as well
    "de": Normaliser(
        _UNICODE,
        _words("ein", "eine", "einen", "einem", "eines", "einer", "der", "die", "das", "den", "dem", "des"),
    ),
    "en": Normaliser(_UNICODE, _words("a", "an", "the")),
    "es": Normaliser(_UNICODE, _words("un", "una", "unos", "unas", "el", "la", "los", "las")),
    "hi": Normaliser(_UNICODE),
    "vi": Normaliser(_UNICODE, _words("của", "là", "cái", "chiếc", "những")),
    "zh": Normaliser(_UNICODE, han=True),
}
"""By the language of the context."""


def score_answers(
    predictions: Sequence[str], golds: Sequence[Sequence[str]], normaliser: Normaliser = SQUAD
) -> tuple[float, float]:
    """(F1, exact match) over a data set, 0 to 1: means over questions.

    Raises:
        ValueError: no question, another number of predictions than of questions, or a question without a gold answer.
    """
    if not golds or len(predictions) != len(golds):
        raise ValueError(f"expected a prediction for each question, got {len(predictions)} for {len(golds)} questions")
    if not all(golds):
        raise ValueError(f"question {[bool(g) for g in golds].index(False)} has no gold answer to be compared with")
    pairs = list(zip(predictions, golds, strict=True))
    f1 = sum(normaliser.f1(said, gold) for said, gold in pairs) / len(pairs)
    return f1, sum(normaliser.exact_match(said, gold) for said, gold in pairs) / len(pairs)


class AnswerMetric:
    """F1 as a metric. A metric is one number, so the exact match of every call is kept beside it, in order.

    Args:
        score: a model to (F1, exact match).
    """

    def __init__(self, score: Callable[[Any], tuple[float, float]]) -> None:
        self.score = score
        self.exact_matches: list[float] = []

    def __call__(self, model: Any) -> float:
        f1, exact = self.score(model)
        self.exact_matches.append(exact)
        return f1
