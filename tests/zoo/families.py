"""Model families of the transformers library, a line each: made small, with the layers that are found, in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from .specimen import tokens

GENERAL = {
    "vocab_size": 30, "num_labels": 3, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "hidden_size": 16,
    "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 20,
    "max_position_embeddings": 64,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
ENCODER_DECODER = {
    "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 20, "decoder_ffn_dim": 20,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2,
}  # fmt: skip
IMAGE = {"image_size": 8, "patch_size": 4}
STAGES = {"embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 2}


PLAIN = """Albert Arcee Bert BioGpt Bloom Camembert Data2VecText Deberta DebertaV2 Electra Ernie Exaone4 Flaubert Gemma
    Gemma2 Gemma3Text Glm Glm4 GPT2 GPTBigCode GPTNeo GPTNeoX Helium HunYuanDenseV1 IBert Llama MegatronBert Ministral
    Mistral ModernBert ModernBertDecoder MPNet Nemotron Nystromformer OpenAIGPT Persimmon Phi Phi3 Qwen2 Qwen3 RemBert
    Roberta RobertaPreLayerNorm SeedOss SmolLM3 StableLm Starcoder2 Tapas XLM XLMRoberta XLMRobertaXL Yoso"""


def sentences() -> dict[str, Tensor]:
    return tokens(3, 6)


def whole_sentences() -> dict[str, Tensor]:
    return {"input_ids": torch.randint(5, 30, (3, 6))}


def few_words() -> dict[str, Tensor]:
    return tokens(2, 4, 12)


def ended_sentences() -> dict[str, Tensor]:
    """As BART's and T5's classifiers read them: at the last end of a sentence."""
    ids = torch.randint(5, 30, (3, 6))
    ids[:, -1] = 2
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def images() -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(3, 3, 8, 8)}


def large_images() -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(2, 3, 32, 32)}


def sounds() -> dict[str, Tensor]:
    return {"input_values": torch.randn(2, 500)}


@dataclass(frozen=True)
class Family:
    """How a family's model is made, and measured."""

    model: str
    options: Mapping[str, Any] = field(default_factory=dict)
    inputs: Callable[[], dict[str, Tensor]] = sentences
    likelihood: str | None = None

    def make(self) -> tuple[nn.Module, dict[str, Tensor]]:
        torch.manual_seed(3)
        kind = getattr(transformers, self.model)
        options = {**GENERAL, **self.options}
        config = kind.config_class(**{name: value for name, value in options.items() if value is not None})
        config._attn_implementation = "eager"
        config._experts_implementation = "eager"  # version 5: its default knows no float64
        model = kind(config).double().eval()
        inputs = {name: x.double() if x.is_floating_point() else x for name, x in self.inputs().items()}
        return model, inputs


def _classifiers() -> Iterator[Family]:
    for name in PLAIN.split():
        yield Family(f"{name}ForSequenceClassification", {"head_dim": 8})
    yield Family("ConvBertForSequenceClassification", {"embedding_size": 8})
    yield Family("DistilBertForSequenceClassification", {"dim": 16, "hidden_dim": 20, "n_heads": 2, "n_layers": 2})
    yield Family("FNetForSequenceClassification", inputs=whole_sentences)
    yield Family("FunnelForSequenceClassification", {
        "block_sizes": [1, 1], "d_model": 16, "n_head": 2, "d_head": 8, "d_inner": 20, "num_hidden_layers": None,
    })  # fmt: skip
    yield Family("XLNetForSequenceClassification", {
        "d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 20, "max_position_embeddings": None,
    })  # fmt: skip
    yield Family("OPTForSequenceClassification", {"ffn_dim": 20, "word_embed_proj_dim": 16})
    for name in ("Bart", "MBart", "PLBart"):
        yield Family(f"{name}ForSequenceClassification", ENCODER_DECODER, ended_sentences)
    t5 = {"d_model": 16, "d_kv": 8, "d_ff": 20, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
    for name in ("T5", "MT5", "UMT5"):
        yield Family(f"{name}ForSequenceClassification", t5, ended_sentences)


def _refused() -> Iterator[Family]:
    for name in ("DiffLlama", "Doge", "Esm", "Longformer", "RoFormer"):
        yield Family(f"{name}ForSequenceClassification")
    yield Family("BigBirdForSequenceClassification", {"attention_type": "original_full"})
    for name in ("GptOss", "HunYuanMoEV1", "MiniMax", "Mixtral", "Phimoe", "Qwen3Moe"):
        yield Family(f"{name}ForSequenceClassification", {**EXPERTS, "head_dim": 8})


def _seeing() -> Iterator[Family]:
    for name in ("Beit", "Data2VecVision", "DeiT", "Dinov2", "Dinov2WithRegisters", "IJepa", "ViT", "ViTMSN"):
        yield Family(f"{name}ForImageClassification", IMAGE, images)
    yield Family("SwinForImageClassification", {**IMAGE, **STAGES, "patch_size": 2}, images)
    yield Family("Swinv2ForImageClassification", {**IMAGE, **STAGES, "patch_size": 2}, images)
    for name in ("ConvNext", "ConvNextV2"):
        stages = {"hidden_sizes": [4, 8], "depths": [1, 1], "num_stages": 2}
        yield Family(f"{name}ForImageClassification", stages, large_images)
    yield Family("PoolFormerForImageClassification", {
        "hidden_sizes": [4, 8], "depths": [1, 1], "num_encoder_blocks": 2, "patch_sizes": [3, 3], "strides": [2, 2],
        "padding": [1, 1],
    }, large_images)  # fmt: skip
    yield Family("RegNetForImageClassification", {
        "embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1], "groups_width": 2,
    }, large_images)  # fmt: skip
    yield Family("BitForImageClassification", {
        "embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1], "num_groups": 2,
    }, large_images)  # fmt: skip
    yield Family("MobileNetV2ForImageClassification", {"depth_multiplier": 0.1, "min_depth": 4}, large_images)
    yield Family("LevitForImageClassification", {
        "image_size": 32, "hidden_sizes": [8, 8, 8], "num_attention_heads": [2, 2, 2], "depths": [1, 1, 1],
        "key_dim": [4, 4, 4],
    }, large_images)  # fmt: skip


def _hearing() -> Iterator[Family]:
    small = {"conv_dim": [4, 4], "conv_kernel": [10, 3], "conv_stride": [5, 2], "num_conv_pos_embeddings": 4,
             "num_conv_pos_embedding_groups": 2, "classifier_proj_size": 8}  # fmt: skip
    for name in ("Wav2Vec2", "Hubert", "WavLM"):
        yield Family(f"{name}ForSequenceClassification", small, sounds)


def _tokenwise() -> Iterator[Family]:
    for name in ("Bert", "DistilBert", "Roberta", "Electra"):
        options = {"dim": 16, "hidden_dim": 20, "n_heads": 2, "n_layers": 2} if name == "DistilBert" else {}
        yield Family(f"{name}ForTokenClassification", options, likelihood="token")
    for name in ("Bert", "Roberta", "Electra", "Albert"):
        options = {"embedding_size": 16} if name in ("Electra", "Albert") else {}
        yield Family(f"{name}ForMaskedLM", {"vocab_size": 12, **options}, few_words, "token")


FAMILIES = {
    family.model: family for group in (_classifiers, _refused, _seeing, _hearing, _tokenwise) for family in group()
}
