"""Columns that hold only padding: whether they are neutral, and batches without them or with more of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..likelihoods import IGNORED, Categorical, CausalLM, Choice, Likelihood, Token, labels_in
from ..model_index import ModelIndex

_FILL = {"input_ids": 0, "attention_mask": 0, "token_type_ids": 0, "labels": IGNORED}
"""Names that are known to have a value a token, and the value of a token that is none."""

PLAIN = (
    "albert", "bert", "camembert", "deberta", "deberta-v2", "distilbert", "electra", "ernie", "gpt2", "llama", "mistral",
    "mpnet", "opt", "qwen2", "rembert", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod",
)  # fmt: skip
"""Model types whose tokens meet in attention alone, and there obey the mask: each is a test."""
LENGTH_FREE = ("default", "linear", "llama3")
"""Rotary frequencies that do not depend on the length."""


def trim_padding(batch: Any) -> Any:
    """A Hugging Face batch without the columns on the right that no example attends to; any other as it is."""
    ids, mask = _tokens(batch)
    if ids is None or mask is None:
        return batch
    counted, labels = mask != 0, labels_in(batch)
    if labels is not None and labels.shape == mask.shape:
        counted = counted | (labels != IGNORED)
    used = counted.flatten(0, -2).any(dim=0).nonzero()
    end = int(used[-1]) + 1 if len(used) else ids.shape[-1]
    if end == ids.shape[-1]:
        return batch
    columns = (slice(None),) * (ids.ndim - 1) + (slice(end),)
    return {name: x[columns] if _has_token_rows(x, ids) else x for name, x in batch.items()}


def token_columns(batch: Any) -> int | None:
    """The number of token columns of a batch that could be padded on the right; None for any other."""
    ids, _ = _tokens(batch)
    if ids is None or not all(name in _FILL for name, x in batch.items() if _has_token_rows(x, ids)):
        return None
    return ids.shape[-1]


def widen_padding(batch: Any, columns: int, model: nn.Module) -> Any:
    """The batch with so many columns; no example attends to the new ones, on the right."""
    ids = batch["input_ids"]
    fill = {**_FILL, "input_ids": _pad_token(model) or 0}

    def wider(name: str, x: Tensor) -> Tensor:
        return torch.cat([x, x.new_full((*ids.shape[:-1], columns - ids.shape[-1]), fill[name])], dim=-1)

    return {name: wider(name, x) if _has_token_rows(x, ids) else x for name, x in batch.items()}


def padding_is_neutral(model: ModelIndex, likelihood: Likelihood | None) -> bool:
    """Whether it is certain that no number depends on columns that no example attends to.

    The model's forward pass must be the library's own and mix no neighbours (convolutions would see the padding), and its
    logits must be one row an example, or a row a token that counts only where label or mask says so. A span's softmax runs
    over the padding too. Other models pool or hash over positions, or depend on the length (Funnel, XLNet, BigBird, rotary
    frequencies that change with it); a decoder that classifies and does not know its padding reads the last column.
    """
    if type(likelihood) not in (Categorical, Choice, Token, CausalLM) or not _is_library_model(model.model):
        return False
    if type(likelihood) is Categorical and _pad_token(model.model) is None:
        return False
    config = getattr(model.model, "config", None)
    rotary = getattr(config, "rope_scaling", None) or {}
    if getattr(config, "model_type", None) not in PLAIN or rotary.get("rope_type", "default") not in LENGTH_FREE:
        return False
    return not any(_sees_padding(module, config) for module in model.modules)


def _tokens(batch: Any) -> tuple[Tensor | None, Tensor | None]:
    """The ids and the attention mask of a batch that has both, in one shape of at least two dimensions."""
    if not isinstance(batch, Mapping):
        return None, None
    ids, mask = batch.get("input_ids"), batch.get("attention_mask")
    alike = isinstance(ids, Tensor) and isinstance(mask, Tensor) and mask.shape == ids.shape and ids.ndim >= 2
    return (ids, mask) if alike else (None, None)


def _has_token_rows(x: Any, ids: Tensor) -> bool:
    return isinstance(x, Tensor) and x.shape[: ids.ndim] == ids.shape


def _sees_padding(module: nn.Module, config: Any) -> bool:
    """A convolution, or a summary of the sequence by its last token or mean."""
    summary = type(module).__name__.endswith("SequenceSummary") and config.summary_type != "first"
    return summary or isinstance(module, nn.modules.conv._ConvNd)


def _pad_token(model: nn.Module) -> int | None:
    """The model's, if it is a token."""
    config = getattr(model, "config", None)
    pad, tokens = getattr(config, "pad_token_id", None), getattr(config, "vocab_size", 0)
    return pad if pad is not None and 0 <= pad < tokens else None


def _is_library_model(model: nn.Module) -> bool:
    """Whether the library wrote the whole forward pass: a head of one's own may average over the padding."""
    base = getattr(model, "get_base_model", None)  # peft's
    kinds = type(base() if base is not None else model).__mro__
    return next(kind for kind in kinds if "forward" in vars(kind)).__module__.startswith(("transformers.", "adapters."))
