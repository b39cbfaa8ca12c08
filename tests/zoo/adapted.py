"""Frozen models with something small to train inside: the adapters library's and peft's."""

from __future__ import annotations

import adapters
import peft
from adapters import (
    CompacterConfig,
    CompacterPlusPlusConfig,
    DoubleSeqBnConfig,
    IA3Config,
    LoRAConfig,
    MAMConfig,
    ParBnConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    SeqBnConfig,
    SeqBnInvConfig,
)
from adapters.composition import Fuse, Stack
from torch import nn

from .huggingface import bert, gpt2
from .specimen import Specimen, keep


def _only(specimen: Specimen, trained: str) -> Specimen:
    """All but the parameters with these letters in their names frozen.

    Fresh adapters are nearly zero: gradients of 1e-8 would hide a wrong rule behind a relative tolerance.
    """
    for name, p in specimen.model.named_parameters():
        p.requires_grad_(trained in name)
        if trained in name:
            nn.init.normal_(p, std=0.3)
    return specimen


def _stacked(config: object) -> Specimen:
    """A language adapter, and a task adapter on it that is open in the last block alone."""
    specimen = bert()
    model = specimen.model
    adapters.init(model)
    model.add_adapter("language", config=SeqBnConfig(reduction_factor=2))
    model.add_adapter("task", config=config)
    model.train_adapter(Stack("language", "task"))
    specimen.layers = r"layer\.(\d+)\..*adapters\.task\."
    _only(specimen, ".task.")
    for name, p in model.named_parameters():
        p.requires_grad_(".task." in name and "layer.1." in name)
    return specimen


@keep
def bottleneck_adapter() -> Specimen:
    return _stacked(SeqBnConfig(reduction_factor=4))


@keep
def double_adapter() -> Specimen:
    return _stacked(DoubleSeqBnConfig(reduction_factor=4))


@keep
def parallel_adapter() -> Specimen:
    return _stacked(ParBnConfig(reduction_factor=4, scaling=2.0))


def _adapted(config: object, layers: str, slowly: str | None = None) -> Specimen:
    specimen = bert()
    specimen.slowly = slowly
    adapters.init(specimen.model)
    specimen.model.add_adapter("task", config=config)
    specimen.model.train_adapter("task")
    specimen.layers = layers
    return _only(specimen, "task")


@keep
def invertible_adapter() -> Specimen:
    return _adapted(SeqBnInvConfig(reduction_factor=4), r"(layer\.\d+|invertible_adapters)\..*task\.")


@keep
def compacter() -> Specimen:
    """Weights that are Kronecker products, in modules that no rule covers."""
    config = CompacterPlusPlusConfig(phm_dim=2, reduction_factor=4, shared_phm_rule=False)
    return _adapted(config, r"layer\.(\d+)\..*adapters\.task\.")


@keep
def compacter_shared() -> Specimen:
    """One factor for all blocks, held by nobody who is called: the whole model is run again, example by example."""
    return _adapted(CompacterConfig(phm_dim=2, reduction_factor=4), r"(shared_parameters)")


@keep
def prefix_tuning() -> Specimen:
    """As many prefixes as examples, from a network whose input is the same for all of them."""
    return _adapted(PrefixTuningConfig(prefix_length=5, bottleneck_size=6), r"prefix_tunings\.(task\.\w+)")


@keep
def prefix_tuning_flat() -> Specimen:
    config = PrefixTuningConfig(prefix_length=5, flat=True)
    return _adapted(config, r"prefix_tunings\.(task\.\w+)", slowly="FlatPrefixTuning.* gives another output")


@keep
def prompt_tuning() -> Specimen:
    return _adapted(PromptTuningConfig(prompt_length=3), r"(prompt_tunings)", slowly="prompt_embedding' has rows")


@keep
def lora_adapter() -> Specimen:
    return _adapted(LoRAConfig(r=2, alpha=4), r"layer\.(\d+)\..*loras\.task")


@keep
def ia3_adapter() -> Specimen:
    return _adapted(IA3Config(), r"layer\.(\d+)\..*loras\.task")


@keep
def mix_and_match_adapter() -> Specimen:
    """Prefix tuning and a parallel bottleneck."""
    return _adapted(MAMConfig(), r"(layer\.\d+|prefix_tunings)\..*task")


@keep
def adapter_fusion() -> Specimen:
    specimen = bert()
    model = specimen.model
    adapters.init(model)
    for name in ("a", "b"):
        model.add_adapter(name, config=SeqBnConfig(reduction_factor=4))
    model.add_adapter_fusion(Fuse("a", "b"))
    model.train_adapter_fusion(Fuse("a", "b"))
    specimen.layers = r"layer\.(\d+)\..*adapter_fusion_layer"
    _only(specimen, "adapters.")
    return _only(specimen, "fusion")


def _peft(specimen: Specimen, config: peft.PeftConfig, layers: str, trained: str) -> Specimen:
    specimen.model, specimen.layers = peft.get_peft_model(specimen.model, config), layers
    return _only(specimen, trained)


@keep
def lora() -> Specimen:
    config = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"], lora_dropout=0.1)
    return _peft(bert(), config, r"layer\.(\d+)\..*lora", "lora")


@keep
def lora_on_conv1d() -> Specimen:
    config = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["c_attn"], fan_in_fan_out=True)
    return _peft(gpt2(), config, r"h\.(\d+)\..*lora", "lora")


@keep
def lora_on_embeddings() -> Specimen:
    """Parameters in a dict, read by the module around it."""
    config = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["word_embeddings"])
    return _peft(bert(), config, r"(lora)", "lora")


@keep
def ia3() -> Specimen:
    config = peft.IA3Config(
        task_type="SEQ_CLS", target_modules=["key", "intermediate.dense"], feedforward_modules=["intermediate.dense"]
    )
    return _peft(bert(), config, r"layer\.(\d+)\..*ia3", "ia3")


@keep
def peft_prefix_tuning() -> Specimen:
    config = peft.PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3)
    return _peft(bert(), config, r"(prompt_encoder)", "prompt_encoder")


@keep
def dora() -> Specimen:
    """Its norm is that of a product that is the same for all examples."""
    config = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"], use_dora=True)
    return _peft(bert(), config, r"layer\.(\d+)\..*lora_[AB]", "lora_")


@keep
def peft_prompt_tuning() -> Specimen:
    config = peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3)
    specimen = _peft(bert(), config, r"(prompt_encoder)", "prompt_encoder")
    specimen.slowly = "embedding' has rows"
    return specimen
