"""The tokenizer, cut to the pieces that some texts need."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from .file import E5

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
PREFIXES = ("query: ", "passage: ")
"""What E5 was trained to read before a text. A cut always keeps their pieces."""


@dataclass(frozen=True)
class Cut:
    """A part of the vocabulary.

    Attributes:
        ids: of the pieces that stay, in their order.
        replaced: of `E5.replaced`, the code points that stay.
    """

    ids: np.ndarray
    replaced: dict[int, str]


def whole(e5: E5) -> Cut:
    return Cut(np.arange(len(e5.pieces)), e5.replaced)


def cut(e5: E5, texts: Collection[str]) -> Cut:
    """The part that gives these texts the pieces that the whole gives them.

    The best way to cut a text is the best among fewer ways as well. The penalty of an unknown character hangs on the lowest
    score, so a piece with that score stays too.
    """
    tokenizer = _tokenizer(e5, whole(e5).ids, {})
    translated = [text.translate(e5.replaced) for text in (*texts, *PREFIXES)]
    used = {i for encoding in tokenizer.encode_batch(translated, add_special_tokens=False) for i in encoding.ids}
    kept = used | {e5.pieces.index(piece) for piece in SPECIAL} | {int(np.argmin(e5.scores))}
    points = {ord(character) for text in texts for character in text}
    return Cut(np.array(sorted(kept)), {point: text for point, text in e5.replaced.items() if point in points})


def build(e5: E5, part: Cut) -> PreTrainedTokenizerFast:
    """A fast tokenizer whose ids are the places in `part.ids`. A piece that begins a word covers the space before it."""
    first, pad, last, unknown, mask = SPECIAL
    return PreTrainedTokenizerFast(
        tokenizer_object=_tokenizer(e5, part.ids, part.replaced),
        bos_token=first,
        cls_token=first,
        eos_token=last,
        sep_token=last,
        pad_token=pad,
        unk_token=unknown,
        mask_token=AddedToken(mask, lstrip=True, special=True),
        model_max_length=e5.sizes["max_position_embeddings"],
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


def _tokenizer(e5: E5, ids: Sequence[int] | np.ndarray, replaced: dict[int, str]) -> Tokenizer:
    pieces = [(e5.pieces[i], e5.scores[i]) for i in ids]
    place = {piece: at for at, (piece, _) in enumerate(pieces)}
    made = Tokenizer(models.Unigram(pieces, unk_id=place[e5.pieces[e5.unknown]]))
    # No replacement holds a code point that is itself replaced, so the order of these does not matter.
    made.normalizer = normalizers.Sequence(
        [
            *(normalizers.Replace(chr(point), text) for point, text in replaced.items()),
            normalizers.Replace(Regex(" {2,}"), " "),
        ]
    )
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    first, last = SPECIAL[0], SPECIAL[2]
    made.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}",
        pair=f"{first} $A {last} {last} $B {last}",
        special_tokens=[(token, place[token]) for token in (first, last)],
    )
    return made
