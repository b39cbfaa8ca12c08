"""Which parameters are a layer."""

from __future__ import annotations

import pytest
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import BartConfig, BartForSequenceClassification, T5Config, T5ForConditionalGeneration
from zoo.huggingface import bert

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
    pytest.importorskip("adapters").init(model)
    model.add_adapter("task", config="seq_bn")
    layers = list(adapter_layers(model, "task"))
    assert len(layers) == 4
    assert [name.split(".")[-3] for name in layers] == ["encoder", "encoder", "decoder", "decoder"]


@pytest.mark.parametrize(
    ("targets", "expected"),
    [(["query", "value"], {"0": 4, "1": 4}), ("all-linear", {"0": 12, "1": 12, "bert.pooler.dense": 2})],
)
def test_lora_of_peft_is_found_by_block(targets, expected):
    model = get_peft_model(bert().model, LoraConfig(task_type="SEQ_CLS", r=2, target_modules=targets))
    layers = find_layers(model)
    assert [name.removeprefix("base_model.model.") for name in layers] == list(expected)
    assert all("lora_" in name for names in layers.values() for name in names)
    assert [len(names) for names in layers.values()] == list(expected.values())


def test_lora_of_adapters_is_found_by_block():
    model = bert().model
    pytest.importorskip("adapters").init(model)
    model.add_adapter("task", config="lora")
    model.train_adapter("task")
    layers = find_layers(model)
    assert list(layers) == ["0", "1"]
    assert all(".loras.task." in name for names in layers.values() for name in names)


def test_lora_where_there_are_no_blocks_is_found_by_module():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 2)

    layers = find_layers(get_peft_model(Two(), LoraConfig(r=2, target_modules=["first", "second"])))
    assert list(layers) == ["base_model.model.first", "base_model.model.second"]


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


def test_encoder_and_decoder_are_two_stacks():
    config = T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=2, num_heads=2)
    layers = find_layers(T5ForConditionalGeneration(config))
    blocks = [f"{stack}.block.{i}" for stack in ("encoder", "decoder") for i in range(2)]
    assert [name for name in layers if "block" in name] == blocks
    assert next(iter(layers)) == "embeddings"
    assert layers["embeddings"] == ("shared.weight",)
    assert layers["encoder"] == ("encoder.final_layer_norm.weight",)
