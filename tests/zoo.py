"""Small models of many kinds, each with inputs, in float32; `zoo` names them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import adapters
import torch
from adapters import DoubleSeqBnConfig, ParBnConfig, SeqBnConfig
from adapters.composition import Stack
from torch import Tensor, nn
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
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
    ViTConfig,
    ViTForImageClassification,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
)


@dataclass
class Specimen:
    model: nn.Module
    inputs: dict[str, Tensor] | Tensor
    layers: str | None = None
    """A regular expression, where the default choice would take a module that hooks refuse."""

    mappable: bool = True
    """Whether torch.func can vmap it."""
    single_inside: bool = False
    """Whether it computes in float32 whatever it is given (as Llama's norm does): 1e-9 is out of reach."""

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
        self.body = nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 6)])
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


class Grouped(nn.Module):
    """A depthwise and a grouped convolution, padded and strided, with the norms of their field."""

    def __init__(self, padding: str) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1, padding_mode=padding)
        self.depthwise = nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=4, bias=False)
        self.batch_norm, self.group_norm = nn.BatchNorm2d(8), nn.GroupNorm(2, 8)
        self.grouped = nn.Conv2d(8, 6, (2, 3), dilation=2, padding="same", groups=2)
        self.head = nn.Linear(6, 3)
        nn.init.uniform_(self.batch_norm.running_var, 0.5, 2.0)
        nn.init.normal_(self.batch_norm.running_mean)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.batch_norm(self.depthwise(self.stem(x))))
        return self.head(self.grouped(self.group_norm(x)).tanh().mean(dim=(2, 3)))


def mobile() -> Specimen:
    return Specimen(Grouped("zeros"), torch.randn(4, 2, 7, 6))


def mobile_reflecting() -> Specimen:
    return Specimen(Grouped("reflect"), torch.randn(4, 2, 7, 6))


class TextCNN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 6)
        self.conv, self.norm, self.head = nn.Conv1d(6, 8, 3, padding=1), nn.BatchNorm1d(8), nn.Linear(8, 4)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(self.embedding(ids).mT)).relu().amax(dim=2))


def text_cnn() -> Specimen:
    return Specimen(TextCNN(), torch.randint(0, 20, (5, 9)))


class Recurrent(nn.Module):
    """An LSTM, which no rule covers, read from its states too, whose batch dimension is the second."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(5, 6, batch_first=True), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        out, (h, _) = self.lstm(x)
        return self.head(torch.cat([out.mean(dim=1), h[0]], dim=1))


def lstm() -> Specimen:
    return Specimen(Recurrent(), torch.randn(4, 6, 5), mappable=False)


class RawParameters(nn.Module):
    """Parameters used in arithmetic, at the top and inside, under a frozen Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.below = nn.Parameter(torch.randn(6)), nn.Linear(6, 6).requires_grad_(False)
        self.norm, self.head = nn.RMSNorm(6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.below(x * self.scale)) + self.scale)


def raw_parameters() -> Specimen:
    return Specimen(RawParameters(), torch.randn(5, 6))


class Mixer(nn.Module):
    """An MLP-Mixer block: one Linear works across positions, where features are not last in meaning but are in place."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.across, self.along, self.head = (
            nn.LayerNorm(6),
            nn.Linear(4, 4),
            nn.Linear(6, 6),
            nn.Linear(6, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.across(self.norm(x).mT).mT
        return self.head((x + self.along(x).tanh()).mean(dim=1))


def mixer() -> Specimen:
    return Specimen(Mixer(), torch.randn(5, 4, 6))


class BroadcastPositions(nn.Module):
    """Position embeddings of shape (1, T), broadcast over the batch, as in BERT."""

    def __init__(self) -> None:
        super().__init__()
        self.positions, self.head = nn.Embedding(4, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((x + self.positions(torch.arange(4)[None])).tanh().mean(dim=1))


def broadcast_positions() -> Specimen:
    return Specimen(BroadcastPositions(), torch.randn(4, 4, 3))


class InPlaceAfterView(nn.Module):
    """A Linear's output of three dimensions is a view, and a view written into moves its edge."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.act, self.head = nn.Linear(6, 6), nn.ReLU(inplace=True), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(self.body(x)).mean(dim=1))


def inplace_after_view() -> Specimen:
    return Specimen(InPlaceAfterView(), torch.randn(5, 4, 6))


def shared_module() -> Specimen:
    """One block, registered under two names."""
    block = nn.Linear(6, 6)
    return Specimen(nn.Sequential(block, nn.Tanh(), block, nn.Tanh(), nn.Linear(6, 3)), torch.randn(5, 6))


def hooked() -> Specimen:
    """The user's own hook changes an output: the module's gradient is that before the hook."""
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))
    model[0].register_forward_hook(lambda module, inputs, output: 3 * output)
    return Specimen(model, torch.randn(7, 6))


class Windows(nn.Module):
    """Four windows an example, folded into the batch, one example after the other (as multiple choice does)."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(3, 5), nn.Linear(20, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x.reshape(-1, 3)).tanh().reshape(len(x), -1))


def windows() -> Specimen:
    return Specimen(Windows(), torch.randn(5, 4, 3))


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


def bert_whole() -> Specimen:
    """With the layers that are found, position embeddings among them."""
    it = bert()
    it.layers = None
    return it


def albert() -> Specimen:
    """One block, called twice."""
    config = AlbertConfig(vocab_size=30, num_labels=3, embedding_size=8, attn_implementation="eager", **SMALL)
    return Specimen(AlbertForSequenceClassification(config), tokens(), r"(encoder|classifier)")


def xlm_roberta() -> Specimen:
    config = XLMRobertaConfig(vocab_size=30, num_labels=3, attn_implementation="eager", pad_token_id=0, **SMALL)
    return Specimen(XLMRobertaForSequenceClassification(config), tokens())


def deberta() -> Specimen:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers scripts some functions as the module is imported
        from transformers import DebertaV2Config, DebertaV2ForSequenceClassification
    config = DebertaV2Config(
        vocab_size=30, num_labels=3, relative_attention=True, pos_att_type=["p2c", "c2p"], share_att_key=False, **SMALL
    )
    return Specimen(
        DebertaV2ForSequenceClassification(config), tokens(), r"(layer\.\d+\.(?:intermediate|output))", False
    )


def gpt2() -> Specimen:
    config = GPT2Config(
        vocab_size=30, n_embd=16, n_layer=2, n_head=2, num_labels=3, pad_token_id=0, attn_implementation="eager"
    )
    return Specimen(GPT2ForSequenceClassification(config), tokens(), None, mappable=False)


def llama() -> Specimen:
    config = LlamaConfig(vocab_size=30, num_labels=3, pad_token_id=0, attn_implementation="eager", **SMALL)
    return Specimen(LlamaForSequenceClassification(config), tokens(), None, mappable=False, single_inside=True)


def vit() -> Specimen:
    config = ViTConfig(image_size=8, patch_size=4, num_labels=3, attn_implementation="eager", **SMALL)
    return Specimen(ViTForImageClassification(config), {"pixel_values": torch.randn(4, 3, 8, 8)})


def resnet() -> Specimen:
    config = ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", num_labels=3)
    return Specimen(ResNetForImageClassification(config), {"pixel_values": torch.randn(4, 3, 16, 16)})


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
        mobile,
        mobile_reflecting,
        text_cnn,
        lstm,
        raw_parameters,
        mixer,
        broadcast_positions,
        inplace_after_view,
        shared_module,
        hooked,
        windows,
        bert_whole,
        albert,
        xlm_roberta,
        deberta,
        gpt2,
        llama,
        vit,
        resnet,
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
