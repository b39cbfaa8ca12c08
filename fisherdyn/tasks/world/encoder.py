"""The shipped encoder with its language adapters, under a task's head."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from adapters import SeqBnConfig
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import BertConfig, BertPreTrainedModel, PreTrainedModel

from ..tuning import ADAPTER, attach
from .languages import LANGUAGES, SOURCE

WEIGHTS = Path(__file__).parent / "weights"
ENCODER, RECIPE = "encoder.safetensors", "recipe.json"
WORLD_SEED = 0
"""Seed of the world that the shipped encoder was pretrained on; another seed has other words."""
LANGUAGE_REDUCTION = 2
"""Hidden size divided by a language adapter's bottleneck, as in MAD-X."""


def language_file(code: str) -> str:
    return f"language-{code}.safetensors"


def adapter_state(model: PreTrainedModel, name: str) -> dict[str, torch.Tensor]:
    """The weights of one adapter, by their names in the encoder."""
    state = model.base_model.state_dict()
    return {key: weight.contiguous() for key, weight in state.items() if f".adapters.{name}." in key}


class CheckpointError(ValueError):
    """Weights that are missing, damaged or of another shape."""


def load(path: Path) -> dict[str, torch.Tensor]:
    """Reads tensors by name.

    Raises:
        CheckpointError: the file is missing or damaged; the message says how to get it.
    """
    remedy = "reinstall fisherdyn, or make the weights with: python -m fisherdyn.tasks.world.pretrain"
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; {remedy}")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: damaged checkpoint ({error}); {remedy}") from error


@torch.no_grad()
def fill(module: nn.Module, state: dict[str, torch.Tensor], path: Path) -> None:
    """Copies every tensor of `state` into a module.

    Raises:
        CheckpointError: a name or a shape does not fit.
    """
    parameters = module.state_dict()
    for name, weight in state.items():
        if name not in parameters or parameters[name].shape != weight.shape:
            expected = tuple(parameters[name].shape) if name in parameters else "no such weight"
            raise CheckpointError(f"{path}: {name} has shape {tuple(weight.shape)}, the model expects {expected}")
        parameters[name].copy_(weight)


def build(
    head: type[BertPreTrainedModel],
    seed: int,
    *,
    num_labels: int = 2,
    tuning: str = ADAPTER,
    reduction: int = 8,
    dropout: float = 0.0,
    weights: Path = WEIGHTS,
) -> BertPreTrainedModel:
    """The shipped encoder under a fresh head, with the weights that the tuning adds (`tuning.attach`).

    With adapters, the model has all language adapters, the source's being active, and a fresh task adapter in each layer,
    which is trained together with the classifier. Every other weight is frozen, the pooler included.

    Args:
        head: the class of the model, such as BertForSequenceClassification.
        seed: of the fresh weights. The global random state is restored.
        num_labels: classes of the task.
        reduction: hidden size divided by the task adapter's bottleneck (64 / 8 = 8 units).
        dropout: of the whole encoder in training.
        weights: folder written by `python -m fisherdyn.tasks.world.pretrain`.

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
    encoder = {key.removeprefix("bert."): w for key, w in state.items() if key.startswith("bert.")}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = head(config)
        if model.bert.pooler is None:  # extraction reads every position
            encoder = {key: w for key, w in encoder.items() if not key.startswith("pooler.")}
        fresh = [name for name, _ in model.named_parameters() if not name.startswith("bert.")]
        fill(model.bert, encoder, weights / ENCODER)
        languages = partial(_add_language_adapters, weights=weights)
        attach(model, tuning, fresh, source=SOURCE, reduction=reduction, languages=languages)
    return model


def _add_language_adapters(model: BertPreTrainedModel, weights: Path) -> None:
    for language in LANGUAGES:
        model.add_adapter(language.code, config=SeqBnConfig(reduction_factor=LANGUAGE_REDUCTION))
        path = weights / language_file(language.code)
        fill(model.bert, load(path), path)
