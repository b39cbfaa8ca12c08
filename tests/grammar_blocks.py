"""Blocks of the grammar of models: each keeps the shape (batch, ..., features) that it gets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

Wire = Callable[["Block", Tensor, Tensor | None], Tensor]


class Block(nn.Module):
    """Modules and parameters by name, and a function of them, the input and the mask (batch, positions)."""

    def __init__(self, wire: Wire, **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.wire = wire
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.wire(self, x, mask)


def call(module: nn.Module, x: Tensor, mask: Tensor | None) -> Tensor:
    return module(x, mask) if isinstance(module, Block) else module(x)


@dataclass(frozen=True)
class Rule:
    """How a block is made of its width, positions and children, and on which shapes it runs.

    Attributes:
        shapes: of "row" (batch, features), "sequence" (batch, positions, features) and "image" (batch, features, 4, 4).
        children: how many blocks it holds.
        pending: why it is not right yet, and so is left out unless it is asked for.
    """

    make: Callable[..., nn.Module]
    shapes: tuple[str, ...]
    children: int = 0
    pending: str = ""


RULES: dict[str, Rule] = {}
ANY, LAST = ("row", "sequence", "image"), ("row", "sequence")


def block(*shapes: str, children: int = 0, pending: str = "") -> Callable:
    def add(make: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        RULES[make.__name__] = Rule(make, shapes, children, pending)
        return make

    return add


def matrix(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape) / shape[-1] ** 0.5)


# On the last dimension


@block(*LAST)
def linear(d: int, n: int) -> nn.Module:
    return nn.Linear(d, d)


@block(*LAST)
def mlp(d: int, n: int) -> nn.Module:
    return nn.Sequential(nn.Linear(d, 2 * d), nn.GELU(), nn.Linear(2 * d, d))


@block(*LAST)
def layer_norm(d: int, n: int) -> nn.Module:
    return nn.LayerNorm(d)


@block(*LAST)
def rms_norm(d: int, n: int) -> nn.Module:
    return nn.RMSNorm(d)


@block(*LAST)
def scale(d: int, n: int) -> nn.Module:
    return Block(lambda m, x, mask: x * m.scale + m.shift, scale=matrix(d), shift=matrix(d))


@block(*LAST)
def raw_matrix(d: int, n: int) -> nn.Module:
    return Block(lambda m, x, mask: torch.tanh(x @ m.w), w=matrix(d, d))


@block(*LAST)
def gated(d: int, n: int) -> nn.Module:
    return Block(lambda m, x, mask: m.up(x) * m.gate(x).sigmoid(), up=nn.Linear(d, d), gate=nn.Linear(d, d))


@block(*LAST)
def inplace(d: int, n: int) -> nn.Module:
    return nn.Sequential(nn.Linear(d, d), nn.LeakyReLU(0.2, inplace=True), nn.Linear(d, d))


@block(*LAST)
def inplace_arithmetic(d: int, n: int) -> nn.Module:
    return Block(lambda m, x, mask: m.a(x).mul_(0.5).add_(m.b(x)).tanh_(), a=nn.Linear(d, d), b=nn.Linear(d, d))


@block(*LAST)
def inplace_slice(d: int, n: int) -> nn.Module:
    def wire(m: Block, x: Tensor, mask: Tensor | None) -> Tensor:
        y = m.a(x)
        y[..., : d // 2] *= 2
        return y

    return Block(wire, a=nn.Linear(d, d))


@block(*LAST)
def heads_as_view(d: int, n: int) -> nn.Module:
    return Block(lambda m, x, mask: m.a(x.unflatten(-1, (2, d // 2))).tanh().flatten(-2), a=nn.Linear(d // 2, d // 2))


@block(*LAST)
def folded_rows(d: int, n: int) -> nn.Module:
    return Block(lambda m, x, mask: m.a(x.reshape(-1, d)).tanh().reshape(x.shape), a=nn.Linear(d, d))


@block(*LAST)
def dropped(d: int, n: int) -> nn.Module:
    return nn.Sequential(nn.Linear(d, d), nn.Dropout(0.5), nn.Tanh())


@block(*LAST)
def tied(d: int, n: int) -> nn.Module:
    a, b = nn.Linear(d, d), nn.Linear(d, d)
    b.weight = a.weight
    return nn.Sequential(a, nn.Tanh(), b)


@block(*LAST)
def transposed(d: int, n: int) -> nn.Module:
    return Block(lambda m, x, mask: F.linear(m.a(x).tanh(), m.a.weight.T), a=nn.Linear(d, d))


@block(*LAST)
def low_rank(d: int, n: int) -> nn.Module:
    a, b = nn.Linear(d, 2, bias=False), nn.Linear(2, d, bias=False)
    return Block(lambda m, x, mask: m.w(x) + 2 * m.b(m.a(x)), w=nn.Linear(d, d).requires_grad_(False), a=a, b=b)


@block(*LAST)
def weight_normed(d: int, n: int) -> nn.Module:
    return parametrizations.weight_norm(nn.Linear(d, d))


@block(*LAST)
def bilinear(d: int, n: int) -> nn.Module:
    return Block(lambda m, x, mask: m.a(x, x.tanh()), a=nn.Bilinear(d, d, d))


@block(*LAST)
def prelu(d: int, n: int) -> nn.Module:
    return nn.Sequential(nn.Linear(d, d), nn.PReLU())


@block(*LAST)
def routed_experts(d: int, n: int) -> nn.Module:
    """Each row to its best expert; the rows of an expert are gathered from all examples."""

    def wire(m: Block, x: Tensor, mask: Tensor | None) -> Tensor:
        rows = x.reshape(-1, d)
        p, best = m.router(rows).softmax(dim=-1).max(dim=-1)
        y = torch.zeros_like(rows)
        for i, expert in enumerate(m.experts):
            here = (best == i).nonzero()[:, 0]
            y = y.index_add(0, here, p[here, None] * expert(rows[here]))
        return y.reshape(x.shape)

    return Block(wire, router=nn.Linear(d, 3), experts=nn.ModuleList(nn.Linear(d, d) for _ in range(3)))


@block(*LAST)
def visited_experts(d: int, n: int) -> nn.Module:
    """Only experts that some row chose are called, as Mixtral has it."""

    def wire(m: Block, x: Tensor, mask: Tensor | None) -> Tensor:
        rows = x.reshape(-1, d)
        p, best = m.router(rows).softmax(dim=-1).topk(2)
        y = torch.zeros_like(rows)
        for i in best.unique().tolist():
            here, place = (best == i).nonzero(as_tuple=True)
            y = y.index_add(0, here, p[here, place, None] * m.experts[i](rows[here]))
        return y.reshape(x.shape)

    return Block(wire, router=nn.Linear(d, 4), experts=nn.ModuleList(nn.Linear(d, d) for _ in range(4)))


@block(*LAST)
def soft_experts(d: int, n: int) -> nn.Module:
    def wire(m: Block, x: Tensor, mask: Tensor | None) -> Tensor:
        return torch.einsum("...e,...ed->...d", m.router(x).softmax(dim=-1), torch.einsum("...i,eid->...ed", x, m.w))

    return Block(wire, router=nn.Linear(d, 3), w=matrix(3, d, d))


@block(*LAST)
def fused_experts(d: int, n: int) -> nn.Module:
    """The experts' weights in one parameter, of which each row reads a slice."""

    def wire(m: Block, x: Tensor, mask: Tensor | None) -> Tensor:
        p, best = m.router(x).softmax(dim=-1).max(dim=-1)
        return p[..., None] * torch.einsum("...i,...id->...d", x, m.w[best])

    return Block(wire, router=nn.Linear(d, 3), w=matrix(3, d, d))


@block(*LAST)
def own_gate(d: int, n: int) -> nn.Module:
    """A branch that runs only if some example asks for it, and adds nothing to the others."""

    def wire(m: Block, x: Tensor, mask: Tensor | None) -> Tensor:
        wanted = (m.gate(x).mean(dim=tuple(range(1, x.ndim))) > 0).to(x)
        if not wanted.any():
            return x
        return x + m.a(x).tanh() * wanted.reshape(-1, *[1] * (x.ndim - 1))

    return Block(wire, gate=nn.Linear(d, 1), a=nn.Linear(d, d))


class Cached(nn.Module):
    """A bias made once in evaluation mode and kept, as some vision transformers do."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.table, self.keeps, self.kept = matrix(d), True, None

    def train(self, mode: bool = True) -> Cached:
        self.kept = None
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        if self.training or not self.keeps:
            return x + self.table.tanh()
        if self.kept is None:
            self.kept = self.table.detach().tanh()
        return x + self.kept


@block(*LAST, pending="a tensor kept from a pass without a graph: tr(F) of its parameter is 0")
def cached(d: int, n: int) -> nn.Module:
    return Cached(d)


# Around other blocks


@block(*ANY, children=1)
def residual(d: int, n: int, inner: nn.Module) -> nn.Module:
    return Block(lambda m, x, mask: x + call(m.inner, x, mask), inner=inner)


@block(*ANY, children=1)
def repeated(d: int, n: int, inner: nn.Module) -> nn.Module:
    return Block(lambda m, x, mask: call(m.inner, call(m.inner, x, mask).tanh(), mask), inner=inner)


@block(*ANY, children=1)
def checkpointed(d: int, n: int, inner: nn.Module) -> nn.Module:
    return Block(lambda m, x, mask: checkpoint(call, m.inner, x, mask, use_reentrant=False), inner=inner)


@block(*ANY, children=1)
def frozen(d: int, n: int, inner: nn.Module) -> nn.Module:
    return Block(lambda m, x, mask: x + call(m.inner, x, mask), inner=inner.requires_grad_(False))


@block(*ANY, children=1)
def beside(d: int, n: int, inner: nn.Module) -> nn.Module:
    """A branch whose gradient does not go further down."""
    return Block(lambda m, x, mask: x + call(m.inner, x.detach(), mask), inner=inner)


@block(*ANY, children=1)
def hooked(d: int, n: int, inner: nn.Module) -> nn.Module:
    inner.register_forward_hook(lambda module, args, output: 3 * output)
    return inner


@block(*ANY, children=2)
def chained(d: int, n: int, first: nn.Module, second: nn.Module) -> nn.Module:
    wire = lambda m, x, mask: call(m.second, call(m.first, x, mask), mask)  # noqa: E731
    return Block(wire, first=first, second=second)


@block(*ANY, children=2)
def parallel(d: int, n: int, a: nn.Module, b: nn.Module) -> nn.Module:
    return Block(lambda m, x, mask: call(m.a, x, mask).tanh() + call(m.b, x, mask), a=a, b=b)


# Planted faults: models that mix the examples of a batch, for which a gradient of one example does not exist


FAULTS: dict[str, Rule] = {}


def fault(*shapes: str) -> Callable:
    def add(make: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        FAULTS[make.__name__] = Rule(make, shapes)
        return make

    return add


@fault(*ANY)
def batch_statistics(d: int, n: int) -> nn.Module:
    return Block(lambda m, x, mask: m.scale * (x - x.mean(dim=0)), scale=matrix(1))


@fault(*ANY)
def other_examples(d: int, n: int) -> nn.Module:
    return Block(lambda m, x, mask: x + m.scale * x.roll(1, dims=0).tanh(), scale=matrix(1))


@fault(*LAST)
def batch_early_exit(d: int, n: int) -> nn.Module:
    """Leaves the loop as soon as all examples are sure, so that one waits for the others."""

    def wire(m: Block, x: Tensor, mask: Tensor | None) -> Tensor:
        for layer in m.layers:
            x = x + layer(x).tanh()
            if (m.sure(x).reshape(len(x), -1).mean(dim=1) > 0).all():
                break
        return x

    return Block(wire, layers=nn.ModuleList(nn.Linear(d, d) for _ in range(3)), sure=nn.Linear(d, 1))


@fault(*LAST)
def expert_capacity(d: int, n: int) -> nn.Module:
    """An expert takes its share of the batch's rows, and drops what comes later."""

    def wire(m: Block, x: Tensor, mask: Tensor | None) -> Tensor:
        rows = x.reshape(-1, d)
        p, best = m.router(rows).softmax(dim=-1).max(dim=-1)
        y = rows
        for i, expert in enumerate(m.experts):
            here = (best == i).nonzero()[: (len(rows) + 1) // 2, 0]
            y = y.index_add(0, here, p[here, None] * expert(rows[here]))
        return y.reshape(x.shape)

    return Block(wire, router=nn.Linear(d, 2), experts=nn.ModuleList(nn.Linear(d, d) for _ in range(2)))


@fault("sequence")
def longest_mean(d: int, n: int) -> nn.Module:
    """The mean over the positions of the batch's longest example."""

    def wire(m: Block, x: Tensor, mask: Tensor | None) -> Tensor:
        longest = x.shape[1] if mask is None else int(mask.sum(dim=1).max())
        return x + m.a(x[:, :longest].mean(dim=1, keepdim=True)).tanh()

    return Block(wire, a=nn.Linear(d, d))
