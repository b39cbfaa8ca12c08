"""What a hub would give, made on the spot: a tiny XLM-R and a tiny mBERT with tokenizers, language adapters, and data.

Weights are random; the tokenizers are trained on XQuAD and XCOPA, from the folder of shared data beside the project. The
English training sets are made up, in the formats of the real ones.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import adapters
import torch
from adapters import SeqBnInvConfig
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertForPreTraining,
    BertTokenizerFast,
    XLMRobertaConfig,
    XLMRobertaForMaskedLM,
    XLMRobertaTokenizerFast,
)

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
XQUAD_LANGUAGES = ("ar", "de", "el", "es", "hi", "ru", "th", "tr", "vi", "zh")
XCOPA_LANGUAGES = ("et", "ht", "id", "it", "qu", "sw", "ta", "th", "tr", "vi", "zh")
ADAPTERS = ("en", "ar", "zh", "th", "et")
LAYERS, VOCABULARY = 3, 4000


def text() -> Iterator[str]:
    for path in sorted((SHARED / "xquad").glob("xquad.*.json")):
        for article in json.loads(path.read_text())["data"][:4]:
            for paragraph in article["paragraphs"]:
                yield paragraph["context"]
    for path in sorted((SHARED / "xcopa").glob("val.*.jsonl")):
        for line in path.read_text().splitlines():
            row = json.loads(line)
            yield f"{row['premise']} {row['choice1']} {row['choice2']}"


def sentencepiece_tokenizer() -> XLMRobertaTokenizerFast:
    """A unigram model over text with its spaces marked, as XLM-R's."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    made.train_from_iterator(
        text(),
        trainers.UnigramTrainer(
            vocab_size=VOCABULARY,
            special_tokens=special,
            unk_token="<unk>",
            show_progress=False,
            n_sub_iterations=1,
            shrinking_factor=0.5,
        ),
    )
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return XLMRobertaTokenizerFast(tokenizer_object=made, model_max_length=512)


def wordpiece_tokenizer() -> BertTokenizerFast:
    """Cased word pieces, Han characters by themselves, as mBERT's."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False, handle_chinese_chars=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.train_from_iterator(
        text(), trainers.WordPieceTrainer(vocab_size=VOCABULARY, special_tokens=special, show_progress=False)
    )
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return BertTokenizerFast(tokenizer_object=made, do_lower_case=False, model_max_length=512)


SIZE = {
    "hidden_size": 16,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "initializer_range": 0.3,
}


def make_xlmr(folder: Path, languages: tuple[str, ...]) -> Path:
    tokenizer = sentencepiece_tokenizer()
    config = XLMRobertaConfig(
        vocab_size=len(tokenizer), max_position_embeddings=514, type_vocab_size=1, pad_token_id=1, **SIZE
    )
    return _save(XLMRobertaForMaskedLM(config), tokenizer, folder, languages)


def make_mbert(folder: Path, languages: tuple[str, ...]) -> Path:
    tokenizer = wordpiece_tokenizer()
    config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=512, **SIZE)
    return _save(BertForPreTraining(config), tokenizer, folder, languages)


def make_mdeberta(folder: Path, tokens: Path, languages: tuple[str, ...]) -> Path:
    """Disentangled attention, as mDeBERTa's, over a tokenizer that is there already."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit.script", DeprecationWarning)  # transformers' own
        from transformers import DebertaV2Config, DebertaV2ForMaskedLM

    tokenizer = XLMRobertaTokenizerFast.from_pretrained(tokens)
    config = DebertaV2Config(
        vocab_size=len(tokenizer), max_position_embeddings=512, pad_token_id=1, relative_attention=True,
        position_buckets=32, norm_rel_ebd="layer_norm", share_att_key=True, pos_att_type="p2c|c2p", type_vocab_size=0,
        position_biased_input=False, **SIZE,
    )  # fmt: skip
    return _save(DebertaV2ForMaskedLM(config), tokenizer, folder, languages)


def _save(model, tokenizer, folder: Path, languages: tuple[str, ...]) -> Path:
    """folder/model and folder/adapters/{code}, each with an invertible adapter, as AdapterHub's have.

    The source's is a pickle, as AdapterHub's are, the others are safetensors.
    """
    (folder / "adapters").mkdir(parents=True)
    tokenizer.save_pretrained(folder / "model")
    model.save_pretrained(folder / "model")
    adapters.init(model)
    for code in languages:
        model.add_adapter(code, config=SeqBnInvConfig(reduction_factor=2))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if f".{code}." in name:
                    parameter.normal_(std=0.3)
        model.save_adapter(str(folder / "adapters" / code), code, with_head=False, use_safetensors=code != "en")
    return folder


PEOPLE, THINGS = ("Anna", "Ben", "Carla", "David"), ("a coat", "an apple", "two books", "the red car")


def squad(questions: int) -> dict:
    paragraphs = []
    for i in range(questions):
        who, what = PEOPLE[i % 4], THINGS[i // 4 % 4]
        context = f"It was late. {who} bought {what} in the market, and then it began to rain."
        answer = {"text": what, "answer_start": context.index(what)}
        qas = [{"id": str(i), "question": f"What did {who} buy?", "answers": [answer]}]
        paragraphs.append({"context": context, "qas": qas})
    return {"version": "1.1", "data": [{"title": "made up", "paragraphs": paragraphs}]}


def mnli(pairs: int) -> list[dict]:
    said = ("bought", "did something with", "never saw")
    return [
        {
            "premise": f"{PEOPLE[i % 4]} bought {THINGS[i // 4 % 4]}.",
            "hypothesis": f"{PEOPLE[i % 4]} {said[i % 3]} {THINGS[(i // 4 + (i % 3 == 1)) % 4]}.",
            "label": i % 3,
        }
        for i in range(pairs)
    ]


def copa(questions: int) -> list[dict]:
    return [
        {
            "premise": f"{PEOPLE[i % 4]} bought {THINGS[i // 4 % 4]}.",
            "choice1": "There was money." if i % 2 else "The money was gone.",
            "choice2": "The money was gone." if i % 2 else "There was money.",
            "question": ("effect", "cause")[i // 2 % 2],
            "label": int((i % 2 == 1) == (i // 2 % 2 == 0)),
        }
        for i in range(questions)
    ]


def write_lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def make_data(folder: Path, questions: int = 48) -> Path:
    """Everything that the four tasks read: English made up, XQuAD and XCOPA the real ones, cut short."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    folder.mkdir(parents=True)
    (folder / "train-v1.1.json").write_text(json.dumps(squad(questions)))
    (folder / "dev-v1.1.json").write_text(json.dumps(squad(4)))
    parquet.write_table(pa.Table.from_pylist(mnli(questions)), folder / "mnli.train.parquet")
    write_lines(folder / "xnli.dev.en.jsonl", mnli(6))
    write_lines(folder / "copa.train.jsonl", copa(questions))
    write_lines(folder / "copa.val.jsonl", copa(4))
    for code in XQUAD_LANGUAGES:
        content = json.loads((SHARED / "xquad" / f"xquad.{code}.json").read_text())
        paragraph = min((p for a in content["data"] for p in a["paragraphs"]), key=lambda p: len(p["context"]))
        content["data"] = [{"paragraphs": [{**paragraph, "qas": paragraph["qas"][:2]}]}]
        (folder / f"xquad.{code}.json").write_text(json.dumps(content))
        write_lines(folder / f"xnli.test.{code}.jsonl", mnli(6))
        if code in ("ar", "de", "es", "hi", "vi", "zh"):
            (folder / f"test-context-{code}-question-{code}.json").write_text(json.dumps(content))
    write_lines(folder / "xnli.test.sw.jsonl", mnli(6))
    for code in XCOPA_LANGUAGES:
        lines = (SHARED / "xcopa" / f"test.{code}.jsonl").read_text().splitlines()[:6]
        (folder / f"test.{code}.jsonl").write_text("\n".join(lines) + "\n")
    return folder
