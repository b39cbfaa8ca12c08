"""Every specimen, choice of labels and method that sees single examples: against the float64 loop, layer by layer."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch
from oracle import Truth, cast, logits, truth
from torch import Tensor, nn
from zoo import REFUSED, ZOO, Specimen, specimen

from fisherdyn import fisher_trace
from fisherdyn.labels import LABELS
from fisherdyn.layers import Layers, resolve_layers

SEED = 5


@cache
def measured(name: str) -> tuple[Specimen, Layers, Truth]:
    it = specimen(name)
    layers = resolve_layers(it.model, it.layers)
    return it, layers, truth(it.model, it.inputs, layers)


def with_labels(inputs: dict[str, Tensor] | Tensor, y: Tensor) -> dict[str, Tensor] | tuple[Tensor, Tensor]:
    return (inputs, y) if isinstance(inputs, Tensor) else {**inputs, "labels": y}


def expected(found: Truth, labels: str, y: Tensor, model: nn.Module, inputs: dict[str, Tensor] | Tensor) -> Tensor:
    """What the estimator must give for the labels or signs that its generator draws: (examples, layers)."""
    generator = torch.Generator().manual_seed(SEED)
    if labels == "exact":
        return found.exact()
    if labels == "rademacher":
        return found.mixed(2.0 * torch.randint(2, found.p.shape, generator=generator) - 1)
    if labels == "mc":  # the probabilities in the precision of the model: they decide what is drawn
        with torch.no_grad():
            p = logits(model, inputs).softmax(dim=2)
        y = torch.multinomial(p.flatten(0, 1), 1, generator=generator).reshape(p.shape[:2])
    if labels == "argmax":
        y = found.p.argmax(dim=2)
    return found.labelled(y)


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("method", ["hooks", "vmap"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@pytest.mark.parametrize("name", ZOO)
def test_every_label_is_the_oracle(name, dtype, tolerance, method, labels):
    it, layers, found = measured(name)
    if method == "vmap" and not it.mappable:
        pytest.skip("torch.func cannot map it")
    model, inputs = copy.deepcopy(it.model).to(dtype), cast(it.inputs, dtype)
    y = torch.arange(found.p[..., 0].numel()).reshape(found.p.shape[:2]) % found.p.shape[2]
    given = torch.where(found.counts > 0, y, -100)
    batch = with_labels(inputs, given if it.likelihood == "token" else given[:, 0])
    wanted = expected(found, labels, y, model, inputs)
    result = fisher_trace(
        model,
        [batch],
        layers=layers,
        likelihood=it.likelihood,
        labels=labels,
        method=method,
        generator=torch.Generator().manual_seed(SEED),
    )
    tolerance = max(tolerance, 1e-4 * it.single_inside)
    assert found.exact().min() > 0
    torch.testing.assert_close(result.values, wanted, rtol=tolerance, atol=tolerance * float(wanted.max()) * 1e-6)
    torch.testing.assert_close(result.trace, result.values.mean(dim=0))
    torch.testing.assert_close(result.se, result.values.std(dim=0) / len(wanted) ** 0.5)


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name_and_right_by_the_remedy(name):
    it = specimen(name)
    layers = resolve_layers(it.model, it.layers)
    model, inputs = it.model.double(), cast(it.inputs, torch.float64)
    with pytest.raises(ValueError, match=REFUSED[name][1]):
        fisher_trace(model, [inputs], layers=layers, likelihood=it.likelihood)
    if not it.mappable:
        pytest.skip("torch.func cannot map it")
    result = fisher_trace(model, [inputs], layers=layers, likelihood=it.likelihood, labels="exact", method="vmap")
    tolerance = 1e-4 if it.single_inside else 1e-9
    torch.testing.assert_close(result.values, truth(model, inputs, layers).exact(), rtol=tolerance, atol=0.0)
