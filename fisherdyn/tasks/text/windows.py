"""Extraction over long texts: windows of tokens, where the answer is in each, and back from logits to text.

A context that does not fit beside its question is read in windows that overlap by `stride` tokens. A window that lacks
part of the answer is unanswerable: its target is the first token. A token may be wider than the answer (no tokenizer cuts
where annotators do); then the text that comes back is wider too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .reading import Row

QUESTION_TOKENS = 64
"""What is longer of a question is cut, as BERT's SQuAD recipe does."""
CHUNK = 1000
"""Questions tokenised at once."""


@dataclass(frozen=True)
class Window:
    """A question and a part of its context, as the model reads them.

    Attributes:
        question: its row in the data.
        input_ids, token_type_ids: (tokens,).
        first: position of the context's first token.
        offsets: (tokens of the context, 2), characters of the context that each token covers.
        start, end: positions of the answer's first and last token; both that of the first token where it is not here.
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

    Raises:
        ValueError: `max_length` leaves no room to move on by.
    """
    room = max_length - QUESTION_TOKENS - tokenizer.num_special_tokens_to_add(pair=True)
    if room <= stride:
        raise ValueError(
            f"max_length {max_length}: beside a question of {QUESTION_TOKENS} tokens it leaves {max(room, 0)} of context, "
            f"expected more than the stride ({stride})"
        )
    return [window for at in range(0, len(rows), CHUNK) for window in _chunk(tokenizer, rows, at, max_length, stride)]


def _chunk(tokenizer: Any, rows: Sequence[Row], at: int, max_length: int, stride: int) -> Iterator[Window]:
    some = rows[at : at + CHUNK]
    encoded = tokenizer(
        _short([row["question"] for row in some], tokenizer),
        [row["context"] for row in some],
        truncation="only_second",
        max_length=max_length,
        stride=stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        return_token_type_ids=True,
    )
    belongs = encoded["overflow_to_sample_mapping"]
    for i, row in enumerate(belongs):
        positions = [p for p, part in enumerate(encoded.sequence_ids(i)) if part == 1]
        offsets = np.array(encoded["offset_mapping"][i], dtype=np.int32)[positions]
        is_first = i == 0 or belongs[i - 1] != row
        is_last = i + 1 == len(belongs) or belongs[i + 1] != row
        first = positions[0] if positions else len(encoded["input_ids"][i])
        found = locate(offsets, *_answer(some[row]), is_first=is_first, is_last=is_last)
        yield Window(
            question=at + row,
            input_ids=np.array(encoded["input_ids"][i], dtype=np.int32),
            token_type_ids=np.array(encoded["token_type_ids"][i], dtype=np.int8),
            first=first,
            offsets=offsets,
            start=first + found[0] if found else 0,
            end=first + found[1] if found else 0,
        )


def _short(questions: list[str], tokenizer: Any) -> list[str]:
    """Questions cut, at a token's edge, to at most QUESTION_TOKENS; white space at their ends is left out."""
    stripped = [question.strip() for question in questions]
    all_offsets = tokenizer(stripped, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return [
        text if len(offsets) <= QUESTION_TOKENS else text[: offsets[QUESTION_TOKENS - 1][1]]
        for text, offsets in zip(stripped, all_offsets, strict=True)
    ]


def _answer(row: Row) -> tuple[int, int]:
    """Characters of the first gold answer: start, and one past its end."""
    answers = row["answers"]
    start = int(answers["answer_start"][0])
    return start, start + len(answers["text"][0])


def locate(offsets: np.ndarray, start: int, end: int, *, is_first: bool, is_last: bool) -> tuple[int, int] | None:
    """The first and last token that share characters with [start, end), or None where the window lacks part of it.

    Args:
        offsets: (tokens, 2); tokens may leave characters between them uncovered (white space, what is normalised away).
        is_first, is_last: whether the window holds the context's beginning or end.
    """
    touching = np.flatnonzero((offsets[:, 1] > start) & (offsets[:, 0] < end))
    if not len(touching):
        return None
    first, last = int(touching[0]), int(touching[-1])
    begins_before = first == 0 and not is_first and offsets[0, 0] > start
    ends_after = last == len(offsets) - 1 and not is_last and offsets[last, 1] < end
    return None if begins_before or ends_after else (first, last)


def best_answers(
    windows: Iterable[tuple[Window, np.ndarray, np.ndarray]],
    rows: Sequence[Row],
    n_best: int = 20,
    longest: int = 30,
) -> list[str]:
    """Each question's best answer over its windows, as a piece of its context; "" where no span is possible.

    The score of a span is the sum of its start's and end's logits; spans lie in the context, end where or after they
    start, are at most `longest` tokens long, and are made of the `n_best` starts and ends of a window.

    Args:
        windows: (window, start logits (tokens,), end logits (tokens,)).
    """
    best = [(-np.inf, "")] * len(rows)
    for window, start_logits, end_logits in windows:
        inside = slice(window.first, window.first + len(window.offsets))
        starts, ends = start_logits[inside], end_logits[inside]
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
