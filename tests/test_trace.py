"""tr(F) against the float64 loop, hooks against vmap, statistics with a negative control, and the probe's silence."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
from oracle import class_gradients, per_example_trace, snapshot
from torch import nn
from zoo import ZOO, Repeated, specimen

from fisherdyn import fisher_trace, probe
from fisherdyn.layers import resolve_layers


@pytest.mark.parametrize("method", ["hooks", "vmap"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@pytest.mark.parametrize("name", ZOO)
def test_exact_is_the_oracle(name, dtype, tolerance, method):
    it = specimen(name)
    layers = resolve_layers(it.model, it.layers)
    truth = per_example_trace(it.model, it.inputs, layers)
    model = copy.deepcopy(it.model).to(dtype)
    loader = [x.to(dtype) if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in it.loader]
    found = fisher_trace(model, loader, layers=layers, labels="exact", method=method)
    assert truth.min() > 0
    torch.testing.assert_close(found.per_example, truth, rtol=tolerance, atol=0.0)
    torch.testing.assert_close(found.trace, truth.mean(dim=0), rtol=tolerance, atol=0.0)
    standard_error = truth.std(dim=0) / len(truth) ** 0.5
    torch.testing.assert_close(found.se, standard_error, rtol=1e-3, atol=0.0)


@pytest.mark.parametrize("labels", ["class_mix", "sampled"])
@pytest.mark.parametrize("name", ZOO)
def test_hooks_and_vmap_agree_label_by_label(name, labels):
    it = specimen(name)
    model = it.model.double()
    loader = [x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in it.loader]
    hooks, vmap = (
        fisher_trace(
            model, loader, layers=it.layers, labels=labels, method=method, generator=torch.Generator().manual_seed(5)
        )
        for method in ("hooks", "vmap")
    )
    torch.testing.assert_close(hooks.per_example, vmap.per_example, rtol=1e-9, atol=0.0)


def _confident() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 4))
    with torch.no_grad():
        model[2].weight.mul_(4)
    return model.double(), torch.randn(8, 5).double()


@pytest.mark.parametrize("labels", ["class_mix", "sampled"])
def test_unbiased_over_labels(labels):
    """The mean of 2,000 estimates is within 4 of its own standard errors of the exact value, in each layer."""
    model, x = _confident()
    truth = fisher_trace(model, [x], labels="exact").trace
    pool = [x.repeat(250, 1)] * 8
    found = fisher_trace(model, pool, labels=labels, generator=torch.Generator().manual_seed(0))
    # The eight inputs are the same each time: only label noise is left, so the error is that of the mean over repeats.
    repeats = found.per_example.reshape(2000, 8, -1).mean(dim=1)
    error = repeats.std(dim=0) / 2000**0.5
    assert ((repeats.mean(dim=0) - truth).abs() < 4 * error).all()


@pytest.mark.parametrize("wrong", ["argmax", "empirical"])
def test_wrong_labels_fail_the_same_test(wrong):
    """Negative control: what the authors' code computes, and the empirical Fisher, are caught by the test above."""
    model, x = _confident()
    norms, p = class_gradients(model, x, resolve_layers(model))
    truth = (p[..., None] * norms).sum(dim=1).mean(dim=0)
    y = p.argmax(dim=1) if wrong == "argmax" else torch.arange(8) % 4
    estimate = norms[torch.arange(8), y].mean(dim=0)
    sampled = fisher_trace(model, [x.repeat(250, 1)] * 8, labels="sampled")
    error = sampled.per_example.reshape(2000, 8, -1).mean(dim=1).std(dim=0) / 2000**0.5
    assert ((estimate - truth).abs() > 4 * error).all()


def test_class_mix_is_exact_for_two_classes():
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    x = torch.randn(9, 4).double()
    exact, mixed = (fisher_trace(model, [x], labels=labels) for labels in ("exact", "class_mix"))
    torch.testing.assert_close(mixed.per_example, exact.per_example, rtol=1e-10, atol=0.0)


def test_interval_covers():
    """95 % intervals at n = 64 inputs cover the value of the whole population in 93 to 97 % of 1,000 repeats."""
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    population = torch.randn(20_000, 3).double()
    truth = fisher_trace(model, list(population.split(5000)), labels="exact").trace
    g = torch.Generator().manual_seed(4)
    covered = torch.zeros(2)
    for _ in range(1000):
        x = population[torch.randint(len(population), (64,), generator=g)]
        found = fisher_trace(model, [x], generator=g)
        covered += ((found.trace - truth).abs() < 2.0 * found.se).float()  # t quantile at 63 degrees: 1.998
    assert ((covered / 1000 > 0.93) & (covered / 1000 < 0.97)).all(), covered


def test_tokens_are_not_samples():
    """The mistake of others: squaring before summing over tokens or calls. Here it would miss the cross terms."""
    it = specimen("repeated")
    layers = resolve_layers(it.model, None)
    model = copy.deepcopy(it.model)
    assert isinstance(model, Repeated)
    truth = per_example_trace(model, it.inputs, layers).mean(dim=0)
    once = fisher_trace(model, it.loader, labels="exact").trace
    torch.testing.assert_close(once, truth, rtol=1e-4, atol=0.0)


def test_softmax_regression_closed_form():
    """tr F = E[(1 - sum p^2) (||x||^2 + 1)] for a linear classifier with bias."""
    model, x = nn.Linear(6, 5).double(), torch.randn(40, 6).double()
    p = model(x).softmax(dim=1)
    truth = ((1 - p.square().sum(dim=1)) * (x.square().sum(dim=1) + 1)).mean()
    found = fisher_trace(model, [x], labels="exact", layers={"all": ("weight", "bias")})
    torch.testing.assert_close(found.trace[0], truth.detach(), rtol=1e-10, atol=0.0)


def test_is_the_curvature_of_kl():
    """KL(p_w || p_{w+e}) ~ e^T F e / 2: averaged over random directions, tr(F) eps^2 / 2."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double(), torch.randn(10, 3).double()
    log_p = model(x).log_softmax(dim=1).detach()
    trace = float(fisher_trace(model, [x], labels="exact").trace.sum())
    g, eps, kls = torch.Generator().manual_seed(0), 1e-3, []
    for _ in range(600):
        moved = copy.deepcopy(model)
        with torch.no_grad():
            for p in moved.parameters():
                p.add_(eps * torch.randn(p.shape, generator=g, dtype=p.dtype))
            kls.append(float((log_p.exp() * (log_p - moved(x).log_softmax(dim=1))).sum(dim=1).mean()))
    estimate, error = np.mean(kls), np.std(kls) / len(kls) ** 0.5
    assert abs(estimate - trace * eps**2 / 2) < 4 * error
    assert error < 0.1 * estimate


def test_padding_does_not_count():
    it = specimen("bert")
    longer = {k: torch.cat([v, torch.zeros(len(v), 4, dtype=v.dtype)], dim=1) for k, v in it.inputs.items()}
    a, b = (fisher_trace(it.model.double(), [x], layers=it.layers, labels="exact").trace for x in (it.inputs, longer))
    torch.testing.assert_close(a, b, rtol=1e-10, atol=0.0)


def test_batching_does_not_count():
    it = specimen("bert")
    ones = [{k: v[i : i + 1] for k, v in it.inputs.items()} for i in range(5)]
    a, b = (fisher_trace(it.model.double(), x, layers=it.layers, labels="exact") for x in (it.loader, ones))
    torch.testing.assert_close(a.per_example, b.per_example, rtol=1e-10, atol=0.0)


@pytest.mark.parametrize("method", ["hooks", "vmap"])
@pytest.mark.parametrize("name", ["mlp_inplace", "bottleneck_adapter", "bert"])
def test_leaves_no_trace(name, method):
    it = specimen(name)
    torch.manual_seed(0)
    dataset = [
        {k: v[i] for k, v in it.inputs.items()} if isinstance(it.inputs, dict) else it.inputs[i] for i in range(5)
    ]
    g = torch.Generator().manual_seed(1)
    loader = torch.utils.data.DataLoader(dataset, batch_size=2, shuffle=True, generator=g)
    it.model.train()
    for p in it.model.parameters():
        if p.requires_grad:
            p.grad = torch.randn_like(p)
    check = snapshot(it.model)
    before = torch.get_rng_state(), g.get_state(), random.getstate(), np.random.get_state()[1].copy()
    fisher_trace(it.model, loader, layers=it.layers, labels="sampled", method=method)
    check()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert torch.equal(g.get_state(), before[1])
    assert random.getstate() == before[2]
    assert (np.random.get_state()[1] == before[3]).all()


def test_leaves_no_trace_after_an_error():
    model = nn.Sequential(nn.Linear(3, 2), nn.Dropout())
    check = snapshot(model)
    with pytest.raises(ValueError, match="not finite"):
        fisher_trace(model, [torch.full((2, 3), torch.nan)])
    check()


class BroadcastPositions(nn.Module):
    """Position embeddings of shape (1, T), broadcast over the batch, as in BERT."""

    def __init__(self) -> None:
        super().__init__()
        self.positions, self.head = nn.Embedding(4, 3), nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head((x + self.positions(torch.arange(4)[None])).tanh().mean(dim=1))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
        self.b.weight = self.a.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x).tanh())


class Uncalled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.spare = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.used(x)


X = torch.randn(4, 3)
LINEAR = nn.Linear(3, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fisher_trace(LINEAR, []), "gave no batch"),
        (lambda: fisher_trace(LINEAR, [X], labels="true"), "unknown labels='true': choose one of exact"),
        (lambda: fisher_trace(LINEAR, [X], method="magic"), "unknown method='magic': choose one of hooks"),
        (lambda: fisher_trace(LINEAR, [X], num_batches=0), "num_batches of at least 1, got 0"),
        (lambda: fisher_trace(LINEAR, [X], layers="weight"), "with a group"),
        (lambda: fisher_trace(LINEAR, [X], layers="(nothing)"), "no layer has a parameter"),
        (lambda: fisher_trace(LINEAR, [X], layers={"a": ("w",)}), "no parameter 'w'; it has weight, bias"),
        (lambda: fisher_trace(LINEAR, [X], layers={"a": ("bias",), "b": ("bias",)}), "in two layers, 'a' and 'b'"),
        (lambda: fisher_trace(LINEAR, [X], layers={"a": ()}), "layer 'a' has no parameters"),
        (lambda: fisher_trace(nn.Linear(3, 1), [X]), "at least 2 classes"),
        (lambda: fisher_trace(nn.Linear(3, 2), [torch.randn(4, 5, 3)]), r"expected logits of shape \(batch, classes\)"),
        (lambda: fisher_trace(LINEAR, [torch.full((4, 3), torch.nan)]), r"example\(s\) \[0, 1, 2, 3\] .* not finite"),
        (lambda: fisher_trace(BroadcastPositions(), [torch.randn(5, 4, 3)]), "'positions' sees .* 5 examples.*vmap"),
        (lambda: fisher_trace(Tied(), [torch.randn(4, 3)]), "used as a.weight and b.weight.*vmap"),
        (lambda: fisher_trace(Uncalled(), [torch.randn(4, 3)]), "not called in the forward pass: spare"),
        (lambda: fisher_trace(nn.Sequential(nn.Conv1d(3, 2, 1)), [torch.randn(4, 3, 1)]), "no rule for Conv1d.*vmap"),
        (lambda: fisher_trace(nn.Identity(), [X]), "the model has no parameters"),
        (lambda: fisher_trace(LINEAR, [{"input_ids": torch.ones(2, 3), "mask": torch.ones(3, 3)}]), "one batch dim"),
        (lambda: probe(LINEAR, {}), "at least one loader"),
    ],
)
def test_bad_input_says_what_to_do(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_vmap_measures_what_hooks_refuse():
    torch.manual_seed(0)
    tied, broadcast = Tied(), BroadcastPositions()
    for model, x in ((tied, torch.randn(4, 3)), (broadcast, torch.randn(5, 4, 3))):
        layers = resolve_layers(model, None)
        truth = per_example_trace(model, x, layers)
        found = fisher_trace(model, [x], labels="exact", method="vmap")
        torch.testing.assert_close(found.per_example, truth, rtol=1e-4, atol=1e-12)


def test_probe_is_a_dataset():
    it = specimen("bottleneck_adapter")
    ds = probe(it.model, {"a": it.loader, "b": it.loader * 2}, layers=it.layers, labels="exact")
    assert dict(ds.sizes) == {"loader": 2, "layer": 2}
    assert ds["trainable"].values.tolist() == [0, 1]
    assert ds["num_params"].values.tolist() == [148, 148]
    assert ds.attrs["examples"] == [5, 10]
    assert all({"long_name", "units"} <= set(v.attrs) for v in ds.variables.values())
    np.testing.assert_allclose(*ds["fisher_trace"].values, rtol=1e-12)
