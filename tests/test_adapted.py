"""What peft and the adapters library train, with the layers that are found, against plain autograd."""

from __future__ import annotations

import adapters
import peft
import pytest
import torch
from adapters.composition import Average, Fuse, Split, Stack
from test_tied_and_routed import SMALL, sums
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, BertForTokenClassification

from fisherdyn import fisher_trace
from fisherdyn.layers import find_layers

HEADS = {"SEQ_CLS": BertForSequenceClassification, "TOKEN_CLS": BertForTokenClassification}
LINEAR, BOTH = ["query", "value"], ["key", "intermediate.dense"]

PEFT = {
    "lora": lambda t: peft.LoraConfig(task_type=t, r=2, target_modules=LINEAR),
    "rslora": lambda t: peft.LoraConfig(task_type=t, r=2, use_rslora=True, target_modules=LINEAR),
    "dora": lambda t: peft.LoraConfig(task_type=t, r=2, use_dora=True, target_modules=LINEAR),
    "lora_saved": lambda t: peft.LoraConfig(task_type=t, r=2, target_modules=LINEAR, modules_to_save=["LayerNorm"]),
    "adalora": lambda t: peft.AdaLoraConfig(task_type=t, init_r=4, target_r=2, total_step=10, target_modules=LINEAR),
    "loha": lambda t: peft.LoHaConfig(task_type=t, r=2, target_modules=LINEAR),
    "lokr": lambda t: peft.LoKrConfig(task_type=t, r=2, target_modules=LINEAR),
    "vera": lambda t: peft.VeraConfig(task_type=t, r=2, target_modules=LINEAR),
    "oft": lambda t: peft.OFTConfig(task_type=t, oft_block_size=4, target_modules=LINEAR),
    "boft": lambda t: peft.BOFTConfig(task_type=t, boft_block_size=4, target_modules=LINEAR),
    "hra": lambda t: peft.HRAConfig(task_type=t, r=2, target_modules=LINEAR),
    "shira": lambda t: peft.ShiraConfig(task_type=t, r=2, target_modules=LINEAR),
    "ia3": lambda t: peft.IA3Config(task_type=t, target_modules=BOTH, feedforward_modules=BOTH[1:]),
    "prefix": lambda t: peft.PrefixTuningConfig(task_type=t, num_virtual_tokens=3),
    "prompt": lambda t: peft.PromptTuningConfig(task_type=t, num_virtual_tokens=3),
    "p_tuning": lambda t: peft.PromptEncoderConfig(task_type=t, num_virtual_tokens=3, encoder_hidden_size=8),
    "norms": lambda t: peft.LNTuningConfig(task_type=t, target_modules=["LayerNorm"]),
    "vector_bank": lambda t: peft.VBLoRAConfig(
        task_type=t, r=2, num_vectors=10, vector_length=4, topk=2, target_modules=LINEAR
    ),
    "fourier": lambda t: peft.FourierFTConfig(task_type=t, n_frequency=20, target_modules=LINEAR),
}
PREFIX = adapters.PrefixTuningConfig(prefix_length=3, bottleneck_size=6)
ADAPTERS = {
    "bottleneck": adapters.SeqBnConfig(reduction_factor=4),
    "gating": adapters.SeqBnConfig(reduction_factor=4, use_gating=True),
    "parallel": adapters.ParBnConfig(reduction_factor=4),
    "invertible": adapters.SeqBnInvConfig(reduction_factor=4),
    "compacter": adapters.CompacterConfig(phm_dim=2, reduction_factor=4),
    "prefix": PREFIX,
    "prefix_flat": adapters.PrefixTuningConfig(prefix_length=5, flat=True),
    "prefix_gating": adapters.PrefixTuningConfig(prefix_length=5, bottleneck_size=6, use_gating=True),
    "lora": adapters.LoRAConfig(r=2),
    "vera": adapters.VeraConfig(r=2),
    "ia3": adapters.IA3Config(),
    "prompt": adapters.PromptTuningConfig(prompt_length=3),
    "mam": adapters.MAMConfig(PREFIX, adapters.ParBnConfig(reduction_factor=4)),
    "unipelt": adapters.UniPELTConfig(PREFIX, adapters.SeqBnConfig(reduction_factor=4), adapters.LoRAConfig(r=2)),
    "loreft": adapters.LoReftConfig(),
    "noreft": adapters.NoReftConfig(r=2, prefix_positions=1, suffix_positions=1),
    "direft": adapters.DiReftConfig(r=2, prefix_positions=1, suffix_positions=1),
}
COMPOSED = {
    "fuse": Fuse("a", "b"),
    "stack": Stack("a", "b"),
    "split": Split("a", "b", splits=[2, 3]),
    "average": Average("a", "b"),
}
SLOW = {"prompt", "p_tuning", "vector_bank"}
"""Weights that are made for all examples at once, or read by many modules: hooks say so, and go on by the loop."""


def bert(head: str) -> nn.Module:
    torch.manual_seed(0)
    return HEADS[head](BertConfig(vocab_size=30, num_labels=3, attn_implementation="eager", **SMALL))


def compare(model: nn.Module, dtype: torch.dtype = torch.float64) -> set[str]:
    """Layers that were found; fresh adapters are nearly zero, which could hide an error."""
    for name, p in model.named_parameters():
        if p.requires_grad and "parametrizations" not in name:
            nn.init.normal_(p, std=0.3)
    model = model.to(dtype).eval()
    batch: dict[str, Tensor] = {"input_ids": torch.randint(5, 30, (3, 5)), "attention_mask": torch.ones(3, 5).long()}
    batch["labels"] = torch.randint(3, model(**batch).logits.shape[:-1])
    layers = find_layers(model)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained.issuperset(name for names in layers.values() for name in names)
    found = fisher_trace(model, [batch], labels="empirical")
    tolerance = 1e-8 if dtype == torch.float64 else 1e-3
    torch.testing.assert_close(found.values, sums(model, batch, layers, causal=False), rtol=tolerance, atol=1e-16)
    assert found.trace.min() > 0
    return set(layers)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", PEFT)
def test_every_method_of_peft(name, head, recwarn):
    layers = compare(peft.get_peft_model(bert(head), PEFT[name](head)))
    adapted = {"0", "1"} if name not in ("prefix", "prompt", "p_tuning") else {"prompt_encoder"}
    assert layers >= adapted
    assert ("head" in layers) == (name not in ("lora", "rslora", "dora", "lora_saved", "adalora"))  # adapters alone
    assert any("one example at a time" in str(w.message) for w in recwarn) == (name in SLOW)


@pytest.mark.filterwarnings("ignore:.*one example at a time")
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", ADAPTERS)
def test_every_method_of_adapters(name, head):
    model = bert(head)
    adapters.init(model)
    model.add_adapter("task", config=ADAPTERS[name])
    model.train_adapter("task")
    compare(model, torch.float32 if name == "loreft" else torch.float64)  # whose empty suffix is float32


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", COMPOSED)
def test_every_composition_of_adapters(name, head):
    model = bert(head)
    adapters.init(model)
    for adapter in ("a", "b"):
        model.add_adapter(adapter, config=adapters.SeqBnConfig(reduction_factor=4))
    if name == "fuse":
        model.add_adapter_fusion(COMPOSED[name])
        model.train_adapter_fusion(COMPOSED[name])
    else:
        model.train_adapter(COMPOSED[name])
    compare(model)
