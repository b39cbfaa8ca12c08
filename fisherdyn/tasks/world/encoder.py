"""The shipped encoder, its language adapters, and MAD-X around them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import adapters
import torch
from adapters import SeqBnConfig
from adapters.composition import Stack
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, PreTrainedModel

from .languages import LANGUAGES

WEIGHTS = Path(__file__).parent / "weights"
ENCODER, RECIPE = "encoder.safetensors", "recipe.json"
WORLD_SEED = 0
"""The world that the shipped encoder knows: another seed has other words."""
LANGUAGE_REDUCTION = 2
"""Bottleneck of a language adapter: hidden size over this (MAD-X's own)."""
TASK_ADAPTER = "task"


def language_file(code: str) -> str:
    return f"language-{code}.safetensors"


def adapter_state(model: PreTrainedModel, name: str) -> dict[str, torch.Tensor]:
    """The weights of one adapter, by their names in the encoder."""
    state = model.base_model.state_dict()
    return {key: weight.contiguous() for key, weight in state.items() if f".adapters.{name}." in key}


class CheckpointError(ValueError):
    """Shipped or given weights that are missing, damaged or of another shape."""


def load(path: Path) -> dict[str, torch.Tensor]:
    """Tensors by name; a file that is missing or damaged is a CheckpointError that says how to get it."""
    remedy = "reinstall fisherdyn, or make the weights with: python -m fisherdyn.tasks.world.pretrain"
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; {remedy}")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: damaged checkpoint ({error}); {remedy}") from error


def fill(module: nn.Module, state: dict[str, torch.Tensor], path: Path) -> None:
    """Copies every tensor of `state` in; a name or shape that does not fit is an error."""
    own = module.state_dict()
    for name, weight in state.items():
        if name not in own or own[name].shape != weight.shape:
            found = tuple(own[name].shape) if name in own else "no such weight"
            raise CheckpointError(f"{path}: {name} has shape {tuple(weight.shape)}, the model expects {found}")
        own[name].copy_(weight)


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


def build_madx(
    num_labels: int, seed: int, reduction: int = 8, dropout: float = 0.0, weights: Path = WEIGHTS
) -> BertForSequenceClassification:
    """The frozen encoder with all language adapters, a fresh task adapter and a fresh classifier.

    Active: the source's language adapter, then the task adapter in each layer. Trainable: the task adapter and the
    classifier; every other weight, the pooler included, is frozen.

    Args:
        num_labels: classes of the task.
        seed: of the fresh weights. The global random state is left as it was.
        reduction: hidden size over the task adapter's bottleneck (64 / 8 = 8 units).
        dropout: of the whole encoder while it trains.
        weights: a folder that `python -m fisherdyn.tasks.world.pretrain` wrote.

    Raises:
        CheckpointError: the folder lacks a file, or one is damaged.
    """
    state = load(weights / ENCODER)
    config = BertConfig.from_pretrained(
        weights,
        num_labels=num_labels,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        attn_implementation="eager",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = BertForSequenceClassification(config)
        adapters.init(model)
        for language in LANGUAGES:
            model.add_adapter(language.code, config=SeqBnConfig(reduction_factor=LANGUAGE_REDUCTION))
        model.add_adapter(TASK_ADAPTER, config=SeqBnConfig(reduction_factor=reduction))
    with torch.no_grad():
        bert = {key.removeprefix("bert."): w for key, w in state.items() if key.startswith("bert.")}
        fill(model.bert, bert, weights / ENCODER)
        for language in LANGUAGES:
            path = weights / language_file(language.code)
            fill(model.bert, load(path), path)
    with _none_active_yet():
        model.train_adapter(Stack(LANGUAGES[0].code, TASK_ADAPTER))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(f".adapters.{TASK_ADAPTER}." in name or name.startswith("classifier."))
    return model


def set_language(model: Any, code: str) -> None:
    """Swaps the language adapter under the task adapter: zero-shot transfer is this one line."""
    model.set_active_adapters(Stack(code, TASK_ADAPTER))
