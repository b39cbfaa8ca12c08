"""Columns that only hold padding change nothing: they are cut before a batch is measured, or added to make batches alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..likelihoods import IGNORED, Categorical, CausalLM, Choice, Likelihood, Token, labels_in
from .batches import Batch

_FILL = {"input_ids": 0, "attention_mask": 0, "token_type_ids": 0, "labels": IGNORED}
"""What is known to be by token, and what stands where there is none."""

PLAIN = (
    "albert", "bert", "camembert", "deberta", "deberta-v2", "distilbert", "electra", "ernie", "gpt2", "llama", "mistral",
    "mpnet", "opt", "qwen2", "rembert", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod",
)  # fmt: skip
"""Model types whose tokens meet in attention alone, and there obey the mask: each is a test."""
LENGTH_FREE = ("default", "linear", "llama3")
"""Rotary frequencies that do not go by the length."""


def without_padding(batch: Batch, model: nn.Module, likelihood: Likelihood | None) -> Batch:
    """A Hugging Face batch without the columns on the right that no example attends to; any other as it is.

    The numbers stay exactly the same, so it is done only where that is certain: the model's forward pass is the library's
    own and mixes no neighbours (convolutions would see the padding), and its logits are one row an example, or a row a token
    that counts only where label or mask says so. A span's softmax runs over the padding too.
    """
    mask, ids = (batch.get(key) if isinstance(batch, Mapping) else None for key in ("attention_mask", "input_ids"))
    if not (isinstance(mask, Tensor) and isinstance(ids, Tensor) and mask.shape == ids.shape and ids.ndim >= 2):
        return batch
    counted, labels = mask != 0, labels_in(batch)
    if labels is not None and labels.shape == mask.shape:
        counted = counted | (labels != IGNORED)
    used = counted.flatten(0, -2).any(dim=0).nonzero()
    end = int(used[-1]) + 1 if len(used) else ids.shape[-1]
    if end == ids.shape[-1] or not padding_changes_nothing(model, likelihood):
        return batch
    return {
        name: x[(slice(None),) * (ids.ndim - 1) + (slice(end),)] if by_token(x, ids) else x for name, x in batch.items()
    }


def columns_in(batch: Batch) -> int | None:
    """How many columns of tokens there are, in a batch that could be padded on the right; None of any other."""
    mask, ids = (batch.get(key) if isinstance(batch, Mapping) else None for key in ("attention_mask", "input_ids"))
    if not (isinstance(mask, Tensor) and isinstance(ids, Tensor) and mask.shape == ids.shape and ids.ndim >= 2):
        return None
    known = all(name in _FILL for name, x in batch.items() if by_token(x, ids))
    return ids.shape[-1] if known else None


def padded(batch: Batch, columns: int, model: nn.Module) -> Batch:
    """The batch with so many columns, the new ones on the right and attended to by no example."""
    ids = batch["input_ids"]
    fill = {**_FILL, "input_ids": _pad_token(model) or 0}

    def wider(name: str, x: Tensor) -> Tensor:
        more = x.new_full((*ids.shape[:-1], columns - ids.shape[-1]), fill[name])
        return torch.cat([x, more], dim=-1)

    return {name: wider(name, x) if by_token(x, ids) else x for name, x in batch.items()}


def by_token(x: Any, ids: Tensor) -> bool:
    """Whether it has a row for each token, as the ids have."""
    return isinstance(x, Tensor) and x.shape[: ids.ndim] == ids.shape


def padding_changes_nothing(model: nn.Module, likelihood: Likelihood | None) -> bool:
    """Whether it is certain that no number depends on columns that no example attends to.

    Other models pool or hash over positions, or go by the length (Funnel, XLNet, BigBird, rotary frequencies that change
    with it); a decoder that classifies and does not know its padding reads the last column.
    """
    if type(likelihood) not in (Categorical, Choice, Token, CausalLM) or not _is_known(model):
        return False
    if type(likelihood) is Categorical and _pad_token(model) is None:
        return False
    config = getattr(model, "config", None)
    rotary = getattr(config, "rope_scaling", None) or {}
    if getattr(config, "model_type", None) not in PLAIN or rotary.get("rope_type", "default") not in LENGTH_FREE:
        return False
    return not any(_sees_padding(module, config) for module in model.modules())


def _sees_padding(module: nn.Module, config: Any) -> bool:
    """A convolution, or a summary of the sequence by its last token or mean."""
    summary = type(module).__name__.endswith("SequenceSummary") and config.summary_type != "first"
    return summary or isinstance(module, nn.modules.conv._ConvNd)


def _pad_token(model: nn.Module) -> int | None:
    """The model's, if it is a token."""
    config = getattr(model, "config", None)
    pad, tokens = getattr(config, "pad_token_id", None), getattr(config, "vocab_size", 0)
    return pad if pad is not None and 0 <= pad < tokens else None


def _is_known(model: nn.Module) -> bool:
    """Whether the library wrote the whole forward pass: a head of one's own may average over the padding."""
    wrapped = getattr(model, "get_base_model", None)  # peft's
    kinds = type(wrapped() if wrapped is not None else model).__mro__
    return next(kind for kind in kinds if "forward" in vars(kind)).__module__.startswith(("transformers.", "adapters."))
