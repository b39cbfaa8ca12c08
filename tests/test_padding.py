"""Models to which padding is not neutral, though their class says nothing of it: measured as they are, against the loop."""

from __future__ import annotations

import adapters
import pytest
import torch
from adapters import PrefixTuningConfig, PromptTuningConfig, SeqBnConfig
from oracle import cast, per_example_trace
from torch import Tensor, nn
from zoo import Specimen, specimen, tokens

from fisherdyn import fisher_trace
from fisherdyn.layers import resolve_layers


def _adapted(config: object, layers: str) -> Specimen:
    it = specimen("bert")
    adapters.init(it.model)
    it.model.add_adapter("task", config=config)
    it.model.train_adapter("task")
    for name, parameter in it.model.named_parameters():
        if "task" in name:
            nn.init.normal_(parameter, std=0.3)
    it.layers = layers
    return it


class MeanPooler(nn.Module):
    def __init__(self, pooler: nn.Module) -> None:
        super().__init__()
        self.dense, self.activation = pooler.dense, pooler.activation

    def forward(self, hidden: Tensor) -> Tensor:
        return self.activation(self.dense(hidden.mean(dim=1)))


def _pools() -> Specimen:
    it = specimen("bert")
    it.model.bert.pooler = MeanPooler(it.model.bert.pooler)
    return it


def _hooked() -> Specimen:
    it = specimen("bert")
    block = it.model.bert.encoder.layer[0].output
    block.register_forward_hook(lambda module, args, output: output - output.mean(dim=1, keepdim=True))
    return it


class Fresh(nn.Module):
    """Adds nothing yet: its second weight is 0, as in fresh LoRA. The logits are those without it, its gradient is not."""

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside, self.up = inside, nn.Linear(16, 16, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, *args: object, **kwargs: object) -> Tensor:
        h = self.inside(*args, **kwargs)
        return h + self.up(h.mean(dim=1, keepdim=True).expand_as(h))


def _fresh() -> Specimen:
    it = specimen("bert")
    block = it.model.bert.encoder.layer[0]
    block.output = Fresh(block.output)
    it.layers = r"(output\.up)"
    return it


CASES = {
    "gate": lambda: _adapted(SeqBnConfig(reduction_factor=4, use_gating=True), r"layer\.(\d+)\..*adapters\.task\."),
    "prefix with a gate": lambda: _adapted(
        PrefixTuningConfig(prefix_length=3, bottleneck_size=6, use_gating=True), r"layer\.(\d+)\.(?:output|.*gate)"
    ),
    "prompt": lambda: _adapted(PromptTuningConfig(prompt_length=3), r"layer\.(\d+)\.output"),
    "mean pooler": _pools,
    "hook": _hooked,
    "fresh": _fresh,
}


def _padded(inputs: dict[str, Tensor], columns: int) -> dict[str, Tensor]:
    return {name: nn.functional.pad(x, (0, columns)) for name, x in inputs.items()}


@pytest.mark.parametrize("case", CASES)
def test_padding_that_counts_is_kept(case):
    """The oracle reads the padding; without it (negative control), all but one would be off."""
    torch.manual_seed(0)
    it = CASES[case]()
    model, batch = it.model.double().eval(), _padded(it.inputs, 6)
    layers = resolve_layers(model, it.layers)
    found = fisher_trace(model, [batch], layers=layers, labels="exact").values
    torch.testing.assert_close(found, per_example_trace(model, batch, layers), rtol=1e-9, atol=1e-30)
    cut = per_example_trace(model, it.inputs, layers)
    assert ((cut / found - 1).abs().amax() > 1e-4) == (case != "prompt")


@pytest.mark.parametrize("case", ["gate", "fresh", "mean pooler"])
def test_padding_that_counts_is_not_added(case):
    """Batches of three lengths, joined or not."""
    torch.manual_seed(0)
    it = CASES[case]()
    model = it.model.double().eval()
    batches = [tokens(3, length) for length in (6, 6, 7, 5)]
    how = {"layers": it.layers, "labels": "exact"}
    alone = torch.cat([fisher_trace(model, [batch], **how).values for batch in batches])
    torch.testing.assert_close(fisher_trace(model, batches, **how).values, alone, rtol=1e-9, atol=1e-30)


def test_a_longer_batch_is_tried_anew(monkeypatch):
    """Rotary frequencies go by the length beyond 12: what was neutral below is not above."""
    from transformers import LlamaConfig, LlamaForSequenceClassification
    from zoo import SMALL

    monkeypatch.setattr("fisherdyn.fisher.padding.MOST_TRIED", 1)  # in the count below, single examples are tries
    torch.manual_seed(0)
    rotary = {"rope_type": "dynamic", "factor": 2.0}
    config = LlamaConfig(
        vocab_size=30, num_labels=3, pad_token_id=0, max_position_embeddings=12, rope_scaling=rotary, **SMALL
    )
    config._attn_implementation = "eager"
    model = LlamaForSequenceClassification(config).double().eval()
    lengths = []

    def see(module: nn.Module, args: tuple, kwargs: dict[str, Tensor]) -> None:
        if len(kwargs["input_ids"]) > 1:
            lengths.append(kwargs["input_ids"].shape[1])

    model.register_forward_pre_hook(see, with_kwargs=True)
    short, long = _padded(tokens(3, 7), 2), _padded(tokens(4, 7), 13)
    found = fisher_trace(model, [short, long], layers=r"layers\.(\d+)\.", labels="exact")
    assert lengths == [7, 20]
    alone = fisher_trace(model, [cast(long, torch.float64)], layers=r"layers\.(\d+)\.", labels="exact")
    torch.testing.assert_close(found.values[3:], alone.values, rtol=1e-9, atol=1e-30)
