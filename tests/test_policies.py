"""FUN's choice and how sure it is of it: error rates on models where the order of the traces is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from benchmarks import fun
from fisherdyn import FisherTrace, fisher_trace, policies, selection
from fisherdyn.fisher import distributed
from fisherdyn.fisher.running_mean import BatchValues, RunningMean
from fisherdyn.policies import Scoring, SelectionContext
from fisherdyn.selection import choose, reshuffled, stays_within

DRAWS = 500
GENERATOR = torch.Generator()


class Gates(nn.Module):
    """Two classes from logits w_0 g_0(x) + w_1 g_1(x) + ... at w = 0: layer l's tr(F) of one input is g_l(x)^2 / 4.

    So the inputs are the gates, their second moments over four are the traces, and any joint distribution can be had.
    """

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.weights = nn.ParameterList(nn.Parameter(torch.zeros(1, 1)) for _ in range(layers))

    def forward(self, x):
        z = sum(nn.functional.linear(x[:, [i]], w) for i, w in enumerate(self.weights))
        return torch.cat([z, torch.zeros_like(z)], dim=1)


def layers_of(model):
    return {str(i): (f"weights.{i}",) for i in range(len(model.weights))}


def test_the_constructed_traces_are_what_they_are_said_to_be():
    x = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    model = Gates(3)
    for method, labels in (("vmap", "exact"), ("vmap", "rademacher")):
        found = fisher_trace(model, [x], layers=layers_of(model), method=method, labels=labels)
        torch.testing.assert_close(found.values, x.double().square() / 4, rtol=1e-5, atol=1e-7)


def draws(sample, n=DRAWS, **options):
    """FUN's selections on the constructed values, drawn anew each time; fisher_trace is left out, as it is exact there."""
    for seed in range(n):
        yield _choose(sample(np.random.default_rng(seed)), **options)


def _choose(values, error_rate=0.05, batch=32):
    """`choose` with its measurement replaced by given values (examples, layers)."""

    def given(model, loader, *, enough, **_):
        read = RunningMean()
        for rows in loader:
            read.add(BatchValues(rows, len(rows), 1))
            if enough is not None and enough(read):
                break
        trace, se = read.mean_and_error()
        return FisherTrace(tuple(candidates), trace, se, (), (), read.values, read.examples, read.batches, "", "")

    original = selection.fisher_trace
    selection.fisher_trace = given
    try:
        chunks = torch.from_numpy(values).split(batch)
        candidates = {str(i): () for i in range(values.shape[1])}
        return choose(nn.Linear(1, 1), chunks, candidates, Scoring(error_rate=error_rate), step=0, generator=GENERATOR)
    finally:
        selection.fisher_trace = original


def chosen(selection):
    now = SelectionContext(0, tuple(selection.scores), (), selection.scores)
    return policies.fun().select(now)[0]


def at_most(share, n=DRAWS):
    """A count that a rate of `share` exceeds once in a thousand times."""
    from scipy import stats

    return stats.binom.isf(1e-3, n, share)


def exponential(means):
    """Gaps as in training: a common factor, and each layer's own."""
    return lambda rng, n=1280: rng.exponential(size=(n, 1)) * rng.gamma(4, size=(n, len(means))) / 4 * np.array(means)


def heavy(means):
    """A confident model: a few inputs hold nearly all of tr(F) (lognormal, coefficient of variation 7)."""
    return lambda rng, n=1280: rng.lognormal(-2, 2, (n, 1)) * rng.gamma(2, size=(n, len(means))) / 2 * np.array(means)


def uneven(means):
    """Layer 0's tr(F) is in fewer inputs than the others': differences are skewed, and early samples miss its tail."""

    def sample(rng, n=1280):
        rare = rng.lognormal(-0.5, 1, (n, 1))
        return np.concatenate([rare, rng.gamma(4, size=(n, len(means) - 1)) / 4], axis=1) * np.array(means)

    return sample


def test_a_known_order_is_found_early():
    """Layers 20 % apart: right in all but the promised share of 500 draws, on less than half of the examples."""
    found = list(draws(exponential([1.0, 1.2, 1.44, 1.0])))
    assert sum(chosen(s) != "2" for s in found) <= at_most(0.05)
    assert sum(chosen(s) != "2" and not s.tie for s in found) <= at_most(0.05)
    assert np.mean([s.examples for s in found]) < 640
    assert np.mean([s.tie for s in found]) < 0.5


@pytest.mark.parametrize(
    ("distribution", "means"),
    [(exponential, [1.0, 1.0, 1.0, 1.0, 0.5]), (heavy, [1.0, 1.0]), (heavy, [1.0] * 11), (uneven, [1.0, 1.0])],
)
def test_equal_layers_are_a_tie(distribution, means):
    """Whatever the number of equal layers and the tails: "not a tie" comes in at most the promised share of draws."""
    assert sum(not s.tie for s in draws(distribution(means))) <= at_most(0.05)


def test_the_plain_t_test_would_not_do():
    """The control: the same looks with neither the correction for them nor the guard against tails break the promise."""
    wrong = 0
    for seed in range(DRAWS):
        values = uneven([1.0, 1.0])(np.random.default_rng(seed))
        ahead = values[:, 0] - values[:, 1]
        t = [np.abs(ahead[:n].mean()) / ahead[:n].std(ddof=1) * n**0.5 for n in (64, 96, 160, 256, 384, 576, 864, 1280)]
        wrong += max(t) > 1.96
    assert wrong > 2 * at_most(0.05)


def test_identical_layers():
    values = exponential([1.0])(np.random.default_rng(0)).repeat(3, axis=1)
    found = _choose(values)
    assert (found.tie, found.confidence, found.examples, chosen(found)) == (True, 0.0, 1280, "2")


def test_stopping_does_what_the_whole_budget_does():
    """Layers 3 % apart, which 1,280 examples do not tell apart: the early choice is the full one in 95 % of draws.

    The control: at an error rate of .15 it is not.
    """
    sample = heavy([1.0, 1.03, 0.97])
    rule, hasty, full = (list(draws(sample, error_rate=rate)) for rate in (0.05, 0.15, 0.0))
    assert all(s.examples == 1280 for s in full)
    assert sum(chosen(a) != chosen(b) for a, b in zip(rule, full, strict=True)) <= at_most(0.05)
    assert sum(chosen(a) != chosen(b) for a, b in zip(hasty, full, strict=True)) > 2 * at_most(0.05)
    assert np.mean([s.examples for s in rule]) < 1280


@pytest.mark.parametrize(("lead", "part"), [(0.8, 0.2), (1.5, 0.4), (2.0, 0.6), (2.4, 0.9)])
def test_a_verdict_is_predicted_as_often_as_it_comes(lead, part):
    """Of walks of any drift that lead by so much after this part, the share that lead by 2.5 at the end."""
    rng = np.random.default_rng(0)
    drift = rng.uniform(-8, 12, 4_000_000)
    so_far = part * drift + part**0.5 * rng.standard_normal(len(drift))
    drift, so_far = (x[np.abs(so_far / part**0.5 - lead) < 0.02] for x in (drift, so_far))
    end = so_far + (1 - part) * drift + (1 - part) ** 0.5 * rng.standard_normal(len(drift))
    p = (end > 2.5).mean()
    assert abs(selection._establishes(lead, 2.5, part) - p) < 4 * (p * (1 - p) / len(drift)) ** 0.5 + 2e-3


@pytest.mark.parametrize("means", [[1.0, 1.1, 1.2], [1.0, 1.0]])
def test_the_benchmark_replays_the_rule(means):
    values = exponential(means)(np.random.default_rng(1))
    found = _choose(values)
    assert fun.replayed(torch.from_numpy(values), 32) == (found.batches, found.tie)
    told = fun.told_apart(torch.from_numpy(heavy([1.0, 0.5])(np.random.default_rng(0))), [0, 0])
    assert 0 <= told[fun.TOLD_APART] <= told[fun.UNGUARDED] < 0.5  # equal now, where .5 would be told apart at once


def test_few_examples_establish_nothing():
    """However clear the lead: 5 batches of 12 are 60, and 5 of 13 are 65."""
    values = exponential([1.0, 9.0])(np.random.default_rng(0), 65)
    few, enough = _choose(values[:60], batch=12), _choose(values, batch=13)
    assert (few.confidence, few.tie) == (0.0, True)
    assert (enough.confidence > 0.99, enough.tie) == (True, False)


def test_every_distribution_of_the_winner_keeps_the_level_for_one():
    """Equal expectations, normal means with any covariance: some layer leads all by 1.96 in at most 5 % of draws."""
    rng = np.random.default_rng(0)
    for _ in range(40):
        k = rng.integers(2, 12)
        root = rng.standard_normal((k, k)) * rng.lognormal(0, rng.choice([0.0, 1.0, 2.0]), (k, 1))
        draws_ = rng.standard_normal((2000, k)) @ root.T
        spread = np.sqrt(((root[:, None] - root[None]) ** 2).sum(-1)) + np.where(np.eye(k), 1.0, 0.0)
        lead = (draws_[:, :, None] - draws_[:, None]) / spread + np.where(np.eye(k), np.inf, 0.0)
        assert (lead.min(axis=2).max(axis=1) > 1.96).sum() <= at_most(0.05, 2000)


def test_brownian_motion_stays_within_as_often_as_computed():
    times = [2, 3, 5, 8, 12, 18, 27, 40]
    rng = np.random.default_rng(0)
    steps = rng.standard_normal((100_000, len(times))) * np.sqrt(np.diff([0, *times]))
    z = steps.cumsum(axis=1) / np.sqrt(times)
    for bound in (1.0, 2.0, 2.5):
        p = stays_within(bound, times)
        assert abs((np.abs(z).max(axis=1) < bound).mean() - p) < 4 * (p * (1 - p) / 1e5) ** 0.5
    assert stays_within(1.959964, [5]) == pytest.approx(0.95, abs=1e-6)


def test_confidence_counts_every_look():
    """That of the smallest lead, over all twelve looks that were planned, taken or not."""
    rng = np.random.default_rng(0)
    times = np.array([2, 3, 4, 5, 7, 9, 12, 15, 19, 24, 30, 40])
    steps = rng.standard_normal((100_000, len(times))) * np.sqrt(np.diff([0, *times]))
    highest = np.abs(steps.cumsum(axis=1) / np.sqrt(times)).max(axis=1)
    sample, compared = exponential([1.0, 1.0, 1.1]), 0
    for seed, found in enumerate(draws(sample, 60)):
        if 0.1 < found.confidence < 0.99:
            values, best = sample(np.random.default_rng(seed))[: found.examples], int(chosen(found))
            ahead = values[:, [best]] - np.delete(values, best, axis=1)
            ahead = np.concatenate([ahead, -np.abs(ahead).max(axis=0, keepdims=True)])
            lead = (np.sqrt(len(ahead)) * ahead.mean(axis=0) / ahead.std(axis=0, ddof=1)).min()
            assert found.confidence == pytest.approx((highest < lead).mean(), abs=0.02)
            compared += 1
    assert compared > 5


@pytest.fixture
def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))


SMALL = {str(i): (f"{i}.weight", f"{i}.bias") for i in (0, 2, 4)}


@pytest.fixture
def batches():
    return list(torch.randn(1400, 4, generator=torch.Generator().manual_seed(1)).split(32))


def test_scores_are_those_of_fisher_trace(small, batches):
    """Measured look by look, the same to the bit as at once."""
    found = choose(small, batches, SMALL, Scoring(error_rate=0.0), step=3, generator=torch.Generator().manual_seed(5))
    g = torch.Generator().manual_seed(5)
    trace = fisher_trace(small, batches, layers=SMALL, num_batches=40, generator=g)
    assert (found.step, found.batches, found.examples) == (3, 40, 1280)
    np.testing.assert_allclose([t for t, _ in found.scores.values()], trace.trace, rtol=1e-12)
    np.testing.assert_allclose([e for _, e in found.scores.values()], trace.se, rtol=1e-12)


def test_a_stream_without_a_length_is_read_up_to_the_budget(small, batches):
    class Stream(IterableDataset):
        def __iter__(self):
            yield from torch.cat(batches)

    loader = DataLoader(Stream(), batch_size=32)
    found = choose(small, loader, SMALL, Scoring(batches=5, error_rate=0.0), step=0, generator=torch.Generator())
    assert (found.batches, found.examples) == (5, 160)


def test_it_stops_where_the_lead_is_clear(small, batches):
    found = choose(small, batches, SMALL, Scoring(), step=0, generator=torch.Generator())
    assert found.batches < 10
    assert not found.tie
    assert found.confidence > 0.95


def test_authors_rule(small, batches):
    """argmax labels, the squared gradient of the batch's mean loss over the batch's size, 41 batches: by autograd alone."""
    policy = policies.fun(labels="argmax", method="authors")
    found = choose(small, batches, SMALL, policy.scoring, step=0, generator=torch.Generator())
    assert (found.batches, found.tie) == (41, False)
    assert np.isnan(found.confidence)
    sums = dict.fromkeys(SMALL, 0.0)
    for x in batches[:41]:
        logits = small(x)
        small.zero_grad()
        nn.functional.cross_entropy(logits, logits.argmax(dim=1)).backward()
        for layer, names in SMALL.items():
            sums[layer] += sum(float(small.get_parameter(n).grad.square().sum()) for n in names) / len(x) / 41
    np.testing.assert_allclose([t for t, _ in found.scores.values()], list(sums.values()), rtol=1e-4)
    assert chosen(found) == max(sums, key=sums.get)


def test_several_processes_share_one_budget(small, batches, monkeypatch):
    """That of a loader which all have whole, or of all their parts together."""
    monkeypatch.setattr(distributed, "several", lambda: True)
    monkeypatch.setattr(distributed.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(distributed.dist, "get_rank", lambda: 0)
    asked = []
    monkeypatch.setattr(selection, "fisher_trace", lambda *_, num_batches, **__: asked.append(num_batches) or 1 / 0)
    data = torch.utils.data.TensorDataset(torch.zeros(24, 4))
    mine = torch.utils.data.DistributedSampler(data, num_replicas=2, rank=0)
    for loader in (batches, batches[:12], torch.utils.data.DataLoader(data, 2, sampler=mine)):
        with pytest.raises(ZeroDivisionError):
            choose(small, loader, SMALL, Scoring(), step=0, generator=torch.Generator())
    assert asked == [20, 6, 6]


def test_a_lone_candidate_is_not_measured(small):
    found = choose(small, [], {"0": SMALL["0"]}, Scoring(), step=7, generator=torch.Generator())
    assert (found.examples, found.confidence, found.tie, chosen(found)) == (0, 1.0, False, "0")


def test_a_selection_leaves_no_trace(small):
    """A shuffling loader gives afterwards what it would have given, and the global random state stays."""
    data = [{"input": torch.randn(4), "labels": torch.tensor(0)} for _ in range(300)]
    loader = torch.utils.data.DataLoader(data, batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(2))
    state, before = torch.get_rng_state(), loader.generator.get_state()
    choose(small, loader, SMALL, Scoring(), step=0, generator=torch.Generator())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(loader.generator.get_state(), before)
    with_another = reshuffled(loader, None, 3)
    choose(small, with_another, SMALL, Scoring(), step=0, generator=torch.Generator())
    assert torch.equal(loader.generator.get_state(), before)
    assert next(iter(with_another))["input"].shape == (8, 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: policies.fun(method="authors"), 'labels="argmax" and method="authors" together'),
        (lambda: policies.fun(labels="argmax"), 'labels="argmax" and method="authors" together'),
        (lambda: policies.fun(method="batch"), "unknown method='batch' of FUN"),
        (lambda: policies.fun(labels="foo"), "unknown labels='foo' of FUN: choose one of exact, rademacher"),
        (lambda: policies.fun(labels=1), "unknown labels=1 of FUN"),
        (lambda: policies.surgical(["0", "0"]), "each layer once, got 0,0: leave out the second 0"),
        (lambda: policies.surgical([2, 1, "2"]), "each layer once, got 2,1,2: leave out the second 2"),
        (lambda: policies.fun(batches=0), "batches as a whole number of at least 1, got 0"),
        (lambda: policies.fun(batches=2.5), "batches as a whole number of at least 1, got 2.5"),
        (lambda: policies.fun(error_rate=5), "error_rate of at least 0"),
        (lambda: reshuffled(iter([]), None, 0), "pass loader="),
    ],
)
def test_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_refuses_loaders_that_training_would_lose(small, batches):
    with pytest.raises(ValueError, match="got an iterator: pass the loader itself"):
        choose(small, iter(batches), SMALL, Scoring(), step=0, generator=GENERATOR)
    shared = torch.utils.data.DataLoader(torch.zeros(8, 4), num_workers=1, persistent_workers=True)
    with pytest.raises(ValueError, match="a loader of their own"):
        choose(small, shared, SMALL, Scoring(), step=0, generator=GENERATOR)
    with pytest.raises(ValueError, match="gave no batch"):
        choose(small, [], SMALL, Scoring(), step=0, generator=GENERATOR)


def test_fun_breaks_ties_upwards():
    now = SelectionContext(0, ("0", "1", "2", "3"), ("3",), dict.fromkeys("012", (1.0, 0.0)))
    assert policies.fun().select(now) == ("2",)


@pytest.mark.parametrize(
    ("policy", "schedule", "label"),
    [
        ("top_down", "top_down", "GU (top-down)"),
        ("top_down", "top-down", "GU (top-down)"),
        ("top_down", "GU", "GU (top-down)"),
        ("linear_probing", "linear_probing", "LPFT"),
        ("linear_probing", "LPFT", "LPFT"),
        ("fun", "Fun", "FUN"),
        ("bottom_up", "reverse", "reverse"),
        ("full", "full", "full fine-tuning"),
        ("top_down", "top-down, k = 2", "top-down, k = 2"),
        ("standard", "9-8", "9-8"),
    ],
)
def test_a_schedule_that_bears_its_policys_name_is_shown_by_the_label(policy, schedule, label):
    assert policies.NAMED[policy].label_of(schedule) == label


def test_a_policy_is_labelled_by_its_id_unless_it_has_a_label():
    def none(_):
        return ()

    assert policies.Policy("mine", none, none).label == "mine"
    assert policies.Policy("mine", none, none, label="My own").label_of("Mine") == "My own"
