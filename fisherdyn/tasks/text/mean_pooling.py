"""A linear head on the mean of an encoder's outputs."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput


class MeanPoolingClassifier(PreTrainedModel):
    """Classifies a text by the mean of the encoder's outputs over its tokens, special ones included.

    Args:
        encoder: any encoder that `AutoModel` makes.
        num_labels: classes.
    """

    base_model_prefix = "text_encoder"
    # The encoder has already chosen how it attends.
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = True

    def __init__(self, encoder: PreTrainedModel, num_labels: int) -> None:
        super().__init__(encoder.config)
        self.text_encoder = encoder
        self.classifier = nn.Linear(encoder.config.hidden_size, num_labels)
        nn.init.normal_(self.classifier.weight, std=encoder.config.initializer_range)
        nn.init.zeros_(self.classifier.bias)

    @classmethod
    def from_pretrained(cls, place: str, *, num_labels: int, **loading: Any) -> tuple[MeanPoolingClassifier, dict]:
        """The encoder of a folder or repository under a fresh head, and what `AutoModel.from_pretrained` says of loading."""
        encoder, info = AutoModel.from_pretrained(place, **loading)
        encoder.pooler = None  # reads the first token alone
        missing = [f"{cls.base_model_prefix}.{key}" for key in info["missing_keys"] if not key.startswith("pooler.")]
        return cls(encoder, num_labels), {**info, "missing_keys": missing}

    def features(self, input_ids: Tensor, attention_mask: Tensor, **inputs: Any) -> Tensor:
        """The mean of the encoder's outputs over the tokens of each text: (n, hidden)."""
        states = self.text_encoder(input_ids=input_ids, attention_mask=attention_mask, **inputs).last_hidden_state
        weight = attention_mask.unsqueeze(-1).to(states.dtype)
        return (states * weight).sum(1) / weight.sum(1)

    def forward(self, labels: Tensor | None = None, **inputs: Any) -> SequenceClassifierOutput:
        """Logits (n, classes) and, if labels (n,) are given, the mean cross-entropy."""
        logits = self.classifier(self.features(**inputs))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)
