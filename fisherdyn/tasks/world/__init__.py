"""A world of our own: one grammar, ten synthetic languages, and a small encoder pretrained on all of them.

    python -m fisherdyn.tasks.world             # some sentences in three languages, and how far each is from the source
    python -m fisherdyn.tasks.world.pretrain --out DIR    # how the shipped encoder was made

It exists because pretrained multilingual models cannot be had everywhere. Precedents: K et al. 2020, "Cross-lingual
ability of multilingual BERT"; Dufter & Schütze 2020, "Identifying elements essential for BERT's multilinguality";
Deshpande et al. 2022, "When is BERT multilingual?".
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from . import inference
from .languages import LANGUAGES, SOURCE, Languages, distance

__all__ = ["LANGUAGES", "SOURCE", "Languages", "describe", "distance"]


def describe(codes: Sequence[str] = ("so", "te", "ny"), examples: int = 3, seed: int = 0) -> str:
    """The languages and their distance from the source, and labelled examples in some of them with glosses.

    Raises:
        ValueError: an unknown language.
    """
    world = Languages(seed)
    rows = [world.index(code) for code in codes]
    lines = ["language      distance  overlap  order  adjective  negation  case  share of text"]
    for language in sorted(LANGUAGES, key=distance):
        lines.append(
            f"{language.code} {language.name:10} {distance(language):7.2f} {language.overlap:8.2f}  {language.order:5}  "
            f"{language.adjective:9}  {language.negation:8}  {'yes' if language.case else 'no ':4}  {language.share:.2f}"
        )
    lines.append("distance: mean of (1 - overlap), Kendall distance of the word orders, (1 - share of text)")
    lines.append(
        "case markers are said in the text that the encoder was pretrained on, not in these sentences of the task"
    )
    premises, hypotheses, labels = inference.sample_pairs(examples, np.random.default_rng([seed, 6]))
    for premise, hypothesis, label in zip(premises, hypotheses, labels, strict=True):
        lines += ["", f"{inference.CLASSES[label]}:"]
        for code, row in zip(codes, rows, strict=True):
            for meaning, title in ((premise, code), (hypothesis, "")):
                lines.append(f"  {title:3} {world.words(world.speak(meaning[None], row, case=False)[0])}")
                lines.append(f"      {world.gloss(meaning, row)}")
    return "\n".join(lines)
