"""Extraction from long texts: windows of tokens, the answer's place in each, and the way back from logits to text.

A context that does not fit beside its question is read in windows that overlap by `stride` tokens. A window without the
whole answer is unanswerable, and its target is the first token. Tokens need not end where an answer does; the text of a
predicted span can then be wider than the answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .reading import Row

QUESTION_TOKENS = 64
"""Longer questions are cut, as in BERT's SQuAD recipe."""
CHUNK = 1000
"""Questions tokenised in one call."""


@dataclass(frozen=True)
class Window:
    """A question and a part of its context, as the model reads them.

    Attributes:
        question: the question's row in the data.
        input_ids, token_type_ids: (tokens,).
        first: position of the context's first token.
        offsets: (tokens of the context, 2), the characters of the context that each token covers.
        start, end: positions of the answer's first and last token; both 0 where the window lacks part of the answer.
    """

    question: int
    input_ids: np.ndarray
    token_type_ids: np.ndarray
    first: int
    offsets: np.ndarray
    start: int
    end: int

    @property
    def answerable(self) -> bool:
        return self.start >= self.first


def make_windows(tokenizer: Any, rows: Sequence[Row], max_length: int = 384, stride: int = 128) -> list[Window]:
    """All windows of all rows, in order; `start` and `end` are those of the first gold answer.

    Args:
        max_length: tokens of a window.
        stride: tokens of the context that neighbouring windows share.

    Raises:
        ValueError: a max_length with which windows would not advance.
    """
    room = max_length - QUESTION_TOKENS - tokenizer.num_special_tokens_to_add(pair=True)
    if room <= stride:
        raise ValueError(
            f"max_length {max_length}: beside a question of {QUESTION_TOKENS} tokens it leaves {max(room, 0)} of context, "
            f"expected more than the stride ({stride})"
        )
    return [window for at in range(0, len(rows), CHUNK) for window in _chunk(tokenizer, rows, at, max_length, stride)]


def _chunk(tokenizer: Any, rows: Sequence[Row], at: int, max_length: int, stride: int) -> Iterator[Window]:
    chunk = rows[at : at + CHUNK]
    encoded = tokenizer(
        _short([row["question"] for row in chunk], tokenizer),
        [row["context"] for row in chunk],
        truncation="only_second",
        max_length=max_length,
        stride=stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        return_token_type_ids=True,
    )
    row_of_window = encoded["overflow_to_sample_mapping"]
    for i, row in enumerate(row_of_window):
        positions = [p for p, part in enumerate(encoded.sequence_ids(i)) if part == 1]
        offsets = np.array(encoded["offset_mapping"][i], dtype=np.int32)[positions]
        is_first = i == 0 or row_of_window[i - 1] != row
        is_last = i + 1 == len(row_of_window) or row_of_window[i + 1] != row
        first = positions[0] if positions else len(encoded["input_ids"][i])
        answer = locate(offsets, *_answer(chunk[row]), is_first=is_first, is_last=is_last)
        yield Window(
            question=at + row,
            input_ids=np.array(encoded["input_ids"][i], dtype=np.int32),
            token_type_ids=np.array(encoded["token_type_ids"][i], dtype=np.int8),
            first=first,
            offsets=offsets,
            start=first + answer[0] if answer else 0,
            end=first + answer[1] if answer else 0,
        )


def _short(questions: list[str], tokenizer: Any) -> list[str]:
    """Strips questions of outer white space and cuts them, between tokens, to at most QUESTION_TOKENS."""
    stripped = [question.strip() for question in questions]
    all_offsets = tokenizer(stripped, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return [
        text if len(offsets) <= QUESTION_TOKENS else text[: offsets[QUESTION_TOKENS - 1][1]]
        for text, offsets in zip(stripped, all_offsets, strict=True)
    ]


def _answer(row: Row) -> tuple[int, int]:
    """The first gold answer's first character, and one past its last."""
    answers = row["answers"]
    start = int(answers["answer_start"][0])
    return start, start + len(answers["text"][0])


def locate(offsets: np.ndarray, start: int, end: int, *, is_first: bool, is_last: bool) -> tuple[int, int] | None:
    """The first and last token that overlap the characters [start, end), or None where the window lacks part of them.

    Args:
        offsets: (tokens, 2). Characters between tokens may be uncovered: white space, or removed by normalisation.
        is_first, is_last: whether the window holds the context's beginning or its end.
    """
    overlapping = np.flatnonzero((offsets[:, 1] > start) & (offsets[:, 0] < end))
    if not len(overlapping):
        return None
    first, last = int(overlapping[0]), int(overlapping[-1])
    begins_before = first == 0 and not is_first and offsets[0, 0] > start
    ends_after = last == len(offsets) - 1 and not is_last and offsets[last, 1] < end
    return None if begins_before or ends_after else (first, last)


def best_answers(
    windows: Iterable[tuple[Window, np.ndarray, np.ndarray]],
    rows: Sequence[Row],
    n_best: int = 20,
    longest: int = 30,
) -> list[str]:
    """The best answer to each question over all its windows, as text of its context; "" where no span is possible.

    A span scores the sum of its start logit and its end logit. Spans lie in the context, are at most `longest` tokens
    long, and combine the `n_best` starts and ends of one window.

    Args:
        windows: (window, start logits (tokens,), end logits (tokens,)).
        rows: the questions.
    """
    best = [(-np.inf, "")] * len(rows)
    for window, start_logits, end_logits in windows:
        context = slice(window.first, window.first + len(window.offsets))
        starts, ends = start_logits[context], end_logits[context]
        likely_starts, likely_ends = (np.argsort(-logits, kind="stable")[:n_best] for logits in (starts, ends))
        length = likely_ends[None, :] - likely_starts[:, None] + 1
        score = np.where(
            (length >= 1) & (length <= longest), starts[likely_starts][:, None] + ends[likely_ends][None, :], -np.inf
        )
        if not score.size or score.max() <= best[window.question][0]:
            continue
        i, j = np.unravel_index(score.argmax(), score.shape)
        characters = window.offsets[likely_starts[i], 0], window.offsets[likely_ends[j], 1]
        best[window.question] = float(score.max()), rows[window.question]["context"][slice(*characters)].strip()
    return [text for _, text in best]
