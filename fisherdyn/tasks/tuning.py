"""What is trained: MAD-X task adapters over frozen language adapters, LoRA, or every weight.

MAD-X (Pfeiffer et al. 2020): in each block a language's adapter, frozen, then the task's; trained with the source's
adapter in, tested with the target's in its place. A language's invertible adapter belongs to its embeddings: it is used,
and swapped, with the rest of the language's weights, and its inverse is not, since a task's head predicts no tokens. LoRA
(Hu et al. 2022) and full fine-tuning use no language adapters; the encoder alone carries them to other languages.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import adapters
import torch
from adapters import SeqBnConfig
from adapters.composition import Stack
from torch import nn

from ..layers import Layers, resolve_layers

ADAPTER, LORA, FULL = "adapter", "lora", "full"
TUNINGS = (ADAPTER, LORA, FULL)
TASK = "task"
"""The name of what is trained, in the model."""
LORA_RANK, LORA_ALPHA = 8, 16
"""Of the query and value projections, where Hu et al. put it; the update is scaled by alpha / rank."""

_BLOCK = re.compile(r"\.layer\.(\d+)\.")
_TRAINED = {ADAPTER: f".adapters.{TASK}.", LORA: f".{TASK}.", FULL: "."}
"""Tuning -> what the names of its weights hold, in a block."""


def check(tuning: str) -> None:
    if tuning not in TUNINGS:
        raise ValueError(f"unknown tuning {tuning!r}: choose one of {', '.join(TUNINGS)}")


def attach(
    model: Any, tuning: str, head: Iterable[str], *, source: str, reduction: int, languages: Callable[[Any], None]
) -> None:
    """Adds what is trained to a fresh model, activates it, and freezes all else.

    Args:
        model: a Hugging Face model with a head for the task.
        tuning: one of TUNINGS.
        head: the parameters of the head, which are trained whatever the tuning is.
        source: the language whose adapter is active in training.
        reduction: hidden size over the task adapter's bottleneck.
        languages: adds the language adapters; called for "adapter" alone. Fresh weights come from the global random
            state, which is the caller's to fork.
    """
    check(tuning)
    if tuning == ADAPTER:
        adapters.init(model)
        languages(model)
        model.add_adapter(TASK, config=SeqBnConfig(reduction_factor=reduction))
        with _none_active_yet():
            model.train_adapter(Stack(source, TASK))
    elif tuning == LORA:
        _inject_lora(model)
    open_names = set(head)
    for name, parameter in model.named_parameters():
        tuned = tuning == FULL or bool(_BLOCK.search(name) and _TRAINED[tuning] in name)
        parameter.requires_grad_(tuned or name in open_names)


def _inject_lora(model: nn.Module) -> None:
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ModuleNotFoundError as error:
        raise ImportError("LoRA needs peft: pip install 'fisherdyn[peft]'") from error
    # mBERT and XLM-R name their projections so, mDeBERTa otherwise.
    names = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    targets = [one for one in ("query", "value", "query_proj", "value_proj") if one in names]
    config = LoraConfig(r=LORA_RANK, lora_alpha=LORA_ALPHA, lora_dropout=0.0, target_modules=targets)
    inject_adapter_in_model(config, model, adapter_name=TASK)


def layers_of(model: nn.Module, tuning: str) -> Layers:
    """One layer a block, bottom first: what the tuning trains in it. Embeddings and head belong to no layer."""
    mark = _TRAINED[tuning]

    def block(name: str) -> str | None:
        found = _BLOCK.search(name)
        return found.group(1) if found and mark in name else None

    return resolve_layers(model, block)


def set_language(model: Any, code: str) -> None:
    """Swaps the language adapter under the task adapter: zero-shot transfer is this one line."""
    model.set_active_adapters(Stack(code, TASK))


@contextmanager
def in_language(model: nn.Module, tuning: str, language: str, source: str) -> Iterator[torch.device]:
    """Evaluation in a language, without gradients; mode and language are as they were afterwards. Gives the device."""
    training = model.training
    model.eval()
    try:
        if tuning == ADAPTER:
            set_language(model, language)
        with torch.no_grad():
            yield next(model.parameters()).device
    finally:
        if tuning == ADAPTER:
            set_language(model, source)
        model.train(training)


@contextmanager
def _none_active_yet() -> Iterator[None]:
    """The adapters library warns of it, even while the first one is being activated."""
    logger = logging.getLogger("adapters.model_mixin")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
