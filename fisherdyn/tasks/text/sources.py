"""Where models and data sets are: pinned revisions on the hub, and file names in a local folder."""

from __future__ import annotations

from dataclasses import dataclass

MODELS: dict[str, tuple[str, str]] = {
    "xlm-roberta-base": ("FacebookAI/xlm-roberta-base", "e73636d4f797dec63c3081bb6ed5c7b0bb3f2089"),
    "bert-base-multilingual-cased": (
        "google-bert/bert-base-multilingual-cased",
        "3f076fdb1ab68d5b2880cb87a0886f315b8146f8",
    ),
    "intfloat/multilingual-e5-small": ("intfloat/multilingual-e5-small", "fd1525a9fd15316a2d503bf26ab031a61d056e98"),
    "microsoft/mdeberta-v3-base": ("microsoft/mdeberta-v3-base", "a0484667b22365f84929a935b5e50a51f71f159d"),
}
"""Name -> (repository, pinned revision). Any other name is a folder, or a repository at its newest revision."""


@dataclass(frozen=True)
class Split:
    """One split of a data set; "{lang}" stands for the language.

    Attributes:
        repository, config, split, revision: on the hub.
        file: name in a local folder, without its ending (`reading.ENDINGS`).
        fields: that every row has.
    """

    repository: str
    revision: str
    config: str
    split: str
    file: str
    fields: tuple[str, ...]


_PAIR = ("premise", "hypothesis", "label")
_CHOICE = ("premise", "choice1", "choice2", "question", "label")
_ANSWER = ("context", "question", "answers")

_XNLI = ("facebook/xnli", "b8dd5d7af51114dbda02c0e3f6133f332186418e")
_COPA = ("aps/super_glue", "3de24cf8022e94f4ee4b9d55a6f539891524d646")
_SQUAD = ("rajpurkar/squad", "7b6d24c440a36b6815f21b70d25016731768db1f")

MNLI_TRAIN = Split("nyu-mll/glue", "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c", "mnli", "train", "mnli.train", _PAIR)
XNLI_DEV = Split(*_XNLI, "en", "validation", "xnli.dev.en", _PAIR)
XNLI_TEST = Split(*_XNLI, "{lang}", "test", "xnli.test.{lang}", _PAIR)
COPA_TRAIN = Split(*_COPA, "copa", "train", "copa.train", _CHOICE)
COPA_DEV = Split(*_COPA, "copa", "validation", "copa.val", _CHOICE)
XCOPA_TEST = Split(
    "cambridgeltl/xcopa", "042f78955ba48e6404616762fa6e05e839c3907a", "{lang}", "test", "test.{lang}", _CHOICE
)
SQUAD_TRAIN = Split(*_SQUAD, "plain_text", "train", "train-v1.1", _ANSWER)
SQUAD_DEV = Split(*_SQUAD, "plain_text", "validation", "dev-v1.1", _ANSWER)
XQUAD_TEST = Split(
    "google/xquad", "51adfef1c1287aab1d2d91b5bead9bcfb9c68583", "xquad.{lang}", "validation", "xquad.{lang}", _ANSWER
)
MLQA_TEST = Split(
    "google/xtreme",
    "ec5f1f46e9af79639a90684a7a70a956c4998f04",
    "MLQA.{lang}.{lang}",
    "test",
    "test-context-{lang}-question-{lang}",
    _ANSWER,
)
_SIB = ("Davlan/sib200", "38977a667f6fc264d5c26ec57a01e16db040b358", "{lang}")
_TOPIC = ("category", "text")
SIB_TRAIN = Split(*_SIB, "train", "{lang}/train", _TOPIC)
SIB_DEV = Split(*_SIB, "validation", "{lang}/dev", _TOPIC)
SIB_TEST = Split(*_SIB, "test", "{lang}/test", _TOPIC)

_WIKI = "AdapterHub/{model}-{lang}-wiki_pfeiffer"


def _regular(model: str, *codes: str) -> dict[str, str]:
    return {code: _WIKI.format(model=model, lang=code) for code in codes}


_COMMON = ("ar", "de", "el", "en", "es", "et", "hi", "ht", "qu", "ru", "sw", "zh")
_MBERT = "bert-base-multilingual-cased"
LANGUAGE_ADAPTERS: dict[str, dict[str, str]] = {
    "xlm-roberta-base": _regular("xlm-roberta-base", *_COMMON, "id", "it", "ta", "th", "tr", "vi"),
    _MBERT: {
        **_regular(_MBERT, *_COMMON),
        "id": f"AdapterHub/{_MBERT}_wiki_id_pfeiffer",
        "tr": f"AdapterHub/{_MBERT}_tr_wiki_pfeiffer",
        "vi": f"AdapterHub/{_MBERT}_vi_wiki_pfeiffer",
    },
}
"""Model -> language -> repository, at its newest revision: the revisions could not be looked up."""
