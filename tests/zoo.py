"""Small models of many kinds, each with inputs, in float32; `zoo` names them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import adapters
import torch
from adapters import DoubleSeqBnConfig, ParBnConfig, SeqBnConfig
from adapters.composition import Stack
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ElectraConfig,
    ElectraForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)


@dataclass
class Specimen:
    model: nn.Module
    inputs: dict[str, Tensor] | Tensor
    layers: str | None = None
    """A regular expression, where the default choice would take a module that hooks refuse."""

    @property
    def loader(self) -> list[dict[str, Tensor] | Tensor]:
        return [self.inputs]


SMALL = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 20}


def tokens(batch: int = 5, length: int = 7, vocabulary: int = 30) -> dict[str, Tensor]:
    ids = torch.randint(5, vocabulary, (batch, length))
    mask = torch.ones_like(ids)
    for i in range(batch):
        mask[i, length - i % 3 :] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}


def mlp() -> Specimen:
    return Specimen(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)), torch.randn(7, 6))


def mlp_inplace() -> Specimen:
    """An in-place activation writes over the watched module's output."""
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(inplace=True), nn.LayerNorm(8), nn.Linear(8, 4))
    return Specimen(model, torch.randn(7, 6))


class Repeated(nn.Module):
    """One Linear and one LayerNorm called three times in a forward pass (as ALBERT does with its block)."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.norm, self.head = nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = self.norm(x + torch.tanh(self.shared(x)))
        return self.head(x)


def repeated() -> Specimen:
    return Specimen(Repeated(), torch.randn(6, 6))


class BagOfTokens(nn.Module):
    """Tokens that recur in one example, and a padding index."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 6, padding_idx=0)
        self.body = nn.ModuleList([nn.Linear(6, 6, bias=False), nn.Linear(6, 6)])
        self.head = nn.Linear(6, 3)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        for layer in self.body:
            x = torch.relu(layer(x))
        return self.head(x.mean(dim=1))


def bag_of_tokens() -> Specimen:
    return Specimen(BagOfTokens(), torch.randint(0, 9, (6, 12)))


def long_sequence() -> Specimen:
    """More positions than the Gram route pays for."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 11, 3))
    return Specimen(model, torch.randn(4, 11, 3))


_BLOCKS = r"layer\.(\d+)\."


def bert() -> Specimen:
    config = BertConfig(vocab_size=30, num_labels=3, attn_implementation="eager", **SMALL)
    return Specimen(BertForSequenceClassification(config), tokens(), _BLOCKS)


def roberta() -> Specimen:
    config = RobertaConfig(vocab_size=30, num_labels=2, attn_implementation="eager", pad_token_id=0, **SMALL)
    return Specimen(RobertaForSequenceClassification(config), tokens(), _BLOCKS)


def electra() -> Specimen:
    config = ElectraConfig(vocab_size=30, num_labels=5, embedding_size=8, attn_implementation="eager", **SMALL)
    return Specimen(ElectraForSequenceClassification(config), tokens(), _BLOCKS)


def distilbert() -> Specimen:
    config = DistilBertConfig(
        vocab_size=30, num_labels=3, dim=16, hidden_dim=20, n_heads=2, n_layers=2, attn_implementation="eager"
    )
    return Specimen(DistilBertForSequenceClassification(config), tokens(), _BLOCKS)


def _adapted(config: object) -> Specimen:
    specimen = bert()
    model = specimen.model
    adapters.init(model)
    model.add_adapter("language", config=SeqBnConfig(reduction_factor=2))
    model.add_adapter("task", config=config)
    model.train_adapter(Stack("language", "task"))
    model.requires_grad_(False)
    for name, p in model.named_parameters():
        p.requires_grad_(".task." in name and "layer.1." in name)
        if ".task." in name:
            # Fresh adapters are nearly zero: gradients of 1e-8 would hide a wrong rule behind a relative tolerance.
            nn.init.normal_(p, std=0.3)
    specimen.layers = r"layer\.(\d+)\..*adapters\.task\."
    return specimen


def bottleneck_adapter() -> Specimen:
    return _adapted(SeqBnConfig(reduction_factor=4))


def double_adapter() -> Specimen:
    return _adapted(DoubleSeqBnConfig(reduction_factor=4))


def parallel_adapter() -> Specimen:
    return _adapted(ParBnConfig(reduction_factor=4, scaling=2.0))


ZOO: dict[str, Callable[[], Specimen]] = {
    make.__name__: make
    for make in (
        mlp,
        mlp_inplace,
        repeated,
        bag_of_tokens,
        long_sequence,
        bert,
        roberta,
        electra,
        distilbert,
        bottleneck_adapter,
        double_adapter,
        parallel_adapter,
    )
}


def specimen(name: str) -> Specimen:
    torch.manual_seed(3)
    made = ZOO[name]()
    made.model.eval()
    return made
