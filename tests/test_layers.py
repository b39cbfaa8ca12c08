"""Which parameters are a layer."""

from __future__ import annotations

import adapters
import pytest
from torch import nn
from transformers import BartConfig, BartForSequenceClassification

from fisherdyn.layers import adapter_layers, find_layers, resolve_layers


class HeadFirst(nn.Module):
    """Registers what is called last before the blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Linear(4, 2)
        self.word_embeddings = nn.Embedding(9, 4)
        self.blocks = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])


def test_the_head_is_on_top_wherever_it_is_registered():
    assert list(find_layers(HeadFirst())) == ["embeddings", "0", "1", "head"]


def test_blocks_of_encoder_and_decoder_are_two_layers():
    config = BartConfig(
        vocab_size=20, d_model=8, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=8, decoder_ffn_dim=8, max_position_embeddings=16,
    )  # fmt: skip
    model = BartForSequenceClassification(config)
    adapters.init(model)
    model.add_adapter("task", config="seq_bn")
    layers = list(adapter_layers(model, "task"))
    assert len(layers) == 4
    assert [name.split(".")[-3] for name in layers] == ["encoder", "encoder", "decoder", "decoder"]


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (["0"], "expected a dict of layer -> tuple"),
        ({"a": "classifier.weight"}, "expected a dict of layer -> tuple"),
        ("(", "is not a regular expression"),
        (r"blocks", "with a group that is the layer's name"),
    ],
)
def test_what_is_no_choice_of_layers(choice, message):
    with pytest.raises(ValueError, match=message):
        resolve_layers(HeadFirst(), choice)
