"""Right, or refused by name: never silently wrong."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from oracle import cast, per_example_trace
from torch import Tensor, nn
from transformers import BertConfig, BertModel
from wirings import APART, MIXED, WIRINGS, body_and_head
from zoo import SMALL, tokens

from fisherdyn import fisher_trace, fit, policies
from fisherdyn.fisher import batches, check
from fisherdyn.likelihoods import Categorical
from fisherdyn.settings import Measurement, Optimization


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # checkpointing, under no_grad
@pytest.mark.parametrize("method", ["hooks", "loop", "vmap"])
@pytest.mark.parametrize("name", WIRINGS)
def test_right_or_refused(name, method):
    wiring = WIRINGS[name]
    torch.manual_seed(0)
    model, x = wiring.make()
    model, x = model.double().eval(), cast(x, torch.float64)
    layers = {parameter: (parameter,) for parameter, _ in model.named_parameters()}
    refusal = getattr(wiring, method)
    slowly = pytest.warns(UserWarning, match=wiring.slowly) if method == "hooks" and wiring.slowly else nullcontext()
    if refusal is not None:
        with pytest.raises(ValueError, match=refusal), slowly:
            fisher_trace(model, [x], layers=layers, labels="exact", method=method)
        return
    truth = per_example_trace(copy.deepcopy(model), x, layers)
    zeros = pytest.warns(match="exactly 0") if (truth == 0).all(dim=0).any() else nullcontext()
    with slowly, zeros:
        found = fisher_trace(model, [x], layers=layers, labels="exact", method=method)
    torch.testing.assert_close(found.values, truth, rtol=1e-9, atol=1e-14)


class MeanPooled(nn.Module):
    """A head on the mean over all positions, padding included: careless, common, and a function of the padding."""

    def __init__(self) -> None:
        super().__init__()
        self.config = BertConfig(vocab_size=30, attn_implementation="eager", **SMALL)
        self.bert, self.head = BertModel(self.config, add_pooling_layer=False), nn.Linear(16, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.head(self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state.mean(dim=1))


@pytest.mark.parametrize("method", ["hooks", "vmap"])
def test_padding_that_counts_is_not_cut(method):
    torch.manual_seed(0)
    model = MeanPooled().double().eval()
    x = {key: torch.cat([v, v.new_zeros(len(v), 5)], dim=1) for key, v in tokens().items()}
    layers = {"head": ("head.weight",)}
    found = fisher_trace(model, [x], layers=layers, labels="exact", method=method, likelihood="categorical")
    torch.testing.assert_close(found.values, per_example_trace(model, x, layers), rtol=1e-9, atol=0.0)


@pytest.mark.parametrize("labels", ["argmax", "rademacher"])
def test_a_certain_example_proves_nothing(labels):
    """The last example is so certain that its gradient is 0; the others' would be wrong all the same."""
    torch.manual_seed(0)
    model = body_and_head(lambda m, x: m.head(nn.functional.linear(m.body(x), m.body.weight)))
    x = torch.randn(5, 6)
    x[-1] *= 1e4
    with pytest.warns(UserWarning, match=rf"body: {APART}"):
        fisher_trace(model, [x], layers={"body": ("body.weight",)}, labels=labels)


# When two examples are compared with plain autograd

LAYERS = {name: (f"{name}.weight", f"{name}.bias") for name in ("0", "2")}


@pytest.fixture
def compared(monkeypatch):
    """Grows by one for every example whose gradient is taken alone."""
    made, plain = [], check.run_alone
    monkeypatch.setattr(check, "run_alone", lambda *args: made.append(1) or plain(*args))
    return made


def _small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3)), torch.randn(8, 6)


@pytest.mark.parametrize(("when", "examples"), [("first", 2), ("always", 6), ("never", 0)])
def test_check_says_which_batches_are_compared(compared, monkeypatch, when, examples):
    """In every measurement alike: it does not matter what was measured before."""
    monkeypatch.setattr(batches, "JOINED_WORK", 0)
    model, x = _small()
    for _ in range(3):
        compared.clear()
        trace = fisher_trace(model, [x, x, x], layers=LAYERS, check=when)
        assert len(compared) == examples
        assert trace.compared == (tuple(LAYERS) if examples else ())


def test_a_model_that_trains_is_compared_again_ever_more_rarely():
    assert [n for n in range(1, 18) if check.check_of_repeat(n) != "never"] == [1, 2, 4, 8, 16]
    assert [check.check_of_repeat(n) for n in (1, 2, 4)] == ["first", "brief", "brief"]


def test_modules_that_are_called_otherwise_are_compared_too(compared):
    """A batch of one example after batches of several: rows of one may be shared by all."""
    model, x = _small()
    fisher_trace(model, [x, x, x[:1], x[:1]], layers=LAYERS)
    assert len(compared) == 3


def test_an_unknown_check_is_refused():
    model, x = _small()
    with pytest.raises(ValueError, match="unknown check='second': choose one of first, brief, always, never"):
        fisher_trace(model, [x], check="second")


def test_methods_that_differentiate_the_weights_themselves_need_no_check(compared):
    model, x = _small()
    for method in ("vmap", "batch"):
        assert fisher_trace(model, [x], layers=LAYERS, method=method, check="always").compared == ()
    assert not compared


def test_a_right_model_in_half_precision_is_not_refused_for_its_rounding():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(16, 32), nn.GELU(), nn.LayerNorm(32), nn.Linear(32, 16), nn.Tanh(), nn.Linear(16, 3)
    )
    model = model.bfloat16()
    for seed in range(200):
        x = torch.randn(8, 16, generator=torch.Generator().manual_seed(seed)).bfloat16()
        assert len(fisher_trace(model, [x], check="always").compared) == 4


def test_a_gate_that_training_opens_is_found_in_fit():
    """By an optimizer that does not count its updates (fused AdamW)."""
    torch.manual_seed(0)

    class Trained(Gated):
        def forward(self, x: Tensor, labels: Tensor | None = None) -> SimpleNamespace:
            logits = super().forward(x)
            loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
            return SimpleNamespace(logits=logits, loss=loss)

    data = [{"x": torch.randn(8, 6), "labels": torch.randint(3, (8,))} for _ in range(3)]
    layers = {name: (f"{name}.weight",) for name in ("body", "head")}
    how = {"policy": policies.all_at_once(), "layers": layers, "interval": 1}
    how |= {"optimization": Optimization(steps=40, lr=5e-2), "measurement": Measurement(loader=data, every=1)}
    with pytest.raises(ValueError, match=MIXED):
        fit(Trained(), data, **how)


class Adapter(nn.Module):
    """Its lower half is used outside its call too, and has no gradient until the upper half is no longer zero."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up, self.head = nn.Linear(6, 4), nn.Linear(4, 6), nn.Linear(6, 3)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        z = self.down(x) + nn.functional.linear(x.relu(), self.down.weight)
        return self.head(x + self.up(z.tanh()))


def test_a_gradient_of_zero_proves_nothing():
    torch.manual_seed(0)
    model, x = Adapter(), torch.randn(8, 6)
    layers = {name: (f"{name}.weight",) for name in ("down", "up", "head")}
    for _ in range(3):
        with pytest.warns(match=r"layer\(s\) down: tr\(F\) is exactly 0"):
            trace = fisher_trace(model, [x], layers=layers)
        assert trace.trace[0] == 0
        assert trace.compared == ("up", "head")
        with torch.no_grad():
            model.head.weight.mul_(1.1)
    with torch.no_grad():
        model.up.weight.normal_()
    with pytest.warns(UserWarning, match=rf"layer\(s\) down: {APART}"):
        fisher_trace(model, [x], layers=layers)


def test_what_drowns_in_a_large_layers_rounding_was_not_compared():
    torch.manual_seed(0)

    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.small, self.head = nn.Linear(6, 6, bias=False), nn.Linear(6, 3, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            z = self.small(x) + nn.functional.linear(x.flip(-1), self.small.weight)
            return self.head(x + 0.03 * z.tanh())

    model, x = Small().bfloat16(), torch.randn(8, 6, dtype=torch.bfloat16)
    small, head = ({name: (f"{name}.weight",)} for name in ("small", "head"))
    fisher_trace(model, [x], layers=small | head)
    with pytest.warns(UserWarning, match=rf"layer\(s\) small: {APART}"):
        fisher_trace(model, [x], layers=small)


class Gated(nn.Module):
    """Mixes examples as soon as its gate opens (ReZero), or its middle is another one."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.mid, self.head = nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3)
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        h = self.mid(self.body(x))
        return self.head(h + self.gate * (h - h.mean(dim=0)))


class Centred(nn.Module):
    def forward(self, h: Tensor) -> Tensor:
        return h - 0.9 * h.mean(dim=0)


def test_a_gate_that_opens_and_a_module_that_is_replaced_are_found():
    layers = {name: (f"{name}.weight",) for name in ("body", "head")}
    for change in ("gate", "module"):
        torch.manual_seed(0)
        model, x = Gated(), torch.randn(8, 6)
        fisher_trace(model, [x], layers=layers)
        if change == "gate":
            with torch.no_grad():
                model.gate.fill_(2.0)
        else:
            model.mid = Centred()
        with pytest.raises(ValueError, match=MIXED):
            fisher_trace(model, [x], layers=layers)


def test_another_likelihood_may_read_another_output():
    class Second(Categorical):
        def outputs(self, output):
            return output[1]

    torch.manual_seed(0)
    model, x = Mixed(), torch.randn(8, 6)
    layers = {name: (f"{name}.weight",) for name in ("body", "head")}
    fisher_trace(model, [x], layers=layers)
    with pytest.raises(ValueError, match=MIXED):
        fisher_trace(model, [x], layers=layers, likelihood=Second())


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.body(x).tanh()
        return self.head(h), self.head(h - h.mean(dim=0))


def test_a_disagreement_after_other_batches_is_an_error():
    """What was measured before may be wrong: there is no going on with it."""
    torch.manual_seed(0)

    class SortsLargeBatches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            if len(x) < 8:
                return self.head(self.body(x).tanh())
            order = x[:, 0].argsort()
            return self.head(self.body(x[order]).tanh()[order.argsort()])

    model, x = SortsLargeBatches(), torch.randn(8, 6)
    layers = {"body": ("body.weight",)}
    with pytest.raises(ValueError, match=rf"{APART}.*method=.loop"):
        fisher_trace(model, [x[:4], x], layers=layers, check="always")
    found = fisher_trace(model, [x[:4], x], layers=layers, labels="exact", method="loop")
    torch.testing.assert_close(found.values[4:], per_example_trace(model, x, layers), rtol=1e-4, atol=0.0)


def test_a_fallback_leaves_nothing_compared():
    """A recorder then checks again at its next record, and falls back again."""
    torch.manual_seed(0)
    model = body_and_head(lambda m, x: m.head(nn.functional.linear(m.body(x), m.body.weight)))
    x, layers = torch.randn(5, 6), {"body": ("body.weight",)}
    with pytest.warns(UserWarning, match=APART):
        found = fisher_trace(model, [x, x[:4]], layers=layers)
    assert found.compared == ()
    by_loop = fisher_trace(model, [x, x[:4]], layers=layers, method="loop")
    torch.testing.assert_close(found.values, by_loop.values, rtol=0.0, atol=0.0)
