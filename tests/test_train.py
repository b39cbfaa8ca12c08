"""fit(): what Algorithm 1 promises, on a small model whose every step can be followed."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

from fisherdyn import fit, policies


class Tiny(nn.Module):
    """Four layers and a head that answers like a HF model."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.ModuleList(nn.Linear(5, 5) for _ in range(4))
        self.head = nn.Linear(5, 3)

    def forward(self, x, labels=None):
        for layer in self.body:
            x = x + torch.tanh(layer(x))
        logits = self.head(x)
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return SimpleNamespace(logits=logits, loss=loss)


LAYERS = {str(i): (f"body.{i}.weight", f"body.{i}.bias") for i in range(4)}


@pytest.fixture
def data():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(48, 5, generator=g)
    y = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
    return [{"x": a, "labels": b} for a, b in zip(x.split(8), y.split(8), strict=True)]


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Tiny()


def run(model, data, policy=None, **changes):
    probed = {} if "probe_loader" in changes else {"probe_loader": data[:2]}
    options = {**probed, "interval": 4, "steps": 20, "lr": 1e-2, "record_every": 5, "layers": LAYERS}
    return fit(model, data, policy=policy or policies.top_down(), **{**options, **changes})


def test_record(model, data):
    ds = run(model, data, evaluate_source=lambda m: 0.5, evaluate={"a": lambda m: 0.25}, evaluate_every=10)
    assert dict(ds.sizes) == {"step": 5, "layer": 4, "eval_step": 2, "target": 1}
    assert ds["step"].values.tolist() == [0, 5, 10, 15, 20]
    assert ds["trainable"].values.tolist() == [[0, 0, 0, 1], [0, 0, 1, 1], [0, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]]
    assert ds["selected"].values.tolist() == [12, 8, 4, 0]
    assert (ds["fisher_trace"] > 0).all()
    assert (ds["fisher_trace_se"] > 0).all()
    assert np.isnan(ds["train_loss"].values).tolist() == [True, False, False, False, False]
    assert {"estimator", "likelihood", "policy", "seed", "revision", "packages"} <= set(ds.attrs)
    assert all({"long_name", "units"} <= set(v.attrs) for v in ds.variables.values())


def test_frozen_layers_do_not_move_by_a_bit_until_they_open(model, data):
    before = copy.deepcopy(model.state_dict())
    run(model, data, steps=8)  # layer 2 opens at 4; layer 1 would at 8
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for layer in "01" for name in LAYERS[layer])
    assert all(not torch.equal(before[name], after[name]) for layer in "23" for name in LAYERS[layer])
    assert not torch.equal(before["head.weight"], after["head.weight"])


def test_standard_is_plain_training(model, data):
    """Recording and scheduling change nothing: bit for bit the loop that anyone would write."""
    plain = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-2, weight_decay=0.01, fused=True)
    for step in range(20):
        loss = plain(**data[step % 6]).loss
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()
    state = torch.get_rng_state()
    run(model, data, policies.all_at_once())
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), model.parameters(), strict=True))
    assert torch.equal(torch.get_rng_state(), state)


def test_adam_starts_when_a_layer_opens(model, data):
    """The first update of a layer that opens at step 4 is AdamW's first: of size lr (1 + decay), not of a later step."""
    before = copy.deepcopy(model.state_dict()["body.2.weight"])
    run(model, data, steps=5, weight_decay=0.0)
    moved = (model.state_dict()["body.2.weight"] - before).abs()
    torch.testing.assert_close(moved, torch.full_like(moved, 1e-2), rtol=1e-3, atol=0.0)


@pytest.mark.parametrize("name", policies.NAMED)
def test_every_policy_trains_and_repeats(model, data, name):
    twin = copy.deepcopy(model)
    a, b = (run(m, data, policies.NAMED[name]()) for m in (model, twin))
    xr.testing.assert_identical(a, b)
    assert a["train_loss"][-1] < a["train_loss"][1]


@pytest.mark.parametrize("policy", [policies.random_order, policies.fun])
@pytest.mark.parametrize("seed", range(4))
def test_recording_more_often_changes_no_choice(model, data, policy, seed):
    twin = copy.deepcopy(model)
    pairs = ((model, 20), (twin, 1))
    rarely, often = (run(m, data, policy(), record_every=n, labels="sampled", seed=seed) for m, n in pairs)
    assert rarely["selected"].values.tolist() == often["selected"].values.tolist()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_fun_opens_the_largest_trace(model, data):
    """The choices are those that the recorded traces, taken at the same steps, call for."""
    ds = run(model, data, policies.fun(), labels="exact", record_every=4)
    for step, layer in sorted(zip(ds["selected"].values, ds["layer"].values, strict=True))[1:]:
        now = ds.sel(step=step)
        frozen = ds["layer"].values[(ds.sel(step=step - 4)["trainable"] == 0).values]
        assert layer == max(frozen, key=lambda name: float(now["fisher_trace"].sel(layer=name)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps of at least 1, got 0"),
        ({"record_every": 0}, "record_every of at least 1"),
        ({"interval": 0}, "interval of at least 1"),
        ({"lr": 1e30}, "training loss is (nan|inf) at step [0-9]+: lower lr|not finite"),
        ({"layers": {"a": ("body.9.weight",)}}, "no parameter 'body.9.weight'"),
        ({"probe_loader": []}, "gave no batch"),
    ],
)
def test_bad_input(model, data, changes, message):
    with pytest.raises(ValueError, match=message):
        run(model, data, **changes)


def test_a_loader_that_is_used_up(model, data):
    with pytest.raises(ValueError, match="train_loader gave no batch"):
        run(model, iter(data), probe_loader=data[:2])
