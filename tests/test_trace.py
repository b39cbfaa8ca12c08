"""tr(F) against the float64 loop, hooks against vmap, statistics with a negative control, and the probe's silence."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
from oracle import cast, class_gradients, per_example_trace, snapshot
from torch import nn
from zoo import ZOO, specimen

from fisherdyn import fisher_trace, probe, verify
from fisherdyn.layers import resolve_layers


@pytest.mark.parametrize("method", ["hooks", "vmap"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@pytest.mark.parametrize("name", ZOO)
def test_exact_is_the_oracle(name, dtype, tolerance, method):
    it = specimen(name)
    layers = resolve_layers(it.model, it.layers)
    truth = per_example_trace(it.model, it.inputs, layers)
    if method == "vmap" and not it.mappable:
        pytest.skip("torch.func cannot map it")
    model = copy.deepcopy(it.model).to(dtype)
    found = fisher_trace(model, [cast(it.inputs, dtype)], layers=layers, labels="exact", method=method)
    tolerance = max(tolerance, 1e-4 * it.single_inside)
    assert truth.min() > 0
    torch.testing.assert_close(found.values, truth, rtol=tolerance, atol=0.0)
    torch.testing.assert_close(found.trace, truth.mean(dim=0), rtol=tolerance, atol=0.0)
    standard_error = truth.std(dim=0) / len(truth) ** 0.5
    torch.testing.assert_close(found.se, standard_error, rtol=1e-3, atol=0.0)


@pytest.mark.parametrize("labels", ["class_mix", "sampled"])
@pytest.mark.parametrize("name", ZOO)
def test_hooks_and_vmap_agree_label_by_label(name, labels):
    it = specimen(name)
    if not it.mappable:
        pytest.skip("torch.func cannot map it")
    model = it.model.double()
    loader = [cast(it.inputs, torch.float64)]
    hooks, vmap = (
        fisher_trace(
            model, loader, layers=it.layers, labels=labels, method=method, generator=torch.Generator().manual_seed(5)
        )
        for method in ("hooks", "vmap")
    )
    torch.testing.assert_close(hooks.values, vmap.values, rtol=1e-9, atol=0.0)


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
    sampled = fisher_trace(model, [x.repeat(250, 1)] * 8, labels="sampled")
    error = sampled.values.reshape(2000, 8, -1).mean(dim=1).std(dim=0) / 2000**0.5
    assert ((estimate - truth).abs() > 4 * error).all()


def test_class_mix_is_exact_for_two_classes():
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    x = torch.randn(9, 4).double()
    exact, mixed = (fisher_trace(model, [x], labels=labels) for labels in ("exact", "class_mix"))
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
        found = fisher_trace(model, [x], generator=g)
        covered += ((found.trace - truth).abs() < 2.0 * found.se).float()  # t quantile at 63 degrees: 1.998
    assert ((covered / 1000 > 0.93) & (covered / 1000 < 0.97)).all(), covered


def test_tokens_are_not_samples():
    """The mistake of others: squaring before summing over calls and tokens. It is far from the truth here, we are not."""
    it = specimen("repeated")
    model, layers = it.model, {"shared": ("shared.weight",)}
    truth = per_example_trace(model, it.inputs, layers).mean(dim=0)
    torch.testing.assert_close(
        fisher_trace(model, it.loader, layers=layers, labels="exact").trace, truth, rtol=1e-4, atol=0.0
    )
    kept: list[torch.Tensor] = []
    seen: list[torch.Tensor] = []
    handle = model.shared.register_forward_hook(lambda m, a, out: (seen.append(a[0].detach()), kept.append(out))[0])
    logits = model(it.inputs)
    handle.remove()
    wrong = torch.zeros(())
    p = logits.softmax(dim=1).detach()
    for y in range(logits.shape[1]):
        gradients = torch.autograd.grad(logits.log_softmax(dim=1)[:, y].sum(), kept, retain_graph=True)
        calls = zip(seen, gradients, strict=True)
        wrong += (p[:, y] * sum(a.square().sum(dim=1) * d.square().sum(dim=1) for a, d in calls)).mean()
    assert abs(float(wrong) / float(truth) - 1) > 0.2


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
    fisher_trace(it.model, loader, layers=it.layers, labels="sampled", method=method)
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
    fisher_trace(LINEAR, loader, labels="sampled")
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


class SequenceFirst(nn.Module):
    """(positions, batch, features) inside: with as many positions as examples no length tells them apart."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x.transpose(0, 1)).tanh().mean(dim=0))


class BatchLast(SequenceFirst):
    """Rows of all examples together, position after position."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = self.body(x.transpose(0, 1).reshape(-1, 3)).tanh()
        return self.head(rows.reshape(x.shape[1], len(x), 3).mean(dim=0))


class BarePositions(nn.Module):
    """Position embeddings without a batch dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.positions, self.head = nn.Embedding(4, 3), nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head((x + self.positions(torch.arange(4))).tanh().mean(dim=1))


class InPlaceResidual(nn.Module):
    """What a frozen Linear has read is written into afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(3, 3).requires_grad_(False), nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = 2 * x
        y = self.body(h)
        h += 1
        return self.head(h + y.tanh())


X = torch.randn(4, 3)
SQUARE = torch.randn(4, 4, 3)
MIXING = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 2))
LINEAR = nn.Linear(3, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fisher_trace(LINEAR, []), "gave no batch"),
        (lambda: fisher_trace(LINEAR, [X], labels="true"), "unknown labels='true': choose one of exact"),
        (lambda: fisher_trace(LINEAR, [X], method="magic"), "unknown method='magic': choose one of hooks"),
        (lambda: fisher_trace(LINEAR, [X], target_se=5.0), "target_se between 0 and 1"),
        (lambda: fisher_trace(LINEAR, [X], method="authors"), 'choose labels="argmax"'),
        (lambda: fisher_trace(LINEAR, [X], num_batches=0), "num_batches of at least 1, got 0"),
        (lambda: fisher_trace(LINEAR, [X], layers="weight"), "with a group"),
        (lambda: fisher_trace(LINEAR, [X], layers="(nothing)"), "no layer has a parameter"),
        (lambda: fisher_trace(LINEAR, [X], layers={"a": ("w",)}), "no parameter 'w'; it has weight, bias"),
        (lambda: fisher_trace(LINEAR, [X], layers={"a": ("bias",), "b": ("bias",)}), "in two layers, 'a' and 'b'"),
        (lambda: fisher_trace(LINEAR, [X], layers={"a": ()}), "layer 'a' has no parameters"),
        (lambda: fisher_trace(nn.Linear(3, 1), [X]), "at least 2 classes"),
        (lambda: fisher_trace(nn.Linear(3, 2), [torch.randn(4, 5, 3)]), 'pass likelihood="token"'),
        (lambda: fisher_trace(LINEAR, [torch.full((4, 3), torch.nan)]), r"example\(s\) \[0, 1, 2, 3\] .* not finite"),
        (
            lambda: fisher_trace(SequenceFirst(), [torch.randn(5, 4, 3)]),
            "'body' sees .4, 5, 3. for a batch of 5 examples, .*vmap",
        ),
        (lambda: fisher_trace(SequenceFirst(), [SQUARE]), "'body' sees .* not one example after the other.*vmap"),
        (lambda: fisher_trace(BatchLast(), [SQUARE]), "'body' sees .* not one example after the other.*vmap"),
        (lambda: fisher_trace(BarePositions(), [SQUARE]), "'positions' sees .* not one example after the other.*vmap"),
        (lambda: fisher_trace(BarePositions(), [SQUARE[:3]]), "'positions' sees .4,. for a batch of 3 examples.*vmap"),
        (lambda: fisher_trace(InPlaceResidual(), [X]), "'body': its input is changed in place"),
        (lambda: fisher_trace(MIXING, [X]), "'1' .BatchNorm1d. has no running statistics"),
        (lambda: fisher_trace(nn.Embedding(3, 2, max_norm=1.0), [torch.tensor([1, 2])]), "max_norm"),
        (lambda: fisher_trace(LINEAR, [X], likelihood="poisson"), "unknown likelihood='poisson': choose one of cat"),
        (lambda: fisher_trace(LINEAR, [X], likelihood="token"), r"\(batch, positions, classes.*got \(4, 2\)"),
        (lambda: fisher_trace(LINEAR, [X], labels="empirical"), 'expected batch."labels". or'),
        (
            lambda: fisher_trace(LINEAR, [(X, torch.tensor([0, 1, 2, 0]))], labels="empirical"),
            "label 2 is out of range",
        ),
        (
            lambda: fisher_trace(LINEAR, [(X, torch.zeros(3))], labels="empirical"),
            r"labels of shape \(4,\), got \(3,\)",
        ),
        (lambda: fisher_trace(LINEAR, [X], likelihood="gaussian", labels="argmax"), "its mode is f itself"),
        (lambda: fisher_trace(LINEAR, X), "a single batch: wrap it"),
        (lambda: probe(LINEAR, {"input": X}), "a single batch: wrap it"),
        (lambda: fisher_trace(LINEAR, [{"labels": X}]), "at least one tensor"),
        (lambda: fisher_trace(Tied(), [torch.randn(4, 3)]), "used as a.weight and b.weight.*vmap"),
        (lambda: fisher_trace(Uncalled(), [torch.randn(4, 3)]), "not called in the forward pass: spare"),
        (lambda: fisher_trace(nn.Identity(), [X]), "the model has no parameters"),
        (lambda: fisher_trace(LINEAR, [{"input_ids": torch.ones(2, 3), "mask": torch.ones(3, 3)}]), "one batch dim"),
        (lambda: probe(LINEAR, {}), "at least one loader"),
    ],
)
def test_bad_input_says_what_to_do(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_batches_of_three_tensors_are_not_guessed_at():
    with pytest.raises(TypeError, match="a dict of tensors by argument name, got tuple of 3"):
        fisher_trace(LINEAR, [(X, X, X)])


def test_vmap_measures_what_hooks_refuse():
    torch.manual_seed(0)
    refused = ((Tied(), X), (BarePositions(), SQUARE), (SequenceFirst(), SQUARE), (BatchLast(), SQUARE))
    for model, x in refused:
        layers = resolve_layers(model, None)
        truth = per_example_trace(model, x, layers)
        found = fisher_trace(model, [x], labels="exact", method="vmap")
        torch.testing.assert_close(found.values, truth, rtol=1e-4, atol=1e-12)


def test_one_example_needs_no_batch_dimension():
    """With a single example whatever a module sees belongs to it, wherever its batch dimension is."""
    for model in (SequenceFirst(), BatchLast(), BarePositions()):
        truth = per_example_trace(model, SQUARE[:1], resolve_layers(model))
        found = fisher_trace(model, [SQUARE[:1]], labels="exact")
        torch.testing.assert_close(found.values, truth, rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_squared_in_single(dtype):
    """Gradients of 1e-5, whose squares vanish in float16, still count."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    with torch.no_grad():
        model[2].weight.mul_(1e-4)
    x = torch.randn(9, 6)
    truth = per_example_trace(model, x, resolve_layers(model)).mean(dim=0)
    found = fisher_trace(copy.deepcopy(model).to(dtype), [x.to(dtype)], labels="exact").trace
    assert truth[0] < 1e-6
    torch.testing.assert_close(found, truth, rtol=0.02, atol=0.0)


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
    """The mean of 2,000 batches of five is within 4 of its standard errors, in each layer; unequal batches weigh equally."""
    model, x = _confident()
    truth = fisher_trace(model, [x], labels="exact").trace
    halves = [x[:5], x[5:]] * 2000
    for labels in ("exact", "class_mix"):
        found = fisher_trace(model, halves, labels=labels, method="batch")
        assert (found.examples, found.batches, len(found.values)) == (16_000, 4000, 4000)
        assert ((found.trace - truth).abs() < 4 * found.se).all()
        assert (found.se < 0.1 * truth).all()


def test_the_authors_form_is_what_their_code_computes_and_not_the_trace():
    model, x = _confident()
    model.requires_grad_(True)
    loss = torch.nn.functional.cross_entropy(model(x), model(x).argmax(dim=1))
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    theirs = torch.stack([sum(g.square().sum() for g in pair) / 8 for pair in (gradients[:2], gradients[2:])])
    found = fisher_trace(model, [x], labels="argmax", method="authors")
    torch.testing.assert_close(found.trace, theirs)
    truth = fisher_trace(model, [x], labels="exact").trace
    assert (found.trace < 0.1 * truth).all()


@pytest.mark.parametrize("labels", ["argmax", "empirical"])
def test_biased_labels_are_what_they_say(labels):
    model, x = _confident()
    y = torch.arange(8) % 4
    norms, p = class_gradients(model, x, resolve_layers(model))
    chosen = p.argmax(dim=1) if labels == "argmax" else y
    for method in ("hooks", "vmap"):
        found = fisher_trace(model, [(x, y)], labels=labels, method=method)
        torch.testing.assert_close(found.values, norms[torch.arange(8), chosen], rtol=1e-9, atol=1e-15)


def test_stops_when_every_layer_is_precise():
    model, _ = _confident()
    batches = [torch.randn(16, 5, generator=torch.Generator().manual_seed(i)).double() for i in range(200)]
    found = fisher_trace(model, batches, target_se=0.1)
    assert 2 <= found.batches < 200
    assert (found.se <= 0.1 * found.trace).all()
    before = fisher_trace(model, batches, num_batches=found.batches - 1)
    assert (before.se > 0.1 * before.trace).any() or before.examples < 32
    assert found.imprecise == ()
    cut = fisher_trace(model, batches, target_se=0.001, num_batches=3)
    assert cut.imprecise == cut.layers
    assert probe(model, batches[:2], target_se=0.001).attrs["imprecise"] == "0, 2"


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
