"""Networks of a few lines, each with a layer kind or a wiring of its own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .specimen import Specimen, keep


@keep
def mlp() -> Specimen:
    return Specimen(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)), torch.randn(7, 6))


@keep
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


@keep
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


@keep
def bag_of_tokens() -> Specimen:
    return Specimen(BagOfTokens(), torch.randint(0, 9, (6, 12)))


@keep
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


@keep
def mobile() -> Specimen:
    return Specimen(Grouped("zeros"), torch.randn(4, 2, 7, 6))


@keep
def mobile_reflecting() -> Specimen:
    return Specimen(Grouped("reflect"), torch.randn(4, 2, 7, 6))


class TextCNN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 6)
        self.conv, self.norm, self.head = nn.Conv1d(6, 8, 3, padding=1), nn.BatchNorm1d(8), nn.Linear(8, 4)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(self.embedding(ids).mT)).relu().amax(dim=2))


@keep
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


@keep
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


@keep
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


@keep
def mixer() -> Specimen:
    return Specimen(Mixer(), torch.randn(5, 4, 6))


class BroadcastPositions(nn.Module):
    """Position embeddings of shape (1, T), broadcast over the batch, as in BERT."""

    def __init__(self) -> None:
        super().__init__()
        self.positions, self.head = nn.Embedding(4, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((x + self.positions(torch.arange(4)[None])).tanh().mean(dim=1))


@keep
def broadcast_positions() -> Specimen:
    return Specimen(BroadcastPositions(), torch.randn(4, 4, 3))


class InPlaceAfterView(nn.Module):
    """A Linear's output of three dimensions is a view, and a view written into moves its edge."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.act, self.head = nn.Linear(6, 6), nn.ReLU(inplace=True), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(self.body(x)).mean(dim=1))


@keep
def inplace_after_view() -> Specimen:
    return Specimen(InPlaceAfterView(), torch.randn(5, 4, 6))


@keep
def shared_module() -> Specimen:
    """One block, registered under two names."""
    block = nn.Linear(6, 6)
    return Specimen(nn.Sequential(block, nn.Tanh(), block, nn.Tanh(), nn.Linear(6, 3)), torch.randn(5, 6))


@keep
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


@keep
def windows() -> Specimen:
    return Specimen(Windows(), torch.randn(5, 4, 3))
