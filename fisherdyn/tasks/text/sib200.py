"""SIB-200 (Adelani et al. 2024): the topic of a sentence, in 205 languages.

`sib200.csv` has what is known of the languages. Its column cc100 is the text of a language in CC-100, in GiB, as the
table of that corpus prints it (Conneau et al. 2020, appendix A): 0 where the table lacks the language, empty where one of
its rows may stand for several of ours. Its column readable is "no" where XLM-R's vocabulary has next to no piece of the
script or spelling, so that nearly all of a sentence is unknown.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import torch

from ...settings import Metric
from .. import tuning as tunings
from ..batches import Batch
from . import sources
from .classify import ClassifyingTask
from .e5.folder import NAME
from .mean_pooling import MeanPoolingClassifier
from .reading import MissingError, Row

CATEGORIES = ("science/technology", "travel", "politics", "sports", "health", "entertainment", "geography")
ENGLISH = "eng_Latn"
PREFIX = "query: "
"""What E5 was trained to read before a text."""
CC100 = 2394.3
"""GiB of all rows of CC-100's table together."""

with Path(__file__).with_name("sib200.csv").open(encoding="utf-8", newline="") as _file:
    LANGUAGES: dict[str, dict[str, str]] = {row["code"]: row for row in csv.DictReader(_file)}
PAPERS = {row["paper"]: code for code, row in LANGUAGES.items() if row["paper"]}
"""The paper's name of a language -> ours."""
UNREADABLE = {
    code: "nearly all of it is unknown to XLM-R's vocabulary"
    for code, row in LANGUAGES.items()
    if row["readable"] == "no"
}


class SIB200(ClassifyingTask):
    """Which of seven topics is a sentence about? Chance is about a quarter, the share of the largest topic.

    Args:
        data: folder with LANGUAGE/train.tsv, dev.tsv and test.tsv (default: the hub).
        source: a language, such as eng_Latn or es.
        languages: targets: codes such as quy_Latn or qu; "paper" for the paper's languages (the default), "all" for all but
            the source and those that the vocabulary cannot read, or a file with one code a line.

    The others are those of `TextTask`.
    """

    name = "sib200"
    splits = (sources.SIB_TRAIN, sources.SIB_DEV, sources.SIB_TEST)
    known = tuple(LANGUAGES)
    targets_of_paper = tuple(PAPERS.values())
    head = MeanPoolingClassifier
    num_labels = len(CATEGORIES)
    longest = 64

    def __init__(
        self,
        model: str = NAME,
        data: str | Path | None = None,
        adapters: str | Path | None = None,
        tuning: str = tunings.TASK_ADAPTER,
        source: str = ENGLISH,
        languages: Sequence[str] = (),
        train_examples: int | None = None,
        dev_examples: int | None = None,
        test_examples: int | None = None,
        probe_examples: int = 64,
        batch: int = 16,
        reduction: int = 16,
    ) -> None:
        self.source = PAPERS.get(source, source)
        if self.source not in LANGUAGES:
            raise ValueError(f"unknown source {source} of task {self.name}: choose from {', '.join(self.known)}")
        super().__init__(
            model=model,
            data=data,
            adapters=adapters,
            tuning=tuning,
            languages=languages,
            train_examples=train_examples,
            dev_examples=dev_examples,
            test_examples=test_examples,
            probe_examples=probe_examples,
            batch=batch,
            reduction=reduction,
        )
        self.coordinates = {
            "language": {code: LANGUAGES[code]["name"] for code in self.targets},
            "family": {code: LANGUAGES[code]["family"] for code in self.targets},
            "script": {code: code.partition("_")[2] for code in self.targets},
            "cc100": {code: float(LANGUAGES[code]["cc100"] or "nan") / CC100 for code in self.targets},
        }

    def _choose_targets(self, requested: tuple[str, ...]) -> tuple[tuple[str, ...], dict[str, str]]:
        if requested == ("all",):
            readable = tuple(code for code in LANGUAGES if code != self.source and code not in UNREADABLE)
            targets, skipped = super()._choose_targets(readable)
            return targets, {**UNREADABLE, **skipped}
        if requested in ((), ("paper",)):
            requested = tuple(code for code in self.targets_of_paper if code != self.source)
        elif len(requested) == 1 and Path(requested[0]).is_file():
            requested = tuple(Path(requested[0]).read_text(encoding="utf-8").split())
        codes = tuple(dict.fromkeys(PAPERS.get(code, code) for code in requested))
        if self.source in codes:
            raise ValueError(
                f"language {self.source} is the source: choose other languages as targets, or another --source"
            )
        return super()._choose_targets(codes)

    def validate(self, rows: list[Row], where: str) -> None:
        wrong = [row["category"] for row in rows if row["category"] not in CATEGORIES]
        if wrong:
            raise MissingError(f"{where}: expected the topics {', '.join(CATEGORIES)}; found {wrong[0]!r}")

    def collate(self, examples: list[Row]) -> Batch:
        encoded = self.tokenise([PREFIX + row["text"] for row in examples])
        return {**encoded, "labels": torch.tensor([CATEGORIES.index(row["category"]) for row in examples])}

    def metric(self, split: list[Row], language: str) -> Metric:
        """Accuracy, over batches of sentences of like length: little of a batch is padding."""
        tokens = self.tokenizer([row["text"] for row in split])["input_ids"]
        order = sorted(range(len(split)), key=lambda i: len(tokens[i]))
        return super().metric([split[i] for i in order], language)
