"""Metrics: accuracy, and the exact match and token F1 of extracted answers, as SQuAD and MLQA define them.

SQuAD v1.1 (Rajpurkar et al. 2016) and XQuAD lower-case a text, drop ASCII punctuation and English articles, and split it
at white space. MLQA (Lewis et al. 2020) drops all Unicode punctuation and the articles of the context's language, and
makes each Han character of a Chinese text a token. With several gold answers the best one counts. Under both definitions
an empty prediction has an F1 of 0, whatever the gold answer is.
"""

from __future__ import annotations

import re
import string
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from .batches import Batch

_ASCII = frozenset(string.punctuation)
_UNICODE = _ASCII | {c for c in map(chr, range(sys.maxunicode + 1)) if unicodedata.category(c)[0] == "P"}
_HAN = re.compile("([\u4e00-\u9fa5])")


def accuracy(model: nn.Module, batches: Iterable[Batch]) -> float:
    """Share of examples whose largest logit is that of their label, 0 to 1.

    Args:
        batches: inputs of the model and "labels" (n,).
    """
    device = next(model.parameters()).device
    correct = total = 0
    for batch in batches:
        inputs = {name: x.to(device) for name, x in batch.items()}
        labels = inputs.pop("labels")
        correct += int((model(**inputs).logits.argmax(dim=1) == labels).sum())
        total += len(labels)
    return correct / total


@dataclass(frozen=True)
class Normaliser:
    """Turns a text into the tokens that are compared.

    Attributes:
        punctuation: characters that are dropped first.
        articles: then replaced by a space, in the lower-cased text.
        han: whether each Han character is a token.
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
        """1 if the prediction has the tokens of a gold answer, else 0."""
        predicted = self.tokens(prediction)
        return float(any(predicted == self.tokens(answer) for answer in answers))

    def f1(self, prediction: str, answers: Sequence[str]) -> float:
        """2 x shared tokens / (predicted tokens + gold tokens), the best over the gold answers."""
        predicted = self.tokens(prediction)
        return max(_f1(predicted, self.tokens(answer)) for answer in answers)


def _f1(predicted: list[str], gold: list[str]) -> float:
    shared = sum((Counter(predicted) & Counter(gold)).values())
    return 2 * shared / (len(predicted) + len(gold)) if shared else 0.0


def _words(*articles: str) -> re.Pattern[str]:
    return re.compile(rf"\b(?:{'|'.join(articles)})\b")


SQUAD = Normaliser(_ASCII, _words("a", "an", "the"))
"""For SQuAD and XQuAD, in every language."""

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
"""For MLQA, by the language of the context."""


def score_answers(
    predictions: Sequence[str], golds: Sequence[Sequence[str]], normaliser: Normaliser = SQUAD
) -> tuple[float, float]:
    """F1 and exact match of a data set, 0 to 1: means over questions.

    Args:
        predictions: one a question.
        golds: the gold answers of each question.

    Raises:
        ValueError: no question, not one prediction for each question, or a question without a gold answer.
    """
    if not golds or len(predictions) != len(golds):
        raise ValueError(f"expected a prediction for each question, got {len(predictions)} for {len(golds)} questions")
    if not all(golds):
        raise ValueError(f"question {[bool(g) for g in golds].index(False)} has no gold answer to be compared with")
    pairs = list(zip(predictions, golds, strict=True))
    f1 = sum(normaliser.f1(prediction, gold) for prediction, gold in pairs) / len(pairs)
    return f1, sum(normaliser.exact_match(prediction, gold) for prediction, gold in pairs) / len(pairs)


class AnswerMetric:
    """F1 as a metric. A metric is one number, so the exact match of each call is kept in `exact_matches`, in order.

    Args:
        score: a function from a model to (F1, exact match).
    """

    def __init__(self, score: Callable[[Any], tuple[float, float]]) -> None:
        self.score = score
        self.exact_matches: list[float] = []

    def __call__(self, model: Any) -> float:
        f1, exact = self.score(model)
        self.exact_matches.append(exact)
        return f1
