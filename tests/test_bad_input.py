"""Bad input gets an error that says what was expected, what came and what to do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from oracle import per_example_trace, snapshot
from torch import Tensor, nn

from fisherdyn import fisher_trace, probe, verify
from fisherdyn.layers import resolve_layers
from fisherdyn.likelihoods import Categorical, Gaussian

X = torch.randn(4, 3)
SQUARE = torch.randn(4, 4, 3)
LINEAR = nn.Linear(3, 2)
MIXING = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 2))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).tanh())


class Uncalled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.spare = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


class SequenceFirst(nn.Module):
    """(positions, batch, features) inside: with as many positions as examples no length tells them apart."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x.transpose(0, 1)).tanh().mean(dim=0))


class BatchLast(SequenceFirst):
    """Rows of all examples together, position after position."""

    def forward(self, x: Tensor) -> Tensor:
        rows = self.body(x.transpose(0, 1).reshape(-1, 3)).tanh()
        return self.head(rows.reshape(x.shape[1], len(x), 3).mean(dim=0))


class BarePositions(nn.Module):
    """Position embeddings without a batch dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.positions, self.head = nn.Embedding(4, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((x + self.positions(torch.arange(4))).tanh().mean(dim=1))


class InPlaceResidual(nn.Module):
    """What a frozen Linear has read is written into afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(3, 3).requires_grad_(False), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = 2 * x
        y = self.body(h)
        h += 1
        return self.head(h + y.tanh())


class Returning(nn.Module):
    """A classifier that returns something else than its logits."""

    def __init__(self, change: object) -> None:
        super().__init__()
        self.head, self.change = nn.Linear(3, 2), change

    def forward(self, x: Tensor) -> object:
        return self.change(self.head(x))


def read_once() -> object:
    """A generator that has been used up."""
    batches = (x for x in [X])
    list(batches)
    return batches


def overflowing() -> nn.Module:
    model = nn.Linear(3, 2).half()
    nn.init.constant_(model.weight, 6e4)
    return model


def trace(model: object = LINEAR, batch: object = X, **options: object) -> object:
    return fisher_trace(model, [batch], **options)


def empirical(y: object, **options: object) -> object:
    return fisher_trace(LINEAR, [(X, y)], labels="empirical", **options)


OF_THE_CALL = [
    (lambda: trace(labels="true"), "unknown labels='true': choose one of exact"),
    (lambda: trace(labels=None), "unknown labels=None: choose one of exact"),
    (lambda: trace(method="magic"), "unknown method='magic': choose one of hooks"),
    (lambda: trace(method="authors"), 'choose labels="argmax"'),
    (lambda: trace(method="authors", labels="exact"), 'choose labels="argmax"'),
    (lambda: trace(target_se=5.0), "target_se between 0 and 1"),
    (lambda: trace(target_se=0), "target_se between 0 and 1"),
    (lambda: trace(target_se=float("nan")), "target_se between 0 and 1"),
    (lambda: trace(target_se="5 %"), "target_se between 0 and 1, such as 0.05, got '5 %'"),
    (lambda: trace(num_batches=0), "num_batches of at least 1, got 0"),
    (lambda: trace(num_batches=-3), "num_batches of at least 1, got -3"),
    (lambda: trace(num_batches=2.5), "num_batches of at least 1, got 2.5"),
    (lambda: trace(num_batches="2"), "num_batches of at least 1, got '2'"),
    (lambda: trace(generator=5), "expected a torch.Generator, got int"),
    (lambda: trace(generator=0), "expected a torch.Generator, got int"),
    (lambda: trace(generator=np.random.default_rng(0)), "expected a torch.Generator, got Generator"),
    (lambda: trace(likelihood="poisson"), "unknown likelihood='poisson': choose one of cat"),
    (lambda: trace(likelihood=Categorical), r"likelihood.*Categorical\(\)"),
    (lambda: trace(likelihood=3), "unknown likelihood=3: choose one of cat"),
    (lambda: Gaussian(0.0), "expected sigma above 0, got 0"),
    (lambda: torch.inference_mode()(trace)(), "inference_mode.*measure outside"),
]

OF_THE_LAYERS = [
    (lambda: trace(layers="weight"), "with a group"),
    (lambda: trace(layers="(weight"), "not a regular expression"),
    (lambda: trace(layers="(nothing)"), "no layer has a parameter"),
    (lambda: trace(layers=lambda name: None), "no layer has a parameter: the model's parameters are weight, bias"),
    (lambda: trace(layers={"a": ("w",)}), "no parameter 'w'; it has weight, bias"),
    (lambda: trace(layers={"a": ("bias",), "b": ("bias",)}), "in two layers, 'a' and 'b'"),
    (lambda: trace(layers={"a": ()}), "layer 'a' has no parameters"),
    (lambda: trace(layers={"a": "weight"}), "expected a dict of layer -> tuple of parameter names"),
    (lambda: trace(layers=["weight"]), "expected a dict of layer -> tuple of parameter names"),
]

OF_THE_LOADER = [
    (lambda: fisher_trace(LINEAR, []), "gave no batch"),
    (lambda: fisher_trace(LINEAR, read_once()), "gave no batch.*a generator can be read only once"),
    (lambda: fisher_trace(LINEAR, X), "a single batch: wrap it"),
    (lambda: probe(LINEAR, {"input": X}), "a single batch: wrap it"),
    (lambda: probe(LINEAR, {}), "at least one loader"),
    (lambda: fisher_trace(LINEAR, None), "expected a loader.*got NoneType"),
    (lambda: fisher_trace(LINEAR, 5), "expected a loader.*got int"),
    (lambda: fisher_trace(LINEAR, "train"), "a dict of tensors by argument name, got str"),
    (lambda: trace(batch=None), "a dict of tensors by argument name, got NoneType"),
    (lambda: trace(batch=X.numpy()), "a dict of tensors by argument name, got ndarray"),
    (lambda: trace(batch=(X, X, X)), "a dict of tensors by argument name, got tuple of 3"),
    (lambda: trace(batch=[[1, 2, 3]]), "a dict of tensors by argument name, got list of 1|got list"),
    (lambda: trace(batch={"labels": X}), "at least one tensor"),
    (lambda: trace(batch={"input": [[1.0, 2.0, 3.0]]}), "at least one tensor"),
    (lambda: trace(batch=X[:0]), "one batch dimension of at least 1"),
    (lambda: trace(batch=torch.tensor(1.0)), "one batch dimension of at least 1"),
    (lambda: trace(batch={"input_ids": torch.ones(2, 3), "mask": torch.ones(3, 3)}), "one batch dim"),
    (lambda: trace(batch=X.to("meta")), r"of shape \(4, 3\), is on device 'meta'"),
    (lambda: trace(batch=torch.full((4, 3), torch.nan)), r"example\(s\) \[0, 1, 2, 3\] .* not finite"),
    (lambda: trace(batch=torch.cat([X[:1], X[1:] * torch.inf])), r"example\(s\) \[1, 2, 3\] .* not finite"),
    (lambda: verify(LINEAR, None), "a dict of tensors by argument name, got NoneType"),
]

OF_THE_LABELS = [
    (lambda: trace(labels="empirical"), 'expected batch."labels". or'),
    (lambda: empirical([0, 1, 1, 0]), 'expected batch."labels". or'),
    (lambda: empirical(torch.tensor([0, 1, 2, 0])), "label 2 is out of range: the model has 2 classes"),
    (lambda: empirical(torch.tensor([0, 1, -1, 0])), "label -1 is out of range"),
    (lambda: empirical(torch.zeros(3)), r"labels of shape \(4,\), got \(3,\)"),
    (lambda: empirical(torch.zeros(4, 1)), r"labels of shape \(4,\), got \(4, 1\)"),
    (lambda: empirical(torch.rand(4)), "class numbers, got torch.float32: pass them as integers"),
    (lambda: empirical(torch.full((4, 2), 2.0), likelihood="bernoulli"), "expected labels of 0 and 1"),
    (lambda: empirical(torch.ones(4, 3), likelihood="gaussian"), r"targets in shape \(4, 2\), got shape \(4, 3\)"),
    (lambda: trace(likelihood="gaussian", labels="argmax"), "its mode is f itself"),
]

OF_THE_OUTPUT = [
    (lambda: trace(nn.Linear(3, 1)), "at least 2 classes"),
    (lambda: trace(nn.Linear(3, 1), likelihood="choice"), r"\(batch, choices of at least 2\).*got \(4, 1\)"),
    (lambda: trace(LINEAR, torch.randn(4, 5, 3)), 'pass likelihood="token"'),
    (lambda: trace(likelihood="token"), r"\(batch, positions, classes.*got \(4, 2\)"),
    (lambda: trace(likelihood="span"), "with .start_logits and .end_logits"),
    (lambda: trace(Returning(lambda f: f[:, 0])), r"logits of shape \(4,\) do not say what they mean"),
    (lambda: trace(Returning(lambda f: (f.mean(), f))), r"logits of shape \(\) do not say what they mean"),
    (
        lambda: trace(Returning(lambda f: f.mean(dim=0, keepdim=True))),
        r"for each of 4 example\(s\), got shape \(1, 2\)",
    ),
    (lambda: trace(Returning(lambda f: {"hidden": f})), "a model that returns logits .*dict"),
    (lambda: trace(Returning(lambda f: None)), "a model that returns logits .*NoneType"),
    (lambda: trace(Returning(lambda f: f.detach())), "head do not reach the logits; pass layers= without it"),
    (lambda: trace(Returning(lambda f: torch.complex(f, f))), "logits are complex|complex logits"),
    (lambda: trace(nn.Sequential(LINEAR, nn.Softmax(dim=1))), "got probabilities .*: leave out the softmax"),
    (lambda: trace(overflowing(), X.half() * 100), "logits of example.* not finite"),
]

OF_THE_MODEL = [
    (lambda: trace("bert-base-cased"), r"expected a model \(torch.nn.Module\), got str"),
    (lambda: fisher_trace([X], LINEAR), r"expected a model \(torch.nn.Module\), got list"),
    (lambda: trace(nn.Identity()), "the model has no parameters"),
    (lambda: trace(nn.Linear(3, 2, device="meta")), "'weight' is on device 'meta'.*load its weights first"),
    (
        lambda: trace(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2, device="meta"))),
        "'1.weight' is on device 'meta'.*load its weights first",
    ),
    (lambda: trace(nn.DataParallel(LINEAR)), "measure model.module instead"),
    (lambda: trace(torch.compile(LINEAR, backend="eager")), "measure model._orig_mod instead"),
    (lambda: trace(torch.jit.trace(LINEAR, X)), "is a TorchScript, which runs no hooks"),
    (lambda: trace(nn.Sequential(torch.jit.script(nn.Linear(3, 3)), LINEAR)), "module '0' is a TorchScript"),
    (lambda: trace(MIXING), "'1' .BatchNorm1d. has no running statistics"),
    (lambda: trace(nn.Embedding(3, 2, max_norm=1.0), torch.tensor([1, 2])), "max_norm"),
    (lambda: trace(nn.Embedding(3, 2, scale_grad_by_freq=True), torch.tensor([1, 2])), "scale_grad_by_freq"),
    (
        lambda: trace(Uncalled()),
        "not called in the forward pass: spare; pass layers= without it: .*find_layers.*or activate it",
    ),
    (lambda: trace(InPlaceResidual()), "'body': its input is changed in place.*layers= without it"),
]


# torch calls its own torch.jit deprecated.
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize(
    ("call", "message"),
    [*OF_THE_CALL, *OF_THE_LAYERS, *OF_THE_LOADER, *OF_THE_LABELS, *OF_THE_OUTPUT, *OF_THE_MODEL],
)
def test_says_what_to_do(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_lazy_modules_are_left_as_they_are():
    model = nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 2))
    with pytest.raises(ValueError, match=r"'0.weight' has no shape yet: run a forward pass first"):
        trace(model)
    assert isinstance(model[0].weight, nn.parameter.UninitializedParameter)


def test_train_mode_is_measured_in_evaluation_mode_and_restored():
    """No error: the mode is ours to change and to restore, and the record says so."""
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).train()
    check = snapshot(model)
    found = probe(model, [X], labels="exact")
    check()
    assert found.attrs["mode"] == "eval"
    np.testing.assert_array_equal(probe(model.eval(), [X], labels="exact")["fisher_trace"], found["fisher_trace"])


@pytest.mark.parametrize(
    ("make", "x", "why"),
    [
        (BarePositions, SQUARE, "'positions' has rows that are several examples' at once"),
        (BarePositions, SQUARE[:3], "'positions' has rows that are several examples' at once"),
        (SequenceFirst, SQUARE, "body: one example alone has another gradient"),
    ],
)
def test_goes_on_by_the_loop_where_hooks_cannot(make, x, why):
    torch.manual_seed(0)
    model = make()
    truth = per_example_trace(model, x, resolve_layers(model))
    with pytest.warns(UserWarning, match=rf"{why}.*one example at a time.*method=.loop") as warned:
        found = fisher_trace(model, [x, x], labels="exact")
    assert len(warned) == 1
    torch.testing.assert_close(found.values, truth.repeat(2, 1), rtol=1e-4, atol=1e-12)


def test_tied_weights_and_rows_in_another_order_are_measured():
    torch.manual_seed(0)
    for model, x in ((Tied(), X), (SequenceFirst(), torch.randn(5, 4, 3)), (BatchLast(), SQUARE)):
        truth = per_example_trace(model, x, resolve_layers(model))
        found = fisher_trace(model, [x], labels="exact")
        torch.testing.assert_close(found.values, truth, rtol=1e-4, atol=1e-12)


def test_one_example_needs_no_batch_dimension():
    """With a single example whatever a module sees belongs to it, wherever its batch dimension is."""
    for model in (SequenceFirst(), BatchLast(), BarePositions()):
        truth = per_example_trace(model, SQUARE[:1], resolve_layers(model))
        found = fisher_trace(model, [SQUARE[:1]], labels="exact")
        torch.testing.assert_close(found.values, truth, rtol=1e-4, atol=1e-12)
