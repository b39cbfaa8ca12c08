"""Blocks of the grammar of models that work across positions: of sequences, and of images."""

from __future__ import annotations

import torch
from grammar_blocks import Block, block, call, matrix
from torch import Tensor, nn
from torch.nn.utils import rnn

SEQUENCE, IMAGE = "sequence", "image"


def lengths(x: Tensor, mask: Tensor | None) -> Tensor:
    return mask.sum(dim=1) if mask is not None else torch.full((len(x),), x.shape[1])


# Sequences


@block(SEQUENCE)
def convolution(d: int, n: int) -> nn.Module:
    return Block(lambda m, x, mask: m.a(x.mT).mT, a=nn.Conv1d(d, d, 3, padding=1))


@block(SEQUENCE)
def causal_depthwise(d: int, n: int) -> nn.Module:
    return Block(lambda m, x, mask: m.a(x.mT)[..., : x.shape[1]].mT, a=nn.Conv1d(d, d, 3, padding=2, groups=d))


@block(SEQUENCE)
def group_norm(d: int, n: int) -> nn.Module:
    return Block(lambda m, x, mask: m.a(x.mT).mT, a=nn.GroupNorm(2, d))


@block(SEQUENCE)
def batch_norm(d: int, n: int) -> nn.Module:
    return Block(lambda m, x, mask: m.a(x.mT).mT, a=nn.BatchNorm1d(d))


@block(SEQUENCE)
def attention(d: int, n: int) -> nn.Module:
    def wire(m: Block, x: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = m.qkv(x).unflatten(-1, (3, 2, d // 2)).permute(2, 0, 3, 1, 4)
        scores = q @ k.mT / (d // 2) ** 0.5
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, None], -1e9)
        return m.out((scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(2))

    return Block(wire, qkv=nn.Linear(d, 3 * d), out=nn.Linear(d, d))


@block(SEQUENCE)
def biased_attention(d: int, n: int) -> nn.Module:
    """Scores with a learned bias for each distance, the same for all examples."""

    def wire(m: Block, x: Tensor, mask: Tensor | None) -> Tensor:
        places = torch.arange(x.shape[1])
        bias = m.bias(places[:, None] - places + x.shape[1] - 1)[..., 0]
        scores = m.q(x) @ x.mT / d**0.5 + bias
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None], -1e9)
        return m.v(scores.softmax(dim=-1) @ x)

    return Block(wire, q=nn.Linear(d, d), v=nn.Linear(d, d), bias=nn.Embedding(2 * n + 1, 1))


@block(SEQUENCE)
def multihead_attention(d: int, n: int) -> nn.Module:
    def wire(m: Block, x: Tensor, mask: Tensor | None) -> Tensor:
        return m.a(x, x, x, key_padding_mask=None if mask is None else ~mask, need_weights=False)[0]

    return Block(wire, a=nn.MultiheadAttention(d, 2, batch_first=True))


@block(SEQUENCE)
def encoder_layer(d: int, n: int) -> nn.Module:
    inner = nn.TransformerEncoderLayer(d, 2, 2 * d, batch_first=True, norm_first=True)
    return Block(lambda m, x, mask: m.a(x, src_key_padding_mask=None if mask is None else ~mask), a=inner)


@block(SEQUENCE)
def gru(d: int, n: int) -> nn.Module:
    return Block(lambda m, x, mask: m.a(x)[0], a=nn.GRU(d, d, batch_first=True))


@block(SEQUENCE)
def lstm(d: int, n: int) -> nn.Module:
    return Block(lambda m, x, mask: m.a(x)[0], a=nn.LSTM(d, d // 2, batch_first=True, bidirectional=True))


@block(SEQUENCE)
def packed_lstm(d: int, n: int) -> nn.Module:
    def wire(m: Block, x: Tensor, mask: Tensor | None) -> Tensor:
        packed = rnn.pack_padded_sequence(x, lengths(x, mask).cpu(), batch_first=True, enforce_sorted=False)
        return x + rnn.pad_packed_sequence(m.a(packed)[0], batch_first=True, total_length=x.shape[1])[0]

    return Block(wire, a=nn.LSTM(d, d, batch_first=True))


@block(SEQUENCE)
def time_first_gru(d: int, n: int) -> nn.Module:
    return Block(lambda m, x, mask: m.a(x.transpose(0, 1))[0].transpose(0, 1), a=nn.GRU(d, d))


@block(SEQUENCE)
def time_first_linear(d: int, n: int) -> nn.Module:
    """Rows of positions first, then of examples."""
    return Block(lambda m, x, mask: m.a(x.transpose(0, 1)).tanh().transpose(0, 1), a=nn.Linear(d, d))


@block(SEQUENCE)
def own_recurrence(d: int, n: int) -> nn.Module:
    def wire(m: Block, x: Tensor, mask: Tensor | None) -> Tensor:
        h, states = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = m.cell(x[:, t], h)
            states.append(h)
        return torch.stack(states, dim=1)

    return Block(wire, cell=nn.GRUCell(d, d))


@block(SEQUENCE)
def linear_recurrence(d: int, n: int) -> nn.Module:
    def wire(m: Block, x: Tensor, mask: Tensor | None) -> Tensor:
        h, states = m.start.expand(len(x), -1), []
        for row in m.into(x).unbind(dim=1):
            h = torch.tanh(row + m.cell(h))
            states.append(h)
        return torch.stack(states, dim=1)

    return Block(wire, into=nn.Linear(d, d), cell=nn.Linear(d, d), start=matrix(d))


@block(SEQUENCE)
def positions(d: int, n: int) -> nn.Module:
    return Block(lambda m, x, mask: x + m.a(torch.arange(x.shape[1])[None]), a=nn.Embedding(n + 1, d))


@block(SEQUENCE)
def expanded_positions(d: int, n: int) -> nn.Module:
    return Block(lambda m, x, mask: x + m.a(torch.arange(x.shape[1]).expand(x.shape[:2])), a=nn.Embedding(n + 1, d))


@block(SEQUENCE)
def raw_positions(d: int, n: int) -> nn.Module:
    return Block(lambda m, x, mask: x + m.a[: x.shape[1]], a=matrix(n + 1, d))


@block(SEQUENCE)
def tokens_first(d: int, n: int) -> nn.Module:
    """Learned tokens before the others, which attend to them and leave again."""

    def wire(m: Block, x: Tensor, mask: Tensor | None) -> Tensor:
        x = torch.cat([m.tokens.expand(len(x), -1, -1), x], dim=1)
        x = x + torch.softmax(m.q(x) @ x.mT, dim=-1) @ m.v(x)
        return x[:, 2:]

    return Block(wire, tokens=matrix(2, d), q=nn.Linear(d, d), v=nn.Linear(d, d))


@block(SEQUENCE)
def centred(d: int, n: int) -> nn.Module:
    return Block(lambda m, x, mask: m.a(x - x.mean(dim=1, keepdim=True)), a=nn.Linear(d, d))


@block(SEQUENCE)
def masked_shift(d: int, n: int) -> nn.Module:
    """Only positions that are not padding are computed, gathered from all examples."""

    def wire(m: Block, x: Tensor, mask: Tensor | None) -> Tensor:
        if mask is None:
            return x + m.a(x).tanh()
        here = mask.nonzero(as_tuple=True)
        return x.index_put(here, x[here] + m.a(x[here]).tanh())

    return Block(wire, a=nn.Linear(d, d))


@block(SEQUENCE)
def mixer(d: int, n: int) -> nn.Module:
    def wire(m: Block, x: Tensor, mask: Tensor | None) -> Tensor:
        rows = nn.functional.pad(x.mT, (0, n + 1 - x.shape[1]))
        return x + m.a(rows)[..., : x.shape[1]].mT

    return Block(wire, a=nn.Linear(n + 1, n + 1))


@block(SEQUENCE)
def flipped(d: int, n: int) -> nn.Module:
    return Block(lambda m, x, mask: m.a(x.flip(1)).tanh().roll(1, dims=1), a=nn.Linear(d, d))


@block(SEQUENCE, children=1)
def both_ways(d: int, n: int, inner: nn.Module) -> nn.Module:
    """One block on the sequence and on its reverse, joined along the batch."""

    def wire(m: Block, x: Tensor, mask: Tensor | None) -> Tensor:
        there, back = call(m.inner, torch.cat([x, x.flip(1)]), None).chunk(2)
        return there + back.flip(1)

    return Block(wire, inner=inner)


# Images


@block(IMAGE)
def image_convolution(d: int, n: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(d, d, 3, padding=1), nn.ReLU(inplace=True))


@block(IMAGE)
def image_depthwise(d: int, n: int) -> nn.Module:
    return nn.Conv2d(d, d, 3, padding=1, groups=d, padding_mode="circular")


@block(IMAGE)
def image_group_norm(d: int, n: int) -> nn.Module:
    return nn.GroupNorm(2, d)


@block(IMAGE)
def image_batch_norm(d: int, n: int) -> nn.Module:
    return nn.BatchNorm2d(d)


@block(IMAGE)
def image_instance_norm(d: int, n: int) -> nn.Module:
    return nn.InstanceNorm2d(d, affine=True)


@block(IMAGE)
def image_transposed(d: int, n: int) -> nn.Module:
    return Block(
        lambda m, x, mask: m.a(m.b(x).tanh()), b=nn.Conv2d(d, d, 2, stride=2), a=nn.ConvTranspose2d(d, d, 2, 2)
    )


@block(IMAGE)
def squeeze_excite(d: int, n: int) -> nn.Module:
    def wire(m: Block, x: Tensor, mask: Tensor | None) -> Tensor:
        return x * m.b(m.a(x.mean(dim=(2, 3), keepdim=True)).relu()).sigmoid()

    return Block(wire, a=nn.Conv2d(d, 2, 1), b=nn.Conv2d(2, d, 1))


@block(IMAGE)
def channels_last(d: int, n: int) -> nn.Module:
    def wire(m: Block, x: Tensor, mask: Tensor | None) -> Tensor:
        return x + m.scale * m.a(m.norm(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)

    return Block(wire, norm=nn.LayerNorm(d), a=nn.Linear(d, d), scale=matrix(d, 1, 1))


@block(IMAGE)
def windows(d: int, n: int) -> nn.Module:
    """Attention within windows that are folded into the batch, as Swin has it."""

    def wire(m: Block, x: Tensor, mask: Tensor | None) -> Tensor:
        rows = x.reshape(len(x), d, 2, 2, 2, 2).permute(0, 2, 4, 3, 5, 1).reshape(-1, 4, d)
        rows = m.v(torch.softmax(m.q(rows) @ rows.mT, dim=-1) @ rows)
        return x + rows.reshape(len(x), 2, 2, 2, 2, d).permute(0, 5, 1, 3, 2, 4).reshape(x.shape)

    return Block(wire, q=nn.Linear(d, d), v=nn.Linear(d, d))
