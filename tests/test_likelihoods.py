"""The factor of the categorical Fisher, and the cotangents drawn from it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import transformers

from fisherdyn import fisher_trace
from fisherdyn.labels import find_labels
from fisherdyn.likelihoods import LIKELIHOODS, Categorical, apply_factor


def _cotangents(likelihood, logits, labels, generator, batch=None):
    return find_labels(labels).cotangents(likelihood, logits, generator, batch)


def _covariance(logits):
    p = logits.softmax(dim=1)
    return torch.diag_embed(p) - p[:, :, None] * p[:, None, :]


@pytest.mark.parametrize("classes", [2, 3, 10, 50])
@pytest.mark.parametrize("scale", [0.1, 3.0, 30.0])
def test_columns_square_to_the_covariance(classes, scale, generator):
    logits = scale * torch.randn(20, classes, generator=generator, dtype=torch.float64)
    columns = torch.stack(list(_cotangents(Categorical(), logits, "exact", generator)), dim=2)
    assert columns.shape == (20, classes, classes - 1)
    torch.testing.assert_close(columns @ columns.mT, _covariance(logits), rtol=1e-9, atol=1e-14)


def test_confident_models_keep_their_precision(generator):
    """Where 1 - p is 1e-13, p (1 - p) taken from the probabilities in float32 would be 0; its relative error is not 1."""
    logits = torch.tensor([[30.0, 0.0, -1.0]])
    columns = torch.stack(list(_cotangents(Categorical(), logits, "exact", generator)), dim=2)[0]
    p = logits[0].double().softmax(dim=0)
    truth = torch.diag(torch.stack([p[0] * (p[1] + p[2]), p[1] * (p[0] + p[2]), p[2] * (p[0] + p[1])]))
    truth = truth - (p[:, None] * p[None, :]).fill_diagonal_(0.0)
    torch.testing.assert_close((columns @ columns.mT).double(), truth, rtol=1e-4, atol=0.0)


@pytest.mark.parametrize("labels", ["rademacher", "mc"])
def test_random_cotangents_have_the_covariance(labels, generator):
    logits = torch.tensor([[1.0, 0.2, -0.7, -2.0]], dtype=torch.float64)
    draws = next(iter(_cotangents(Categorical(), logits.repeat(200_000, 1), labels, generator)))
    products = draws[:, :, None] * draws[:, None, :]
    error = products.std(dim=0) / len(draws) ** 0.5
    assert ((products.mean(dim=0) - _covariance(logits)[0]).abs() <= 4.5 * error + 1e-12).all()


def test_class_mix_has_bounded_variance(generator):
    """Relative variance of ||J^T c||^2 at most 2, however confident the model; that of sampled labels is not."""
    logits = torch.tensor([[6.0, 0.0, 1.0]], dtype=torch.float64).repeat(20_000, 1)
    jacobian = torch.randn(3, 7, generator=generator, dtype=torch.float64)

    def relative_variance(labels):
        c = next(iter(_cotangents(Categorical(), logits, labels, generator)))
        value = (c @ jacobian).square().sum(dim=1)
        return float(value.var() / value.mean() ** 2)

    assert relative_variance("rademacher") <= 1  # 2 (1 - 1 / rank) at most, and the rank is C - 1
    assert relative_variance("mc") > 20


def test_ignores_the_likeliest_class():
    logits = torch.tensor([[0.0, 2.0, 1.0]])
    a, b = torch.tensor([[1.0, 5.0, -1.0]]), torch.tensor([[1.0, -9.0, -1.0]])
    torch.testing.assert_close(apply_factor(logits, a), apply_factor(logits, b))


def test_unknown_labels(generator):
    with pytest.raises(ValueError, match="choose one of exact, rademacher, mc, empirical, argmax"):
        list(_cotangents(Categorical(), torch.randn(2, 3), "true", generator))


SOFTMAXES = {"categorical": (8, 5), "choice": (8, 2), "token": (8, 4, 5), "causal_lm": (1, 4, 300), "span": (8, 2, 5)}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("name", "shape"), SOFTMAXES.items())
def test_probabilities_are_refused(name, shape, dtype, generator):
    for scale in (0.0, 0.1, 3.0):
        f = scale * torch.randn(shape, generator=generator)
        with pytest.raises(ValueError, match=r"got probabilities .*: leave out the softmax"):
            LIKELIHOODS[name]().check(f.softmax(dim=-1).to(dtype), shape[0])
        LIKELIHOODS[name]().check(f.log_softmax(dim=-1).to(dtype), shape[0])
        LIKELIHOODS[name]().check(f.to(dtype), shape[0])


def test_long_rows_of_probabilities_are_refused(generator):
    f = torch.randn(2, 100_000, generator=generator)
    for dtype in (torch.float32, torch.bfloat16):
        with pytest.raises(ValueError, match="got probabilities"):
            Categorical().check(f.softmax(dim=1).to(dtype), 2)


@pytest.mark.parametrize(
    "f",
    [
        torch.zeros(4, 3),
        torch.eye(3),
        torch.rand(4, 3) + 0.4,
        torch.tensor([[0.25, 0.75]]),  # one row proves nothing
        torch.tensor([[0.25, 0.75], [0.25, 0.74]]),
        torch.tensor([[0.25, 0.75], [-0.25, 1.25]]),
        torch.tensor([[0.25, 0.75], [0.5, 0.5], [1.25, -0.25]]),
    ],
)
def test_logits_that_are_like_probabilities_are_not_refused(f):
    Categorical().check(f, len(f))


def test_other_likelihoods_take_numbers_that_sum_to_1():
    for name in ("gaussian", "bernoulli"):
        LIKELIHOODS[name]().check(torch.full((4, 2), 0.5), 4)


# Every other likelihood against a loop over outputs, in float64, that shares no code with fisherdyn.


def _gradients(model, wanted, value):
    return sum(float(g.square().sum()) for g in torch.autograd.grad(value, wanted, retain_graph=True))


def _softmaxes(f, model, wanted):
    """Sum over softmaxes of sum_y p_y ||grad log p_y||^2: they are independent, so cross terms have mean zero."""
    total = 0.0
    for row in f.reshape(-1, f.shape[-1]):
        log_p = row.log_softmax(dim=0)
        total += sum(float(log_p[y].detach().exp()) * _gradients(model, wanted, log_p[y]) for y in range(len(row)))
    return total


def _bernoulli(f, model, wanted):
    total = 0.0
    for x in f.flatten():
        for y in (0.0, 1.0):
            log_p = torch.nn.functional.logsigmoid(x if y else -x)
            total += float(log_p.detach().exp()) * _gradients(model, wanted, log_p)
    return total


def _gaussian(f, model, wanted, sigma=1.0):
    return sum(_gradients(model, wanted, x) for x in f.flatten()) / sigma**2


class Sequence(torch.nn.Module):
    """Outputs a position, with a cause to each of those that follow: attention by a cumulative mean."""

    def __init__(self, outputs):
        super().__init__()
        self.body, self.head = torch.nn.Linear(3, 4), torch.nn.Linear(4, outputs)

    def forward(self, x, attention_mask=None):
        h = self.body(x).tanh()
        return self.head(h.cumsum(dim=1) / torch.arange(1, x.shape[1] + 1)[:, None])


class Spans(Sequence):
    def forward(self, x):
        start, end = super().forward(x).unbind(dim=2)
        return SimpleNamespace(start_logits=start, end_logits=end)


MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]])


@pytest.mark.parametrize("method", ["hooks", "vmap"])
@pytest.mark.parametrize(
    ("name", "make", "truth"),
    [
        ("token", lambda: Sequence(3), lambda f, i, *w: _softmaxes(f[MASK[i].bool()], *w)),
        ("causal_lm", lambda: Sequence(3), lambda f, i, *w: _softmaxes(f[: int(MASK[i].sum()) - 1], *w)),
        ("span", lambda: Spans(2), lambda f, i, *w: _softmaxes(torch.stack([f.start_logits, f.end_logits]), *w)),
        ("gaussian", lambda: Sequence(2), lambda f, i, *w: _gaussian(f, *w)),
        ("bernoulli", lambda: torch.nn.Sequential(Sequence(2), torch.nn.Flatten()), lambda f, i, *w: _bernoulli(f, *w)),
    ],
)
def test_exact_is_the_loop(name, make, truth, method):
    torch.manual_seed(0)
    model, x = make().double(), torch.randn(3, 4, 3).double()
    masked = name in ("token", "causal_lm")
    batch = {"x": x, "attention_mask": MASK} if masked else x
    found = fisher_trace(model, [batch], likelihood=name, labels="exact", method=method, layers=r"(body|head)")
    layers = {"body": [], "head": []}
    for parameter, weight in model.named_parameters():
        layers["body" if "body" in parameter else "head"].append(weight)
    for i in range(3):
        f = model(x[i : i + 1])
        one = SimpleNamespace(start_logits=f.start_logits[0], end_logits=f.end_logits[0]) if name == "span" else f[0]
        expected = [truth(one, i, model, wanted) for wanted in layers.values()]
        torch.testing.assert_close(found.values[i], torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=0)


@pytest.mark.parametrize("labels", ["rademacher", "mc"])
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_cotangents_have_the_covariance(name, labels, generator):
    """E[c c^T] of the random cotangents is that of the exact ones, entry by entry, within 4.5 standard errors."""
    shapes = {"categorical": (4,), "token": (2, 3), "causal_lm": (3, 2), "pixel": (1, 2, 3), "span": (2, 3)}
    shape = shapes.get(name, (3,))
    likelihood = LIKELIHOODS[name]()
    f = torch.randn(1, *shape, generator=generator, dtype=torch.float64)
    columns = torch.cat([c.flatten(1) for c in _cotangents(likelihood, f, "exact", generator)])
    draws = next(iter(_cotangents(likelihood, f.expand(100_000, *shape), labels, generator))).flatten(1)
    products = draws[:, :, None] * draws[:, None, :]
    error = products.std(dim=0) / len(draws) ** 0.5
    assert ((products.mean(dim=0) - columns.T @ columns).abs() <= 4.5 * error + 1e-12).all()


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_scores_are_gradients(name, generator):
    """ "empirical": the gradient of log p(y|f), by autograd of torch's own losses."""
    losses = {
        "gaussian": lambda f, y: 0.5 * (f - y).square().sum(),
        "bernoulli": lambda f, y: torch.nn.functional.binary_cross_entropy_with_logits(f, y.double(), reduction="sum"),
    }
    softmax = lambda f, y: torch.nn.functional.cross_entropy(f.flatten(0, -2), y.flatten(), reduction="sum")  # noqa: E731
    shape = {"token": (5, 4, 3), "causal_lm": (5, 4, 3), "pixel": (5, 2, 2, 3), "span": (5, 2, 6)}.get(name, (5, 3))
    f = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    y = torch.randint(2, shape if name in losses else shape[:-1])
    batch: object = {"labels": y}
    if name == "span":
        batch = {"start_positions": y[:, 0], "end_positions": y[:, 1]}
    if name in ("token", "causal_lm", "pixel"):
        y[0, 1] = -100
    (c,) = _cotangents(LIKELIHOODS[name](), f, "empirical", generator, batch)
    wanted = torch.cat([y[:, 1:], torch.full_like(y[:, :1], -100)], dim=1) if name == "causal_lm" else y
    (gradient,) = torch.autograd.grad(losses.get(name, softmax)(f, wanted), f)
    torch.testing.assert_close(c, -gradient)


def test_is_found_from_the_model():
    small = {
        "num_hidden_layers": 1,
        "hidden_size": 8,
        "num_attention_heads": 2,
        "intermediate_size": 8,
        "vocab_size": 20,
    }
    ids = {"input_ids": torch.randint(5, 20, (2, 6)), "attention_mask": torch.ones(2, 6, dtype=torch.long)}
    choices = {"input_ids": torch.randint(5, 20, (2, 3, 6)), "attention_mask": torch.ones(2, 3, 6, dtype=torch.long)}
    expected = {
        transformers.BertForSequenceClassification: ("categorical", ids, {"num_labels": 3}),
        transformers.BertForTokenClassification: ("token", ids, {}),
        transformers.BertForQuestionAnswering: ("span", ids, {}),
        transformers.BertForMultipleChoice: ("choice", choices, {}),
        transformers.BertLMHeadModel: ("causal_lm", ids, {"is_decoder": True, "num_labels": 3}),
    }
    for kind, (name, batch, options) in expected.items():
        model = kind(transformers.BertConfig(attn_implementation="eager", **small, **options))
        found = fisher_trace(model, [batch], layers=r"(attention\.output)")
        assert found.likelihood == name
        assert found.examples == 2
    for problem, name in (("regression", "gaussian"), ("multi_label_classification", "bernoulli")):
        config = transformers.BertConfig(problem_type=problem, num_labels=4, attn_implementation="eager", **small)
        model = transformers.BertForSequenceClassification(config)
        assert fisher_trace(model, [ids], layers=r"(attention\.output)").likelihood == name


def test_multiple_choice_counts_all_choices_as_one_example():
    small = {
        "num_hidden_layers": 1,
        "hidden_size": 8,
        "num_attention_heads": 2,
        "intermediate_size": 8,
        "vocab_size": 20,
    }
    torch.manual_seed(0)
    model = (
        transformers.BertForMultipleChoice(transformers.BertConfig(attn_implementation="eager", **small))
        .double()
        .eval()
    )
    ids = torch.randint(5, 20, (2, 3, 6))
    found = fisher_trace(model, [{"input_ids": ids}], layers={"0": ("bert.pooler.dense.weight",)}, labels="exact")
    wanted = [model.bert.pooler.dense.weight]
    expected = [_softmaxes(model(input_ids=ids[i : i + 1]).logits, model, wanted) for i in range(2)]
    torch.testing.assert_close(found.values[:, 0], torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=0)
