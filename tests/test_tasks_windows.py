"""Texts in windows of tokens: every gold answer of XQuAD and XCOPA comes back from its offsets, in every language."""

from __future__ import annotations

import re

import numpy as np
import pytest
import tiny
from transformers import AutoTokenizer

from fisherdyn.tasks.metrics import MLQA, SQUAD, score_answers
from fisherdyn.tasks.text import sources
from fisherdyn.tasks.text.reading import read
from fisherdyn.tasks.text.windows import best_answers, locate, make_windows

pytestmark = pytest.mark.skipif(not tiny.SHARED.is_dir(), reason="the shared data are not beside the project")


@pytest.fixture(scope="module")
def tokenizers(hub):
    return {model: AutoTokenizer.from_pretrained(hub / model / "model") for model in ("xlmr", "mbert")}


@pytest.mark.parametrize("code", ["en", *tiny.XQUAD_LANGUAGES])
@pytest.mark.parametrize("model", ["xlmr", "mbert"])
def test_every_gold_answer_of_xquad_comes_back_from_its_offsets(tokenizers, model, code):
    """1,190 questions a language. What comes back is the answer or, where a token is wider, just that token's rest more.

    Romanian is XQuAD's twelfth language; the shared data have eleven.
    """
    rows = read(sources.XQUAD_TEST, code, tiny.SHARED / "xquad")
    assert len(rows) == 1190
    windows = make_windows(tokenizers[model], rows)
    found: dict[int, set[tuple[int, int]]] = {}
    for window in windows:
        if window.answerable:
            span = window.offsets[[window.start - window.first, window.end - window.first]]
            found.setdefault(window.question, set()).add((int(span[0, 0]), int(span[1, 1])))
    assert set(found) == set(range(len(rows)))  # none is lost, however long its context
    assert any(not window.answerable for window in windows)
    wider = 0
    for i, row in enumerate(rows):
        gold, start = row["answers"]["text"][0], row["answers"]["answer_start"][0]
        end = start + len(gold)
        assert row["context"][start:end] == gold
        (span,) = found[i]  # the same in every window that holds it
        assert span[0] <= start + len(gold) - len(gold.lstrip())
        assert span[1] >= end - len(gold) + len(gold.rstrip())
        text = row["context"][slice(*span)]
        edges = row["context"][span[0] : start] + row["context"][end : span[1]]
        assert not re.search(r"\s\S", edges.strip())  # a part of one word at each end, no more
        wider += text.strip() != gold.strip()
    # What the tiny tokenizers join, such as a comma to its word; the real ones have 60 times as many tokens.
    assert wider <= {"xlmr": 60, "mbert": 10}[model]


@pytest.mark.parametrize("code", ["en", *tiny.XQUAD_LANGUAGES])
def test_gold_answers_fed_back_score_100(code):
    rows = read(sources.XQUAD_TEST, code, tiny.SHARED / "xquad")
    golds = [row["answers"]["text"] for row in rows]
    for normaliser in (SQUAD, MLQA.get(code, SQUAD)):
        assert score_answers([gold[0] for gold in golds], golds, normaliser) == (1.0, 1.0)
    shifted = [golds[i - 1][0] for i in range(len(golds))]
    assert max(score_answers(shifted, golds)) < 0.2  # the control: another question's answer


@pytest.mark.parametrize("code", ["en", "zh", "th"])
def test_logits_at_the_gold_tokens_give_the_gold_answers(tokenizers, code):
    """Through the decoding: F1 100 but for tokens that are wider than the answer."""
    rows = read(sources.XQUAD_TEST, code, tiny.SHARED / "xquad")[:300]
    windows = make_windows(tokenizers["mbert"], rows)

    def logits(window):
        start, end = (np.full(len(window.input_ids), -5.0) for _ in range(2))
        if window.answerable:
            start[window.start] = end[window.end] = 5.0
        return window, start, end

    said = best_answers(map(logits, windows), rows, longest=100)
    f1, exact = score_answers(said, [row["answers"]["text"] for row in rows])
    assert f1 > 0.99
    assert exact > 0.98


@pytest.mark.parametrize("code", tiny.XCOPA_LANGUAGES)
@pytest.mark.parametrize("model", ["xlmr", "mbert"])
def test_every_choice_of_xcopa_is_whole_in_its_tokens(tokenizers, model, code):
    """500 test questions a language; each of both choices comes back from its offsets, and nothing is cut at 128 tokens."""
    rows = read(sources.XCOPA_TEST, code, tiny.SHARED / "xcopa")
    assert len(rows) == 500
    golds = [row[("choice1", "choice2")[row["label"]]] for row in rows]
    asked = [f"{row['premise']} {row['question']}" for row in rows]
    encoded = tokenizers[model](asked, golds, truncation=True, max_length=128, return_offsets_mapping=True)
    for i, gold in enumerate(golds):
        offsets = [
            o for o, part in zip(encoded["offset_mapping"][i], encoded.sequence_ids(i), strict=True) if part == 1
        ]
        assert gold[offsets[0][0] : offsets[-1][1]] == gold.strip()


def test_windows_by_hand():
    """Tokens of two characters, with a gap: what touches the answer, and what is beyond the window's edge."""
    offsets = np.array([[4, 6], [6, 8], [9, 11]])
    inside = {"is_first": False, "is_last": False}
    assert locate(offsets, 6, 8, **inside) == (1, 1)
    assert locate(offsets, 5, 10, **inside) == (0, 2)
    assert locate(offsets, 3, 6, **inside) is None  # begins in the window before
    assert locate(offsets, 3, 6, is_first=True, is_last=False) == (0, 0)
    assert locate(offsets, 9, 12, **inside) is None  # ends in the window after
    assert locate(offsets, 9, 12, is_first=False, is_last=True) == (2, 2)
    assert locate(offsets, 8, 9, **inside) is None  # white space alone
    assert locate(offsets, 20, 22, **inside) is None


def test_long_questions_are_cut_and_narrow_windows_refused(tokenizers):
    row = {
        "context": "It was Anna. " * 200,
        "question": "who " * 300,
        "answers": {"text": ["Anna"], "answer_start": [7]},
    }
    windows = make_windows(tokenizers["mbert"], [row], max_length=256, stride=64)
    assert len(windows) > 3
    assert all(len(window.input_ids) <= 256 for window in windows)
    assert windows[0].answerable
    assert not windows[-1].answerable
    assert (windows[-1].start, windows[-1].end) == (0, 0)
    covered = np.zeros(len(row["context"]), dtype=bool)
    for window in windows:
        for start, end in window.offsets:
            covered[start:end] = True
    assert all(covered[i] for i, character in enumerate(row["context"]) if not character.isspace())
    with pytest.raises(ValueError, match="max_length 128: beside a question of 64 tokens it leaves 61"):
        make_windows(tokenizers["mbert"], [row], max_length=128, stride=128)


def test_the_best_answer_is_possible():
    """End before start, a span too long and a span outside the context lose to a possible one; none at all is empty."""
    row = {"context": "ab cd ef", "question": "?", "answers": {"text": ["ab"], "answer_start": [0]}}
    window = _Window(offsets=np.array([[0, 2], [3, 5], [6, 8]]))
    start, end = np.array([9.0, 0, 1, 5, 1]), np.array([9.0, 0, 5, 0, 2])
    assert best_answers([(window, start, end)], [row]) == ["cd ef"]
    assert best_answers([(window, start, end)], [row], longest=1) == ["ab"]
    assert best_answers([(_Window(offsets=np.zeros((0, 2), dtype=int)), start, end)], [row]) == [""]


class _Window:
    question, first = 0, 2

    def __init__(self, offsets):
        self.offsets = offsets
