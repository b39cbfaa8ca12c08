"""The factor of the categorical Fisher, and the cotangents drawn from it."""

from __future__ import annotations

import pytest
import torch

from fisherdyn.likelihoods import Categorical, apply_factor


def _covariance(logits):
    p = logits.softmax(dim=1)
    return torch.diag_embed(p) - p[:, :, None] * p[:, None, :]


@pytest.mark.parametrize("classes", [2, 3, 10, 50])
@pytest.mark.parametrize("scale", [0.1, 3.0, 30.0])
def test_columns_square_to_the_covariance(classes, scale, generator):
    logits = scale * torch.randn(20, classes, generator=generator, dtype=torch.float64)
    columns = torch.stack(list(Categorical().cotangents(logits, "exact", generator)), dim=2)
    assert columns.shape == (20, classes, classes - 1)
    torch.testing.assert_close(columns @ columns.mT, _covariance(logits), rtol=1e-9, atol=1e-14)


def test_confident_models_keep_their_precision(generator):
    """Where 1 - p is 1e-13, p (1 - p) taken from the probabilities in float32 would be 0; its relative error is not 1."""
    logits = torch.tensor([[30.0, 0.0, -1.0]])
    columns = torch.stack(list(Categorical().cotangents(logits, "exact", generator)), dim=2)[0]
    p = logits[0].double().softmax(dim=0)
    truth = torch.diag(torch.stack([p[0] * (p[1] + p[2]), p[1] * (p[0] + p[2]), p[2] * (p[0] + p[1])]))
    truth = truth - (p[:, None] * p[None, :]).fill_diagonal_(0.0)
    torch.testing.assert_close((columns @ columns.mT).double(), truth, rtol=1e-4, atol=0.0)


@pytest.mark.parametrize("labels", ["class_mix", "sampled"])
def test_random_cotangents_have_the_covariance(labels, generator):
    logits = torch.tensor([[1.0, 0.2, -0.7, -2.0]], dtype=torch.float64)
    draws = next(iter(Categorical().cotangents(logits.repeat(200_000, 1), labels, generator)))
    products = draws[:, :, None] * draws[:, None, :]
    error = products.std(dim=0) / len(draws) ** 0.5
    assert ((products.mean(dim=0) - _covariance(logits)[0]).abs() <= 4.5 * error + 1e-12).all()


def test_class_mix_has_bounded_variance(generator):
    """Relative variance of ||J^T c||^2 at most 2, however confident the model; that of sampled labels is not."""
    logits = torch.tensor([[6.0, 0.0, 1.0]], dtype=torch.float64).repeat(20_000, 1)
    jacobian = torch.randn(3, 7, generator=generator, dtype=torch.float64)

    def relative_variance(labels):
        c = next(iter(Categorical().cotangents(logits, labels, generator)))
        value = (c @ jacobian).square().sum(dim=1)
        return float(value.var() / value.mean() ** 2)

    assert relative_variance("class_mix") <= 2
    assert relative_variance("sampled") > 20


def test_ignores_the_likeliest_class():
    logits = torch.tensor([[0.0, 2.0, 1.0]])
    a, b = torch.tensor([[1.0, 5.0, -1.0]]), torch.tensor([[1.0, -9.0, -1.0]])
    torch.testing.assert_close(apply_factor(logits, a), apply_factor(logits, b))


def test_unknown_labels(generator):
    with pytest.raises(ValueError, match="choose one of exact, class_mix, sampled"):
        list(Categorical().cotangents(torch.randn(2, 3), "empirical", generator))
