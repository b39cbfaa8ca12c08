"""Four ways to tune a model: MAD-X task adapters over frozen language adapters, task adapters alone, LoRA, or every weight.

MAD-X (Pfeiffer et al. 2020) puts two adapters into each block: a frozen one for the language, then one for the task. The
task adapter is trained above the source's language adapter and tested above the target's. A language's invertible adapter
sits at the embeddings and is swapped together with the rest; its inverse is never used, because the head of a task
predicts no tokens. Task adapters alone, LoRA (Hu et al. 2022) and full fine-tuning use no language adapters: the encoder
alone carries what was learned to other languages.
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

ADAPTER, TASK_ADAPTER, LORA, FULL = "adapter", "task_adapter", "lora", "full"
TUNINGS = (ADAPTER, TASK_ADAPTER, LORA, FULL)
TASK = "task"
"""The name of the tuned part in the model."""
LORA_RANK, LORA_ALPHA = 8, 16
"""On the query and value projections, as Hu et al. do; the update is scaled by alpha / rank."""

_BLOCK = re.compile(r"\.layer\.(\d+)\.")
_TRAINED = {ADAPTER: f".adapters.{TASK}.", TASK_ADAPTER: f".adapters.{TASK}.", LORA: f".{TASK}.", FULL: "."}
"""Tuning -> a part of the names of the weights that it trains in a block."""


def check(tuning: str) -> None:
    """Refuses an unknown tuning with a ValueError."""
    if tuning not in TUNINGS:
        raise ValueError(f"unknown tuning {tuning!r}: choose one of {', '.join(TUNINGS)}")


def attach(
    model: Any, tuning: str, head: Iterable[str], *, source: str, reduction: int, languages: Callable[[Any], None]
) -> None:
    """Adds the tuned weights to a fresh model, activates them, and freezes everything else.

    Args:
        model: a Hugging Face model with a head for the task.
        tuning: one of TUNINGS.
        head: names of the head's parameters, which are trained under every tuning.
        source: the language whose adapter is active in training.
        reduction: hidden size divided by the task adapter's bottleneck.
        languages: adds the language adapters to the model; called for "adapter" only.

    Fresh weights come from the global random state, which the caller forks.
    """
    check(tuning)
    if tuning in (ADAPTER, TASK_ADAPTER):
        adapters.init(model)
        if tuning == ADAPTER:
            languages(model)
        model.add_adapter(TASK, config=SeqBnConfig(reduction_factor=reduction))
        with _none_active_yet():
            model.train_adapter(Stack(source, TASK) if tuning == ADAPTER else TASK)
    elif tuning == LORA:
        _inject_lora(model)
    head_names = set(head)
    for name, parameter in model.named_parameters():
        is_tuned = tuning == FULL or bool(_BLOCK.search(name) and _TRAINED[tuning] in name)
        parameter.requires_grad_(is_tuned or name in head_names)


def _inject_lora(model: nn.Module) -> None:
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ModuleNotFoundError as error:
        raise ImportError("LoRA needs peft: pip install 'fisherdyn[peft]'") from error
    # mBERT and XLM-R call their projections query and value, mDeBERTa query_proj and value_proj.
    names = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    targets = [name for name in ("query", "value", "query_proj", "value_proj") if name in names]
    config = LoraConfig(r=LORA_RANK, lora_alpha=LORA_ALPHA, lora_dropout=0.0, target_modules=targets)
    inject_adapter_in_model(config, model, adapter_name=TASK)


def layers_of(model: nn.Module, tuning: str) -> Layers:
    """One layer a block, bottom first, of the weights that are tuned in it. Embeddings and head belong to no layer."""

    def block(name: str) -> str | None:
        match = _BLOCK.search(name)
        return match.group(1) if match and _TRAINED[tuning] in name else None

    return resolve_layers(model, block)


def set_language(model: Any, code: str) -> None:
    """Puts a language's adapter under the task adapter: this one line is zero-shot transfer."""
    model.set_active_adapters(Stack(code, TASK))


@contextmanager
def in_language(model: nn.Module, tuning: str, language: str, source: str) -> Iterator[torch.device]:
    """Evaluation in a language, without gradients; then mode and source language are restored. Yields the model's device."""
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
    """Silences the adapters library, which warns that no adapter is active while the first one is being activated."""
    logger = logging.getLogger("adapters.model_mixin")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
