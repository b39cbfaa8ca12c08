"""Architectures of the transformers library, two blocks each."""

from __future__ import annotations

import warnings

import torch
import transformers
from torch import Tensor, nn
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    CLIPConfig,
    CLIPForImageClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ElectraConfig,
    ElectraForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    ResNetConfig,
    ResNetForImageClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    T5Config,
    T5EncoderModel,
    ViTConfig,
    ViTForImageClassification,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
)

from .specimen import Specimen, keep, tokens

SMALL = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 20}
MAPPED = int(transformers.__version__.split(".")[0]) < 5
"""From version 5 on, the library looks into a mask before it uses it, which torch.func cannot map."""
_BLOCKS = r"layer\.(\d+)\."


@keep
def bert() -> Specimen:
    config = BertConfig(vocab_size=30, num_labels=3, attn_implementation="eager", **SMALL)
    return Specimen(BertForSequenceClassification(config), tokens(), _BLOCKS, mappable=MAPPED)


@keep
def roberta() -> Specimen:
    config = RobertaConfig(vocab_size=30, num_labels=2, attn_implementation="eager", pad_token_id=0, **SMALL)
    return Specimen(RobertaForSequenceClassification(config), tokens(), _BLOCKS, mappable=MAPPED)


@keep
def electra() -> Specimen:
    config = ElectraConfig(vocab_size=30, num_labels=5, embedding_size=8, attn_implementation="eager", **SMALL)
    return Specimen(ElectraForSequenceClassification(config), tokens(), _BLOCKS, mappable=MAPPED)


@keep
def distilbert() -> Specimen:
    config = DistilBertConfig(
        vocab_size=30, num_labels=3, dim=16, hidden_dim=20, n_heads=2, n_layers=2, attn_implementation="eager"
    )
    return Specimen(DistilBertForSequenceClassification(config), tokens(), _BLOCKS, mappable=MAPPED)


@keep
def bert_whole() -> Specimen:
    """With the layers that are found, position embeddings among them."""
    it = bert()
    it.layers = None
    return it


@keep
def albert() -> Specimen:
    """One block, called twice."""
    config = AlbertConfig(vocab_size=30, num_labels=3, embedding_size=8, attn_implementation="eager", **SMALL)
    return Specimen(AlbertForSequenceClassification(config), tokens(), r"(encoder|classifier)", mappable=MAPPED)


@keep
def xlm_roberta() -> Specimen:
    config = XLMRobertaConfig(vocab_size=30, num_labels=3, attn_implementation="eager", pad_token_id=0, **SMALL)
    return Specimen(XLMRobertaForSequenceClassification(config), tokens(), mappable=MAPPED)


def _deberta(layers: str, slowly: str | None = None) -> Specimen:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers scripts some functions as the module is imported
        from transformers import DebertaV2Config, DebertaV2ForSequenceClassification
    config = DebertaV2Config(
        vocab_size=30, num_labels=3, relative_attention=True, pos_att_type=["p2c", "c2p"], share_att_key=False, **SMALL
    )
    return Specimen(DebertaV2ForSequenceClassification(config), tokens(), layers, slowly=slowly)


@keep
def deberta() -> Specimen:
    return _deberta(r"(layer\.\d+\.(?:intermediate|output)|embeddings\.(?:word|LayerNorm)|pooler|classifier)")


@keep
def deberta_relative_positions() -> Specimen:
    """Read by no call of their own, and the same for all examples."""
    return _deberta(r"(rel_embeddings|encoder\.LayerNorm)", slowly="rel_embeddings not called")


@keep
def deberta_attention() -> Specimen:
    """Its projections are called with relative positions too, which are the same for all examples."""
    return _deberta(r"layer\.(\d+)\.attention", slowly="several examples' at once")


@keep
def gpt2() -> Specimen:
    config = GPT2Config(
        vocab_size=30, n_embd=16, n_layer=2, n_head=2, num_labels=3, pad_token_id=0, attn_implementation="eager"
    )
    return Specimen(GPT2ForSequenceClassification(config), tokens(), None, mappable=False)


@keep
def llama() -> Specimen:
    config = LlamaConfig(vocab_size=30, num_labels=3, pad_token_id=0, attn_implementation="eager", **SMALL)
    return Specimen(LlamaForSequenceClassification(config), tokens(), None, mappable=False, single_inside=True)


@keep
def vit() -> Specimen:
    config = ViTConfig(image_size=8, patch_size=4, num_labels=3, attn_implementation="eager", **SMALL)
    return Specimen(ViTForImageClassification(config), {"pixel_values": torch.randn(4, 3, 8, 8)})


@keep
def resnet() -> Specimen:
    config = ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", num_labels=3)
    return Specimen(ResNetForImageClassification(config), {"pixel_values": torch.randn(4, 3, 16, 16)})


class T5Classifier(nn.Module):
    """The mean over tokens of T5's encoder."""

    def __init__(self) -> None:
        super().__init__()
        config = T5Config(vocab_size=30, d_model=16, d_kv=8, d_ff=20, num_layers=2, num_heads=2)
        self.encoder, self.head = T5EncoderModel(config), nn.Linear(16, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        h = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return self.head((h * attention_mask[..., None]).sum(dim=1) / attention_mask.sum(dim=1, keepdim=True))


@keep
def t5() -> Specimen:
    layers = (
        r"(block\.\d+\..*(?:\.[qkvo]|wi|wo|norm)\.|final_layer_norm|head)"  # its embedding: two modules in version 5
    )
    return Specimen(T5Classifier(), tokens(), layers, mappable=MAPPED, single_inside=True)


@keep
def t5_relative_positions() -> Specimen:
    """A bias that is the same for all examples."""
    layers, slowly = r"(relative_attention_bias)", "several examples' at once"
    return Specimen(T5Classifier(), tokens(), layers, mappable=MAPPED, single_inside=True, slowly=slowly)


@keep
def clip() -> Specimen:
    small = {**SMALL, "image_size": 8, "patch_size": 4}
    config = CLIPConfig(vision_config=small, text_config={**SMALL, "vocab_size": 30}, num_labels=3)
    config._attn_implementation = "eager"  # whose softmax is in float32
    pixels = {"pixel_values": torch.randn(4, 3, 8, 8)}
    return Specimen(CLIPForImageClassification(config), pixels, r"layers\.(\d+)\.", single_inside=True)


def _masked_language_model(layers: str) -> Specimen:
    config = BertConfig(vocab_size=12, attn_implementation="eager", **SMALL)
    return Specimen(BertForMaskedLM(config), tokens(3, 4, 12), layers, mappable=MAPPED, likelihood="token")


@keep
def masked_language_model() -> Specimen:
    """All but its embeddings, which are its decoder too."""
    return _masked_language_model(r"(layer\.\d+|predictions\.transform)\.")


@keep
def tied_embeddings() -> Specimen:
    return _masked_language_model(r"(word_embeddings)")
