"""Statistics with a negative control, the probe's silence, and what a user may ask for."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
from oracle import class_gradients, snapshot
from torch import nn
from zoo import specimen

from fisherdyn import fisher_trace, probe, verify
from fisherdyn.fisher.running_mean import BatchValues, RunningMean
from fisherdyn.fisher.trace import FEWEST_TO_STOP_AT
from fisherdyn.layers import resolve_layers


def _confident() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 4))
    with torch.no_grad():
        model[2].weight.mul_(4)
    return model.double(), torch.randn(8, 5).double()


@pytest.mark.parametrize("labels", ["rademacher", "mc"])
def test_unbiased_over_labels(labels):
    """The mean of 2,000 estimates is within 4 of its own standard errors of the exact value, in each layer."""
    model, x = _confident()
    truth = fisher_trace(model, [x], labels="exact").trace
    pool = [x.repeat(250, 1)] * 8
    found = fisher_trace(model, pool, labels=labels, generator=torch.Generator().manual_seed(0))
    # The eight inputs are the same each time: only label noise is left, so the error is that of the mean over repeats.
    repeats = found.values.reshape(2000, 8, -1).mean(dim=1)
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
    sampled = fisher_trace(model, [x.repeat(250, 1)] * 8, labels="mc")
    error = sampled.values.reshape(2000, 8, -1).mean(dim=1).std(dim=0) / 2000**0.5
    assert ((estimate - truth).abs() > 4 * error).all()


def test_class_mix_is_exact_for_two_classes():
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    x = torch.randn(9, 4).double()
    exact, mixed = (fisher_trace(model, [x], labels=labels) for labels in ("exact", "rademacher"))
    torch.testing.assert_close(mixed.values, exact.values, rtol=1e-10, atol=0.0)


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
        found = fisher_trace(model, [x], generator=g, check="never")
        covered += ((found.trace - truth).abs() < 2.0 * found.se).float()  # t quantile at 63 degrees: 1.998
    assert ((covered / 1000 > 0.93) & (covered / 1000 < 0.97)).all(), covered


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
    torch.testing.assert_close(a.values, b.values, rtol=1e-10, atol=0.0)


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
    fisher_trace(it.model, loader, layers=it.layers, labels="mc", method=method)
    check()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert torch.equal(g.get_state(), before[1])
    assert random.getstate() == before[2]
    assert (np.random.get_state()[1] == before[3]).all()


class Noisy(torch.utils.data.Dataset):
    """Examples that draw from every global generator."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int) -> torch.Tensor:
        return torch.rand(3) + np.random.rand() + random.random()


def test_global_generators_are_restored():
    loader = torch.utils.data.DataLoader(Noisy(), batch_size=2, shuffle=True)
    torch.manual_seed(0)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()
    fisher_trace(LINEAR, loader, labels="mc")
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), before[2], strict=True))


class Failing(nn.Sequential):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError(f"no memory for {super().forward(x).shape}")


def test_leaves_no_trace_after_an_error():
    model = Failing(nn.Linear(3, 2), nn.Dropout())
    check = snapshot(model)
    with pytest.raises(RuntimeError, match="no memory"):
        fisher_trace(model, [torch.randn(2, 3)])
    check()


X = torch.randn(4, 3)
LINEAR = nn.Linear(3, 2)


class Merging(nn.Linear):
    """Changes its weight as it changes mode, as some LoRA implementations do."""

    merged = False

    def train(self, mode: bool = True) -> Merging:
        if mode == self.merged:
            self.merged = not mode
            with torch.no_grad():
                self.weight.mul_(0.5 if mode else 2.0)
        return super().train(mode)


class Counting(nn.Module):
    """Writes a buffer in evaluation mode, as quantisation's observers do."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(3, 2)
        self.register_buffer("largest", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.largest.copy_(x.abs().max())
        return self.body(x)


@pytest.mark.parametrize("model", [Merging(3, 2), Counting()])
def test_modes_and_buffers_are_restored(model):
    model.train()
    check = snapshot(model)
    fisher_trace(model, [X])
    check()


def test_probe_is_a_dataset():
    it = specimen("bottleneck_adapter")
    ds = probe(it.model, {"a": it.loader, "b": it.loader * 2}, layers=it.layers, labels="exact")
    assert dict(ds.sizes) == {"loader": 2, "layer": 2}
    assert ds["trainable"].values.tolist() == [0, 1]
    assert ds["num_params"].values.tolist() == [148, 148]
    assert ds.attrs["examples"] == [5, 10]
    assert all({"long_name", "units"} <= set(v.attrs) for v in ds.variables.values())
    np.testing.assert_allclose(*ds["fisher_trace"].values, rtol=1e-12)


def test_signed_batch_gradients_are_unbiased():
    """The mean of 400 pairs of batches is within 4 of its standard errors, in each layer; each example weighs the same."""
    model, x = _confident()
    truth = fisher_trace(model, [x], labels="exact").trace
    halves = [x[:5], x[5:]] * 400
    for labels in ("exact", "rademacher"):
        found = fisher_trace(model, halves, labels=labels, method="batch")
        assert (found.examples, found.batches, len(found.values)) == (3200, 800, 800)
        assert ((found.trace - truth).abs() < 4 * found.se).all()
        assert (found.se < 0.1 * truth).all()


def test_stops_when_every_layer_is_precise():
    model, _ = _confident()
    batches = [torch.randn(16, 5, generator=torch.Generator().manual_seed(i)).double() for i in range(200)]
    found = fisher_trace(model, batches, target_se=0.05)
    assert found.batches < 200
    assert (found.se <= 0.05 * found.trace).all()
    before = fisher_trace(model, batches, num_batches=found.batches // 2)  # a small model's go together: twice as many
    assert before.examples >= FEWEST_TO_STOP_AT
    assert (before.se > 0.05 * before.trace).any()
    assert found.imprecise == ()
    cut = fisher_trace(model, batches, target_se=0.001, num_batches=3)
    assert cut.imprecise == cut.layers
    assert probe(model, batches[:2], target_se=0.001).attrs["imprecise"] == "0, 2"


def test_batches_are_what_a_standard_error_over_batches_counts():
    """31 batches of 16 examples are 31 values, too few to stop by; the 32nd is enough."""
    model, x = _confident()
    loader = [x] * 40
    assert fisher_trace(model, loader, target_se=0.99, method="batch").batches == FEWEST_TO_STOP_AT


@pytest.mark.parametrize("examples", [1, 5])
def test_a_running_mean_is_that_of_all_rows(examples):
    """Weighted by the examples that a row stands for, about any origin; and it keeps the order of each process."""
    g = torch.Generator().manual_seed(0)
    read, rows, weights = RunningMean(), [], []
    for n in (3, 1, 8, 2):
        x = 1e4 + torch.rand(n, 2, generator=g).double()
        read.add(BatchValues(x, n * examples * n, 1, process=n % 2))
        rows, weights = [*rows, x], [*weights, torch.full((n, 1), float(examples * n)).double()]
    x, w = torch.cat(rows), torch.cat(weights)
    mean = (w * x).sum(dim=0) / w.sum()
    error = (w * (x - mean)).square().sum(dim=0).sqrt() / w.sum() * (14 / 13) ** 0.5
    torch.testing.assert_close(read.mean_and_error()[0], mean, rtol=1e-14, atol=0.0)
    torch.testing.assert_close(read.mean_and_error()[1], error, rtol=1e-9, atol=0.0)
    assert (read.rows, read.batches, read.examples) == (14, 4, int(w.sum()))
    assert torch.equal(read.values, torch.cat([rows[2], rows[3], rows[0], rows[1]]))


class OwnWeightElsewhere(nn.Module):
    """What hooks cannot see: a weight that is used outside its module's call too."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.nn.functional.linear(self.body(x).tanh(), self.body.weight))


def test_verify_finds_what_hooks_cannot_see():
    torch.manual_seed(0)
    found = verify(OwnWeightElsewhere(), (X, torch.zeros(4)))
    assert found.wrong == ("body",)
    assert "body" in str(found)
    assert str(found).count("WRONG") == 1
    assert verify(OwnWeightElsewhere(), X, method="vmap").wrong == ()
    it = specimen("bert_whole")
    assert verify(it.model, it.inputs).wrong == ()


def test_verify_allows_for_rounding_where_gradients_cancel():
    """A softmax does not see what is added to all of attention's keys: the truth is 0, and what is found is rounding."""
    it = specimen("bert_whole")
    keys = {name: (name,) for name, _ in it.model.named_parameters() if name.endswith("key.bias")}
    found = verify(it.model.float(), it.inputs, layers={**keys, "rest": ("classifier.weight",)})
    assert (found.found[:-1] > 0).all()
    assert (found.found[:-1] < 1e-10 * found.found[-1]).all()
    assert found.wrong == ()


@pytest.mark.parametrize("name", ["shared_module", "bottleneck_adapter", "lstm"])
@pytest.mark.parametrize("method", ["hooks", "vmap", "batch"])
def test_every_method_leaves_the_model_alone(name, method):
    it = specimen(name)
    if method == "vmap" and not it.mappable:
        pytest.skip("torch.func cannot map it")
    it.model.train()
    check = snapshot(it.model)
    identities = [id(p) for p in it.model.parameters()]
    fisher_trace(it.model, it.loader, layers=it.layers, method=method)
    check()
    assert [id(p) for p in it.model.parameters()] == identities
