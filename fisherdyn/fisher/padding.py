"""Whether columns that hold only padding are neutral: whether no number depends on them."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..likelihoods import Categorical, CausalLM, Choice, Likelihood, Token
from ..model_index import ModelIndex

PLAIN = (
    "albert", "bert", "camembert", "deberta", "deberta-v2", "distilbert", "electra", "ernie", "gpt2", "llama", "mistral",
    "mpnet", "opt", "qwen2", "rembert", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod",
)  # fmt: skip
"""Model types whose tokens meet in attention alone, and there obey the mask: each is a test."""
LENGTH_FREE = ("default", "linear", "llama3")
"""Rotary frequencies that do not depend on the length."""


def padding_is_neutral(model: ModelIndex, likelihood: Likelihood | None) -> bool:
    """Whether it is certain that no number depends on columns that no example attends to.

    The model's forward pass must be the library's own and mix no neighbours (convolutions would see the padding), and its
    logits must be one row an example, or a row a token that counts only where label or mask says so. A span's softmax runs
    over the padding too. Other models pool or hash over positions, or depend on the length (Funnel, XLNet, BigBird, rotary
    frequencies that change with it); a decoder that classifies and does not know its padding reads the last column.
    """
    if type(likelihood) not in (Categorical, Choice, Token, CausalLM) or not _is_library_model(model.model):
        return False
    if type(likelihood) is Categorical and pad_token(model.model) is None:
        return False
    config = getattr(model.model, "config", None)
    rotary = getattr(config, "rope_scaling", None) or {}
    if getattr(config, "model_type", None) not in PLAIN or rotary.get("rope_type", "default") not in LENGTH_FREE:
        return False
    return not any(_sees_padding(module, config) for module in model.modules)


def _sees_padding(module: nn.Module, config: Any) -> bool:
    """A convolution, or a summary of the sequence by its last token or mean."""
    summary = type(module).__name__.endswith("SequenceSummary") and config.summary_type != "first"
    return summary or isinstance(module, nn.modules.conv._ConvNd)


def pad_token(model: nn.Module) -> int | None:
    """The model's, if it is a token."""
    config = getattr(model, "config", None)
    pad, tokens = getattr(config, "pad_token_id", None), getattr(config, "vocab_size", 0)
    return pad if pad is not None and 0 <= pad < tokens else None


def _is_library_model(model: nn.Module) -> bool:
    """Whether the library wrote the whole forward pass: a head of one's own may average over the padding."""
    base = getattr(model, "get_base_model", None)  # peft's
    kinds = type(base() if base is not None else model).__mro__
    return next(kind for kind in kinds if "forward" in vars(kind)).__module__.startswith(("transformers.", "adapters."))
