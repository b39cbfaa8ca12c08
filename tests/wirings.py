"""Small models in which an estimator could be silently wrong: how weights are read, and where the batch is.

Each says what hooks, loop and vmap must do: be right, or refuse with these words.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune, rnn
from torch.utils.checkpoint import checkpoint

APART = "one example alone has another gradient"
MIXES = "mixes examples"
MIXED = "has other logits than in its batch"
UNMAPPED = "torch.func cannot map"


@dataclass(frozen=True)
class Wiring:
    """A model and its batch.

    Attributes:
        hooks, loop, vmap: what the refusal says; None where the method is right.
        slowly: what the warning of hooks says, where they go on by the loop.
    """

    make: Callable[[], tuple[nn.Module, Tensor]]
    hooks: str | None
    loop: str | None
    vmap: str | None
    slowly: str | None


WIRINGS: dict[str, Wiring] = {}


def wiring(
    hooks: str | None = None, loop: str | None = None, vmap: str | None = None, slowly: str | None = None
) -> Callable:
    def add(make: Callable[[], tuple[nn.Module, Tensor]]) -> None:
        WIRINGS[make.__name__] = Wiring(make, hooks, loop, vmap, slowly)

    return add


class Wired(nn.Module):
    """Modules by name, and a function of them."""

    def __init__(self, wire: Callable[[Wired, Tensor], Tensor], **modules: nn.Module) -> None:
        super().__init__()
        self.wire = wire
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        return self.wire(self, x)


def body_and_head(wire: Callable[[Wired, Tensor], Tensor], head: int = 6) -> Wired:
    return Wired(wire, body=nn.Linear(6, 6), head=nn.Linear(head, 3))


ROW, SEQUENCE, SQUARE = (5, 6), (5, 4, 6), (4, 4, 6)


def x(*shape: int) -> Tensor:
    return torch.randn(shape)


# How a weight is read.


@wiring(slowly=APART)
def weight_read_elsewhere() -> tuple[nn.Module, Tensor]:
    return body_and_head(lambda m, x: m.head(F.linear(m.body(x).tanh(), m.body.weight))), x(*ROW)


@wiring(slowly=APART)
def weight_in_a_scale() -> tuple[nn.Module, Tensor]:
    return body_and_head(lambda m, x: m.head(m.body(x).tanh()) / m.body.weight.norm()), x(*ROW)


@wiring(slowly=APART)
def transposed_decoder() -> tuple[nn.Module, Tensor]:
    """An autoencoder with its own weight transposed."""
    return body_and_head(lambda m, x: m.head(F.linear(m.body(x).tanh(), m.body.weight.T))), x(*ROW)


@wiring(slowly="body not called in the forward pass")
def weight_read_only_elsewhere() -> tuple[nn.Module, Tensor]:
    return body_and_head(lambda m, x: m.head(F.linear(x, m.body.weight, m.body.bias).tanh())), x(*ROW)


@wiring(slowly=APART)
def forward_called_directly() -> tuple[nn.Module, Tensor]:
    return body_and_head(lambda m, x: m.head(m.body.forward(x).tanh() + m.body(x))), x(*ROW)


class Caching(nn.Module):
    """Keeps an output on itself, for others to read."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        self.kept = x * self.scale
        return x.tanh() * self.scale


@wiring(slowly=APART)
def output_read_from_the_module() -> tuple[nn.Module, Tensor]:
    return Wired(lambda m, x: m.head(m.body(x) + m.body.kept), body=Caching(), head=nn.Linear(6, 3)), x(*ROW)


class Returning(nn.Module):
    """Scales its input, and returns it in a way of its own."""

    def __init__(self, how: Callable[[Tensor, Tensor], object]) -> None:
        super().__init__()
        self.scale, self.how = nn.Parameter(torch.randn(6)), how

    def forward(self, x: Tensor) -> object:
        return self.how(x, x * self.scale)


@wiring(slowly="returns a SimpleNamespace")
def output_in_an_object() -> tuple[nn.Module, Tensor]:
    body = Returning(lambda x, y: SimpleNamespace(hidden=y))
    return Wired(lambda m, x: m.head(m.body(x).hidden.tanh()), body=body, head=nn.Linear(6, 3)), x(*ROW)


@wiring()
def output_in_a_dict() -> tuple[nn.Module, Tensor]:
    body = Returning(lambda x, y: {"a": y, "b": (x + y, None)})

    def wire(m: Wired, x: Tensor) -> Tensor:
        out = m.body(x)
        return m.head(out["a"].tanh() + out["b"][0].sin())

    return Wired(wire, body=body, head=nn.Linear(6, 3)), x(*ROW)


@wiring()
def input_among_the_outputs() -> tuple[nn.Module, Tensor]:
    body = Returning(lambda x, y: (x, y))
    return Wired(lambda m, x: m.head(sum(m.body(x))), body=body, head=nn.Linear(6, 3)), x(*ROW)


@wiring(vmap=UNMAPPED)
def outputs_that_depend_on_each_other() -> tuple[nn.Module, Tensor]:
    """An LSTM cell's h is computed from its c."""

    def wire(m: Wired, x: Tensor) -> Tensor:
        h, c = m.body(x[:, 0])
        for t in range(1, x.shape[1]):
            h, c = m.body(x[:, t], (h, c))
        return m.head(h)

    return Wired(wire, body=nn.LSTMCell(6, 5), head=nn.Linear(5, 3)), x(*SEQUENCE)


@wiring()
def weight_as_an_argument() -> tuple[nn.Module, Tensor]:
    """As long as the batch: it must not be cut into examples."""

    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.randn(6))

        def forward(self, x: Tensor, weight: Tensor) -> Tensor:
            return (x * self.scale) @ weight

    model = Wired(lambda m, x: m.head(m.body(x, m.weight).tanh()), body=Scale(), head=nn.Linear(6, 3))
    model.weight = nn.Parameter(torch.randn(6, 6))
    return model, x(6, 6)


@wiring()
def parameter_list() -> tuple[nn.Module, Tensor]:
    scales = nn.ParameterList([nn.Parameter(torch.randn(6)) for _ in range(2)])
    model = Wired(lambda m, x: m.head((x * m.scales[0]).tanh() * m.scales[1]), scales=scales, head=nn.Linear(6, 3))
    return model, x(*ROW)


@wiring()
def weight_norm() -> tuple[nn.Module, Tensor]:
    return nn.Sequential(parametrizations.weight_norm(nn.Linear(6, 6)), nn.Tanh(), nn.Linear(6, 3)), x(*ROW)


@wiring()
def spectral_norm() -> tuple[nn.Module, Tensor]:
    return nn.Sequential(parametrizations.spectral_norm(nn.Linear(6, 6)), nn.Tanh(), nn.Linear(6, 3)), x(*ROW)


@wiring()
def pruned() -> tuple[nn.Module, Tensor]:
    """The weight is made of two parameters before each call, of a Linear by type."""
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))
    with torch.no_grad():  # what pruning leaves on the module must be a leaf, to be copied
        prune.l1_unstructured(model[0], "weight", 0.5)
    return model, x(*ROW)


@wiring()
def subclass_of_linear() -> tuple[nn.Module, Tensor]:
    class Positive(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.weight.abs(), self.bias)

    return nn.Sequential(Positive(6, 6), nn.Tanh(), nn.Linear(6, 3)), x(*ROW)


class Patched(nn.Sequential):
    """A Linear whose `forward` is the instance's own, as accelerate does it; made anew when it is copied."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))
        self.patch()

    def patch(self) -> Patched:
        body = self[0]
        body.forward = lambda x: F.linear(x, 2 * body.weight, body.bias)
        return self

    def __deepcopy__(self, memo: dict) -> Patched:
        copy = Patched()
        copy.load_state_dict(self.state_dict())
        return copy


@wiring()
def patched_forward() -> tuple[nn.Module, Tensor]:
    return Patched(), x(*ROW)


@wiring()
def changed_by_a_pre_hook() -> tuple[nn.Module, Tensor]:
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))
    model[0].register_forward_pre_hook(lambda module, inputs: (2 * inputs[0],))
    return model, x(*ROW)


@wiring(vmap=UNMAPPED)
def custom_function() -> tuple[nn.Module, Tensor]:
    class Product(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor, w: Tensor) -> Tensor:
            ctx.save_for_backward(x, w)
            return x * w

        @staticmethod
        def backward(ctx: object, g: Tensor) -> tuple[Tensor, Tensor]:
            x, w = ctx.saved_tensors
            return g * w, (g * x).sum(dim=0)

    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.randn(6))

        def forward(self, x: Tensor) -> Tensor:
            return Product.apply(x, self.scale)

    return nn.Sequential(nn.Linear(6, 6), Scale(), nn.Linear(6, 3)), x(*ROW)


@wiring()
def complex_weight() -> tuple[nn.Module, Tensor]:
    class Spectral(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 4, dtype=torch.cdouble))

        def forward(self, x: Tensor) -> Tensor:
            return torch.fft.irfft(torch.fft.rfft(x) @ self.weight, n=6)

    return nn.Sequential(Spectral(), nn.Linear(6, 3)), x(*ROW)


# What autograd is told.


@wiring(hooks="body do not reach the logits", vmap=None)
def under_no_grad() -> tuple[nn.Module, Tensor]:
    def wire(m: Wired, x: Tensor) -> Tensor:
        with torch.no_grad():
            h = m.body(x)
        return m.head(h)

    return body_and_head(wire), x(*ROW)


@wiring()
def once_under_no_grad() -> tuple[nn.Module, Tensor]:
    def wire(m: Wired, x: Tensor) -> Tensor:
        h = m.body(x).tanh()
        with torch.no_grad():
            other = m.body(h)
        return m.head(h + other)

    return body_and_head(wire), x(*ROW)


@wiring(hooks="body do not reach the logits", vmap=None)
def detached() -> tuple[nn.Module, Tensor]:
    return body_and_head(lambda m, x: m.head(m.body(x).detach().tanh())), x(*ROW)


@wiring()
def detached_in_part() -> tuple[nn.Module, Tensor]:
    def wire(m: Wired, x: Tensor) -> Tensor:
        h = m.body(x)
        return m.head(h.detach().tanh() + m.other(h))

    return Wired(wire, body=nn.Linear(6, 6), other=nn.Linear(6, 6), head=nn.Linear(6, 3)), x(*ROW)


@wiring()
def straight_through() -> tuple[nn.Module, Tensor]:
    def wire(m: Wired, x: Tensor) -> Tensor:
        h = m.body(x)
        return m.head(h + (h.round() - h).detach())

    return body_and_head(wire), x(*ROW)


def _checkpointed(use_reentrant: bool) -> nn.Module:
    def wire(m: Wired, x: Tensor) -> Tensor:
        return m.head(checkpoint(lambda h: m.body(h).tanh(), m.below(x), use_reentrant=use_reentrant))

    return Wired(wire, below=nn.Linear(6, 6), body=nn.Linear(6, 6), head=nn.Linear(6, 3))


@wiring(vmap=UNMAPPED)
def checkpointed() -> tuple[nn.Module, Tensor]:
    return _checkpointed(use_reentrant=False), x(*ROW)


@wiring(hooks="checkpoint", loop="checkpoint", vmap=UNMAPPED)
def checkpointed_reentrant() -> tuple[nn.Module, Tensor]:
    return _checkpointed(use_reentrant=True), x(*ROW)


@wiring(hooks="random", loop="random", vmap="random")
def dropout_in_eval() -> tuple[nn.Module, Tensor]:
    return body_and_head(lambda m, x: m.head(F.dropout(m.body(x), 0.5, training=True))), x(*ROW)


# Where the batch is.


@wiring(slowly=APART)
def sequence_first_by_coincidence() -> tuple[nn.Module, Tensor]:
    """Once sequence first, once batch first, with as many positions as examples."""
    return body_and_head(lambda m, x: m.head(m.body(m.body(x.mT.mT.transpose(0, 1)).transpose(0, 1)).mean(1))), x(
        *SQUARE
    )


@wiring()
def folded_once() -> tuple[nn.Module, Tensor]:
    def wire(m: Wired, x: Tensor) -> Tensor:
        return m.head((m.body(x).tanh() + m.body(x.reshape(-1, 6)).reshape(x.shape)).mean(dim=1))

    return body_and_head(wire), x(*SEQUENCE)


@wiring()
def two_views_stacked() -> tuple[nn.Module, Tensor]:
    """All first views, then all second views."""

    def wire(m: Wired, x: Tensor) -> Tensor:
        a, b = m.body(torch.cat([x, x.flip(1)])).tanh().chunk(2)
        return m.head(a * b)

    return body_and_head(wire), x(*ROW)


@wiring(slowly=APART)
def rows_sorted() -> tuple[nn.Module, Tensor]:
    """As for packing: a row's gradient is another example's."""

    def wire(m: Wired, x: Tensor) -> Tensor:
        order = x[:, 0].argsort()
        return m.head(m.body(x[order]).tanh()[order.argsort()] + m.body(x))

    return body_and_head(wire), x(*ROW)


@wiring(slowly=APART)
def batch_in_the_second_dimension() -> tuple[nn.Module, Tensor]:
    return body_and_head(lambda m, x: m.head(m.body(x[None]).tanh()[0])), x(*ROW)


@wiring(slowly=APART)
def same_for_all_examples() -> tuple[nn.Module, Tensor]:
    """Relative positions: as many rows as examples, and all of them everybody's."""

    def wire(m: Wired, x: Tensor) -> Tensor:
        apart = torch.arange(4)[:, None] - torch.arange(4) + 3
        return m.head((m.positions(apart)[..., 0].softmax(dim=1) @ x).mean(dim=1))

    return Wired(wire, positions=nn.Embedding(7, 1), head=nn.Linear(6, 3)), x(*SQUARE)


@wiring(slowly=APART)
def generated_weight() -> tuple[nn.Module, Tensor]:
    """A hypernetwork: one row that becomes everybody's weight."""

    def wire(m: Wired, x: Tensor) -> Tensor:
        return m.head((x @ m.body(torch.ones(1, 2, dtype=x.dtype)).mean(dim=0).view(6, 6)).tanh())

    return Wired(wire, body=nn.Linear(2, 36), head=nn.Linear(6, 3)), x(*ROW)


@wiring(hooks=MIXED, loop=MIXES, vmap=MIXES)
def expert_chooses_tokens() -> tuple[nn.Module, Tensor]:
    """A mixture of experts, whose expert takes as many tokens as there are examples."""

    def wire(m: Wired, x: Tensor) -> Tensor:
        rows = x.reshape(-1, 6)
        chosen = rows[:, 0].topk(len(x)).indices
        rows = rows.index_copy(0, chosen, m.body(rows[chosen]))
        return m.head(rows.reshape(x.shape).tanh().mean(dim=1))

    return body_and_head(wire), x(*SQUARE)


@wiring(vmap=UNMAPPED)
def tokens_routed() -> tuple[nn.Module, Tensor]:
    """Each token goes to one of two experts, and each happens to get a multiple of four; the last example two of each."""

    def wire(m: Wired, x: Tensor) -> Tensor:
        rows = x.reshape(-1, 6)
        first = rows[:, 0] > 0
        out = torch.zeros_like(rows)
        out[first], out[~first] = m.body(rows[first]), m.other(rows[~first])
        return m.head(out.reshape(x.shape).tanh().mean(dim=1))

    batch = x(*SQUARE)
    goes_first = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0]])
    batch[:, :, 0] = batch[:, :, 0].abs() * (2 * goes_first - 1)
    return Wired(wire, body=nn.Linear(6, 6), other=nn.Linear(6, 6), head=nn.Linear(6, 3)), batch


@wiring(hooks=MIXED, loop=MIXES, vmap=MIXES)
def batch_statistics() -> tuple[nn.Module, Tensor]:
    def wire(m: Wired, x: Tensor) -> Tensor:
        h = m.body(x)
        return m.head((h - h.mean(dim=0)).tanh())

    return body_and_head(wire), x(*ROW)


@wiring(hooks=MIXED, loop=MIXES, vmap=MIXES)
def attention_between_examples() -> tuple[nn.Module, Tensor]:
    def wire(m: Wired, x: Tensor) -> Tensor:
        h = m.body(x)
        return m.head((h @ h.T).softmax(dim=1) @ h)

    return body_and_head(wire), x(*ROW)


@wiring(vmap=UNMAPPED)
def recurrent_sequence_first() -> tuple[nn.Module, Tensor]:
    def wire(m: Wired, x: Tensor) -> Tensor:
        out, h = m.body(x.transpose(0, 1))
        return m.head(out.mean(dim=0) + h[1])

    return Wired(wire, body=nn.GRU(6, 5, num_layers=2), head=nn.Linear(5, 3)), x(*SQUARE)


@wiring()
def recurrent_with_a_state() -> tuple[nn.Module, Tensor]:
    """Two layers and two examples: the state's first dimension is as long as the batch."""

    def wire(m: Wired, x: Tensor) -> Tensor:
        state = torch.stack([x[:, 0, :5], x[:, 1, :5]])
        out, (h, c) = m.body(x, (state, state.sin()))
        return m.head(out.mean(dim=1) + h[0] + c[1])

    return Wired(wire, body=nn.LSTM(6, 5, num_layers=2, batch_first=True), head=nn.Linear(5, 3)), x(2, 4, 6)


@wiring(vmap=UNMAPPED, slowly="reads a PackedSequence")
def recurrent_packed() -> tuple[nn.Module, Tensor]:
    def wire(m: Wired, x: Tensor) -> Tensor:
        lengths = 2 + (x[:, 0, 0] > 0).long()
        _, h = m.body(rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))
        return m.head(h[0])

    return Wired(wire, body=nn.GRU(6, 5, batch_first=True), head=nn.Linear(5, 3)), x(*SEQUENCE)


def _attention(**options: object) -> nn.Module:
    first = options.get("batch_first", False)

    def wire(m: Wired, x: Tensor) -> Tensor:
        q = x if first else x.transpose(0, 1)
        mask = torch.triu(torch.ones(x.shape[1], x.shape[1], dtype=torch.bool), diagonal=1)
        out, weights = m.body(q, q.sin(), q.cos(), attn_mask=mask, key_padding_mask=x[:, :, 0] > 2)
        return m.head((out if first else out.transpose(0, 1)).mean(dim=1)) + weights.amax(dim=(1, 2))[:, None]

    return Wired(wire, body=nn.MultiheadAttention(6, 2, **options), head=nn.Linear(6, 3))


@wiring()
def attention() -> tuple[nn.Module, Tensor]:
    """As many positions as examples: neither its causal mask nor its positions may be taken for the batch."""
    return _attention(batch_first=True), x(*SQUARE)


@wiring()
def attention_sequence_first() -> tuple[nn.Module, Tensor]:
    return _attention(add_bias_kv=True, kdim=6, vdim=6), x(*SQUARE)


def _encoder(frozen: bool, **options: object) -> nn.Module:
    first = options.get("batch_first", False)

    def wire(m: Wired, x: Tensor) -> Tensor:
        q, padding = x if first else x.transpose(0, 1), torch.arange(x.shape[1]) > 1 + (x[:, :1, 0] > 0)
        out = m.body(q, src_key_padding_mask=padding)
        return m.head((out if first else out.transpose(0, 1))[:, :2].mean(dim=1))

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="enable_nested_tensor is True, but")
        body = nn.TransformerEncoder(nn.TransformerEncoderLayer(6, 2, 8, **options), 2)
    return Wired(wire, body=body, head=nn.Linear(6, 3)).requires_grad_(not frozen)


@wiring()
def transformer_encoder() -> tuple[nn.Module, Tensor]:
    return _encoder(frozen=False, batch_first=True), x(*SEQUENCE)


@wiring()
def transformer_encoder_frozen() -> tuple[nn.Module, Tensor]:
    """In evaluation mode, without gradients, torch goes another way: nested tensors, in one fused kernel."""
    return _encoder(frozen=True, batch_first=True), x(*SEQUENCE)


@wiring()
def transformer_encoder_sequence_first() -> tuple[nn.Module, Tensor]:
    return _encoder(frozen=False), x(*SEQUENCE)


@wiring()
def transformer_decoder() -> tuple[nn.Module, Tensor]:
    body = nn.TransformerDecoderLayer(6, 2, 8, batch_first=True)
    return Wired(lambda m, x: m.head(m.body(x, x.flip(1)).mean(dim=1)), body=body, head=nn.Linear(6, 3)), x(*SEQUENCE)


# Kinds that no rule covers.


@wiring()
def embedding_bag() -> tuple[nn.Module, Tensor]:
    return nn.Sequential(nn.EmbeddingBag(9, 6), nn.Tanh(), nn.Linear(6, 3)), torch.randint(9, (5, 7))


@wiring(slowly="cannot be run with one example alone|another output for an example alone")
def embedding_bag_with_offsets() -> tuple[nn.Module, Tensor]:
    model = Wired(
        lambda m, x: m.head(m.body(x.flatten(), torch.arange(0, x.numel(), x.shape[1]))),
        body=nn.EmbeddingBag(9, 6),
        head=nn.Linear(6, 3),
    )
    return model, torch.randint(9, (5, 7))


@wiring()
def rare_kinds() -> tuple[nn.Module, Tensor]:
    def wire(m: Wired, x: Tensor) -> Tensor:
        h = m.instance_norm(m.transposed(x))
        return m.bilinear(m.prelu(h).mean(dim=(2, 3)), h.amax(dim=(2, 3)))

    model = Wired(
        wire,
        transposed=nn.ConvTranspose2d(2, 4, 3, stride=2, groups=2),
        instance_norm=nn.InstanceNorm2d(4, affine=True),
        prelu=nn.PReLU(4),
        bilinear=nn.Bilinear(4, 4, 3),
    )
    return model, x(5, 2, 4, 4)


@wiring()
def volumes() -> tuple[nn.Module, Tensor]:
    model = nn.Sequential(nn.Conv3d(2, 4, 2), nn.BatchNorm3d(4), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 3))
    return model, x(5, 2, 3, 3, 3)
