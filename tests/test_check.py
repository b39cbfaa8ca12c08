"""The check finds what a batch changes about an example, and refuses nothing that is right."""

from __future__ import annotations

import threading

import pytest
import torch
from oracle import per_example_trace
from torch import Tensor, nn
from torch.nn import functional as F

from fisherdyn import fisher_trace
from fisherdyn.fisher import batches

MIXED = "has other logits than in its batch"


class EarlyExit(nn.Module):
    """The whole batch leaves early where all of it is confident."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.exit = nn.Linear(6, 6), nn.Linear(6, 3)
        self.more, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x).tanh()
        early, late = self.exit(h), self.head(self.more(h).tanh())
        return early + 0 * late if early.softmax(dim=1).amax(dim=1).min() > 0.42 else late + 0 * early


class Capacity(nn.Module):
    """Each of two experts takes 1.25 times its share of the batch's tokens; those beyond pass by."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.one, self.other, self.head = (nn.Linear(6, n) for n in (2, 6, 6, 3))

    def forward(self, x: Tensor) -> Tensor:
        p = self.gate(x).softmax(dim=2)
        chosen, capacity, out = p.argmax(dim=2).flatten(), int(1.25 * x[..., 0].numel() / 2), x
        for number, expert in enumerate((self.one, self.other)):
            mine = chosen == number
            kept = (mine & (mine.cumsum(dim=0) <= capacity)).reshape(x.shape[:2])
            out = out + (kept * p[..., number])[..., None] * expert(x)
        return self.head(out.tanh().mean(dim=1))


class Trimmed(nn.Module):
    """The mean over positions, up to the end of the longest example; padding is zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        longest = int((x[..., 0] != 0).sum(dim=1).max())
        return self.head(self.body(x[:, :longest]).tanh().mean(dim=1))


def faulty(kind: type[nn.Module], seed: int) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(seed)
    examples = int(torch.randint(2, 17, ()))
    x = torch.randn(examples, 6) if kind is EarlyExit else torch.randn(examples, 6, 6)
    if kind is Trimmed:
        x = x * (torch.arange(6) < torch.randint(1, 7, (examples, 1)))[..., None]
    return kind().double(), x.double()


def by_parameter(model: nn.Module) -> dict[str, tuple[str]]:
    return {name: (name,) for name, _ in model.named_parameters()}


@pytest.mark.parametrize("kind", [EarlyExit, Capacity, Trimmed])
def test_a_batch_that_changes_its_examples_is_refused(kind):
    """Of 12 random batches, those are refused whose logits depend on the batch, and no other; unchecked, one is wrong."""
    refused = []
    for seed in range(12):
        model, x = faulty(kind, seed)
        alone = torch.cat([model(one) for one in x.split(1)])
        if torch.allclose(model(x), alone, rtol=1e-9):
            fisher_trace(model, [x], layers={"head": ("head.weight",)})
            continue
        with pytest.raises(ValueError, match=MIXED):
            fisher_trace(model, [x])
        refused.append((model, x))
    assert len(refused) > 2
    model, x = refused[0]
    layers = {"head": ("head.weight",)}
    unchecked = fisher_trace(model, [x], layers=layers, labels="exact", check="never").values
    assert not torch.allclose(unchecked, per_example_trace(model, x, layers), rtol=1e-3)


@pytest.mark.parametrize("kind", [EarlyExit, Capacity, Trimmed])
def test_in_batches_of_one_there_is_nothing_to_mix(kind):
    """The remedy of the refusal."""
    model, x = faulty(kind, seed=3)
    layers = {name: (f"{name}.weight",) for name in ("body", "one", "head") if hasattr(model, name)}
    found = fisher_trace(model, x.split(1), layers=layers, labels="exact")
    torch.testing.assert_close(found.values, per_example_trace(model, x, layers), rtol=1e-9, atol=1e-12)


def test_of_a_large_batch_some_examples_are_run_alone(monkeypatch):
    """At most 32, spread evenly over it, and once a measurement."""
    monkeypatch.setattr(batches, "JOINED_WORK", 0)
    sizes: list[int] = []
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))
    model.register_forward_hook(lambda module, args, output: sizes.append(len(output)))
    fisher_trace(model, [torch.randn(100, 6)] * 3)
    assert sizes.count(1) == 32 + 2  # and two for gradients
    assert sizes.count(100) == 3
    sizes.clear()
    fisher_trace(model, [torch.randn(100, 6)], check="brief")
    assert sizes.count(1) == 4 + 2


class Grouped(nn.Module):
    """Centres the examples of a group, where groups are given."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor, group: Tensor | None = None) -> Tensor:
        h = self.body(x).tanh()
        return self.head(h if group is None else h - F.one_hot(group).to(h).mT[group] @ h / len(h))


def test_a_batch_with_other_keys_is_checked_too():
    torch.manual_seed(0)
    plain = {"x": torch.randn(8, 6)}
    loader = [plain, plain, {**plain, "group": torch.arange(8) % 2}]
    fisher_trace(Grouped(), loader[:2])
    with pytest.raises(ValueError, match=MIXED):
        fisher_trace(Grouped(), loader)


@pytest.mark.parametrize(
    "hook",
    [
        lambda g: g.clamp(-0.05, 0.05),
        lambda g: g / g.norm(),
        lambda g: g.relu(),
        lambda g: torch.where(g.abs() > 0.1, 2 * g, g),
    ],
    ids=["clamp", "normalise", "relu", "thresholds"],
)
def test_a_backward_hook_that_is_not_linear_is_refused(hook):
    torch.manual_seed(0)
    body, head = nn.Linear(6, 6), nn.Linear(6, 3)

    class Model(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            h = body(x).tanh()
            if h.requires_grad:
                h.register_hook(hook)
            return head(h)

    model, x = Model(body, head).double(), torch.randn(8, 6).double()
    with pytest.raises(ValueError, match="4 times the gradient at the logits does not give"):
        fisher_trace(model, [x], labels="exact")
    hook = torch.neg  # linear: a gradient that is reversed, as in domain adaptation
    fisher_trace(model, [x], labels="exact")
    hook = torch.clone  # the remedy: as if it were taken off
    layers = {"body": ("0.weight", "0.bias"), "head": ("1.weight", "1.bias")}
    truth = per_example_trace(nn.Sequential(body, nn.Tanh(), head), x, {**layers, "head": ("2.weight", "2.bias")})
    torch.testing.assert_close(fisher_trace(model, [x], layers=layers, labels="exact").values, truth, rtol=1e-9, atol=0)


class Drawing(nn.Module):
    """Draws as layerdrop does, and heeds it in training alone; another thread draws too."""

    def __init__(self, noise: float) -> None:
        super().__init__()
        self.body, self.head, self.noise = nn.Linear(6, 6), nn.Linear(6, 3), noise

    def forward(self, x: Tensor) -> Tensor:
        drop = torch.rand([]) < 0.5
        thread = threading.Thread(target=torch.rand, args=(3,))
        thread.start()
        thread.join()
        h = self.body(x).tanh()
        return self.head(x if self.training and drop else h + self.noise * torch.randn_like(h))


def test_what_is_drawn_and_discarded_does_not_count():
    torch.manual_seed(0)
    x, model = torch.randn(8, 6).double(), Drawing(noise=0.0).double()
    found = fisher_trace(model, [x], layers=by_parameter(model), labels="exact")
    truth = per_example_trace(model, x, by_parameter(model))
    torch.testing.assert_close(found.values, truth, rtol=1e-9, atol=0.0)
    with pytest.raises(ValueError, match="draws random numbers in evaluation mode"):
        fisher_trace(Drawing(noise=0.1), [x.float()])


class LastPositionElsewhere(nn.Module):
    """A tagger that reads a weight outside its module's call, where positions count: not at the last."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        elsewhere = F.linear(x, self.body.weight) * attention_mask[..., None]
        return self.head((self.body(x) + elsewhere).tanh())


@pytest.mark.parametrize("labels", ["exact", "rademacher"])
def test_the_cotangent_that_gives_most_is_compared(labels):
    """With exact labels the last one is of the last position, which does not count: its norms are 0, whatever is wrong."""
    torch.manual_seed(0)
    x, mask = torch.randn(4, 3, 6), torch.tensor([[1, 1, 0]] * 4)
    batch = {"x": x, "attention_mask": mask}
    model = LastPositionElsewhere()
    how = {"layers": by_parameter(model), "labels": labels, "likelihood": "token"}
    with pytest.warns(UserWarning, match=r"one example alone has another gradient.*a rule of your own is wrong"):
        by_hooks = fisher_trace(model, [batch], **how)
    torch.testing.assert_close(by_hooks.trace, fisher_trace(model, [batch], method="loop", **how).trace)
    trace = fisher_trace(model, [batch], layers={"head": ("head.weight",)}, labels=labels, likelihood="token")
    assert trace.compared == ("head",)
