"""The model as a Hugging Face folder, made once and kept where the platform keeps caches."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch
from transformers import BertConfig, BertModel

from ..reading import MissingError
from . import file, tokenizer
from .file import E5
from .tokenizer import Cut

NAME = "multilingual-e5-small"
LAYOUT = "1"
"""Of what is written; another one gives other names."""
_EMBEDDINGS = {"emb.word": "word_embeddings", "emb.pos": "position_embeddings", "emb.type": "token_type_embeddings"}
_MODULES = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}
"""A part of a layer in the file -> its module in a BertLayer."""


def folder(texts: Collection[str] | None = None, parent: Path | None = None) -> Path:
    """Makes or finds the folder with model and tokenizer.

    Args:
        texts: whose pieces are enough. The embedding table is cut to them, from 96 M weights to about a fifth, and the
            outputs for these texts stay the same to the bit. None for the whole vocabulary.
        parent: where the folder is kept (default: the user's cache).

    Raises:
        ImportError: the package is not installed and there is no such folder yet.
        MissingError: the package's file is damaged, or the folder cannot be written.
    """
    if parent is None:
        try:
            from platformdirs import user_cache_path
        except ModuleNotFoundError as error:
            raise ImportError(f"{NAME} needs platformdirs: pip install 'fisherdyn[e5]'") from error
        parent = user_cache_path("fisherdyn")
    path = parent / f"{NAME}-{_digest(texts)}"
    if not path.is_dir():
        e5 = file.read(file.find())
        part = tokenizer.whole(e5) if texts is None else tokenizer.cut(e5, texts)
        try:
            _write(e5, part, path)
        except OSError as error:
            raise MissingError(
                f"{path}: cannot be written ({error}); choose another place with XDG_CACHE_HOME"
            ) from error
    return path


def _digest(texts: Collection[str] | None) -> str:
    """Names what the content depends on."""
    digest = hashlib.sha256(f"{LAYOUT} {file.SHA256} {texts is None}".encode())
    for text in sorted(set(texts or ())):
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()[:16]


def _write(e5: E5, part: Cut, path: Path) -> None:
    """Writes all or nothing: another process may be writing the same folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        model(e5, part).save_pretrained(unfinished)
        tokenizer.build(e5, part).save_pretrained(unfinished)
        unfinished.chmod(0o755)
        os.rename(unfinished, path)
    except OSError:
        if not path.is_dir():  # nobody else was faster
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def model(e5: E5, part: Cut) -> BertModel:
    """The encoder, without a pooler, with the embeddings of a part of the vocabulary."""
    sizes = {**e5.sizes, "vocab_size": len(part.ids)}
    config = BertConfig(**sizes, bos_token_id=0, pad_token_id=1, eos_token_id=2)
    with torch.random.fork_rng():
        encoder = BertModel(config, add_pooling_layer=False)
    encoder.load_state_dict(_state(e5, part.ids))
    return encoder


def _state(e5: E5, ids: np.ndarray) -> dict[str, torch.Tensor]:
    """The weights by the names that a BertModel gives them."""
    width, inner = e5.sizes["hidden_size"], e5.sizes["intermediate_size"]
    state = {}
    for name, tensor in e5.tensors.items():
        if name in _EMBEDDINGS:
            rows = ids if name == "emb.word" else np.arange(tensor.values // width)
            state[f"embeddings.{_EMBEDDINGS[name]}.weight"] = torch.from_numpy(e5.weights(name, rows))
            continue
        layer, part, kind = name.split(".")
        values = torch.from_numpy(e5.weights(name))
        if tensor.quantised:
            values = values.reshape(-1, inner if part == "fo" else width)
        module = "embeddings.LayerNorm" if layer == "emb" else f"encoder.layer.{layer[1:]}.{_MODULES[part]}"
        state[f"{module}.{'weight' if kind == 'w' else 'bias'}"] = values
    return state
