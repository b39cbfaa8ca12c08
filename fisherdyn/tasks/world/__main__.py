"""python -m fisherdyn.tasks.world: shows the world's languages and labelled examples."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np

from . import inference
from .languages import LANGUAGES, Languages, distance


def describe(codes: Sequence[str] = ("so", "te", "ny"), examples: int = 3, seed: int = 0) -> str:
    """All languages with their distance from the source, and labelled examples with glosses in some of them.

    Args:
        codes: the languages of the examples.
        examples: pairs of sentences.
        seed: of the world and of the examples.

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
    lines.append("case markers occur in the encoder's pretraining text only, not in these sentences of the task")
    premises, hypotheses, labels = inference.sample_pairs(examples, np.random.default_rng([seed, 6]))
    for premise, hypothesis, label in zip(premises, hypotheses, labels, strict=True):
        lines += ["", f"{inference.CLASSES[label]}:"]
        for code, row in zip(codes, rows, strict=True):
            for meaning, title in ((premise, code), (hypothesis, "")):
                lines.append(f"  {title:3} {world.words(world.speak(meaning[None], row, case=False)[0])}")
                lines.append(f"      {world.gloss(meaning, row)}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m fisherdyn.tasks.world", description=__doc__)
    parser.add_argument("--languages", default="so,te,ny", help="codes, separated by commas (%(default)s)")
    parser.add_argument("--examples", type=int, default=3, help="pairs to show (%(default)s)")
    args = parser.parse_args(argv)
    if args.examples < 1:
        parser.error(f"--examples {args.examples}: expected at least 1")
    try:
        print(describe(args.languages.split(","), args.examples))
    except ValueError as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
