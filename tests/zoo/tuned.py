"""A BERT tuned by the methods of peft and of the adapters library, a line each: default layers, in float64."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .huggingface import bert

LINEAR = {"target_modules": ["query", "value"]}
PEFT: dict[str, tuple[str, Mapping[str, Any]]] = {
    "lora": ("LoraConfig", {"r": 2, **LINEAR}),
    "rank_stabilised_lora": ("LoraConfig", {"r": 2, "use_rslora": True, **LINEAR}),
    "lora_on_all": ("LoraConfig", {"r": 2, "target_modules": "all-linear"}),
    "lora_with_biases": ("LoraConfig", {"r": 2, "bias": "all", **LINEAR}),
    "lora_and_pooler": ("LoraConfig", {"r": 2, "modules_to_save": ["pooler"], **LINEAR}),
    "dora": ("LoraConfig", {"r": 2, "use_dora": True, **LINEAR}),
    "adalora": ("AdaLoraConfig", {"init_r": 2, "target_r": 1, "total_step": 10, **LINEAR}),
    "loha": ("LoHaConfig", {"r": 2, **LINEAR}),
    "lokr": ("LoKrConfig", {"r": 2, **LINEAR}),
    "vera": ("VeraConfig", {"r": 2, **LINEAR}),
    "oft": ("OFTConfig", {"r": 0, "oft_block_size": 4, **LINEAR}),
    "boft": ("BOFTConfig", {"boft_block_size": 4, **LINEAR}),
    "hra": ("HRAConfig", {"r": 2, **LINEAR}),
    "shira": ("ShiraConfig", {"r": 2, **LINEAR}),
    "ia3": (
        "IA3Config",
        {"target_modules": ["key", "intermediate.dense"], "feedforward_modules": ["intermediate.dense"]},
    ),
    "layer_norms": ("LNTuningConfig", {"target_modules": ["LayerNorm"]}),
    "prefix": ("PrefixTuningConfig", {"num_virtual_tokens": 3}),
    "prompt": ("PromptTuningConfig", {"num_virtual_tokens": 3}),
    "p_tuning": ("PromptEncoderConfig", {"num_virtual_tokens": 3, "encoder_hidden_size": 8}),
}
ADAPTERS: dict[str, tuple[str, Mapping[str, Any]]] = {
    "bottleneck": ("SeqBnConfig", {"reduction_factor": 4}),
    "gated_bottleneck": ("SeqBnConfig", {"reduction_factor": 4, "use_gating": True}),
    "double": ("DoubleSeqBnConfig", {"reduction_factor": 4}),
    "parallel": ("ParBnConfig", {"reduction_factor": 4}),
    "invertible": ("SeqBnInvConfig", {"reduction_factor": 4}),
    "compacter": ("CompacterPlusPlusConfig", {"phm_dim": 2, "reduction_factor": 4}),
    "lora_of_adapters": ("LoRAConfig", {"r": 2}),
    "ia3_of_adapters": ("IA3Config", {}),
    "prefix_of_adapters": ("PrefixTuningConfig", {"prefix_length": 3, "bottleneck_size": 6}),
    "gated_prefix": ("PrefixTuningConfig", {"prefix_length": 3, "bottleneck_size": 6, "use_gating": True}),
    "prompt_of_adapters": ("PromptTuningConfig", {"prompt_length": 3}),
    "mix_and_match": ("MAMConfig", {}),
    "unipelt": ("UniPELTConfig", {}),
}
"""Not ReFT: it stays in float32 when its model is cast."""


@dataclass(frozen=True)
class Tuned:
    name: str
    library: str
    config: str
    options: Mapping[str, Any]

    def make(self) -> tuple[nn.Module, dict[str, Tensor]]:
        torch.manual_seed(3)
        specimen = bert()
        model = (_by_peft if self.library == "peft" else _by_adapters)(specimen.model, self.config, self.options)
        for parameter in model.parameters():  # what is fresh is nearly zero, and so would be its gradients
            if parameter.requires_grad:
                nn.init.normal_(parameter, std=0.3)
        return model.double().eval(), specimen.inputs


def _by_peft(model: nn.Module, config: str, options: Mapping[str, Any]) -> nn.Module:
    import peft

    return peft.get_peft_model(model, getattr(peft, config)(task_type="SEQ_CLS", **options))


def _by_adapters(model: nn.Module, config: str, options: Mapping[str, Any]) -> nn.Module:
    import adapters

    adapters.init(model)
    model.add_adapter("task", config=getattr(adapters, config)(**options))
    model.train_adapter("task")
    return model


TUNED = {
    name: Tuned(name, library, *how)
    for library, methods in (("peft", PEFT), ("adapters", ADAPTERS))
    for name, how in methods.items()
}
