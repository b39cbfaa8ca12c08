"""Which layers are open at which step: the table of every policy, by the paper's prose and as the authors' code has it."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from torch import nn

from fisherdyn import policies
from fisherdyn.schedule import Unfreezing, authors_steps
from fisherdyn.selection import Selection

LAYERS = {name: (f"{i}.weight", f"{i}.bias") for i, name in enumerate("0123")}
SCORES = {"0": (5.0, 0.1), "1": (1.0, 0.1), "2": (3.0, 0.1), "3": (9.0, 0.1)}
MEASURED = Selection(0, SCORES, 64, 2, 0.99, tie=False)

TABLE = {
    # name: policy, opened at which step, the same by the authors' code
    "standard": (policies.all_at_once(), {0: "0123"}, {0: "0123"}),
    "top_down": (policies.top_down(), {0: "3", 10: "2", 20: "1", 30: "0"}, {0: "3", 19: "2", 29: "1", 39: "0"}),
    "bottom_up": (policies.bottom_up(), {0: "3", 10: "0", 20: "1", 30: "2"}, {0: "3", 9: "0", 19: "1", 29: "2"}),
    "linear_probing": (policies.linear_probing(), {10: "0123"}, {9: "0123"}),
    "permutation": (
        policies.permutation([1, 0, 2]),
        {0: "3", 10: "1", 20: "0", 30: "2"},
        {0: "3", 9: "1", 19: "0", 29: "2"},
    ),
    "in groups": (policies.permutation([2, (1, 0)]), {0: "3", 10: "2", 20: "10"}, {0: "3", 9: "2", 19: "10"}),
    "surgical": (policies.surgical([1, 3]), {0: "13"}, {0: "13"}),
    "fun": (policies.fun(), {0: "3", 10: "0", 20: "2", 30: "1"}, {0: "3", 9: "0", 19: "2", 29: "1"}),
}


def _opened(policy, seed=0, steps=100, interval=10, layers=LAYERS):
    unfreezing = Unfreezing(policy, layers, interval, seed=seed)
    for step in range(steps):
        if unfreezing.due(step):
            unfreezing.select(step, MEASURED if policy.scoring else None)
    return {step: "".join(layers) for step, layers in unfreezing.decisions if layers}


@pytest.mark.parametrize("name", TABLE)
def test_table(name):
    policy, prose, authors = TABLE[name]
    assert _opened(policy) == prose
    assert _opened(policy, interval=authors_steps(policy, 10, layers=4)) == authors


def test_twelve_layers_as_the_authors_code_opens_them():
    """GU re-opens layer 11 at k, so that it lags the permutation 10, 9, ..., 0, which it is compared with, by one k."""
    layers = {str(i): (str(i),) for i in range(12)}
    permutation = policies.permutation(range(10, -1, -1))
    gu, order = (
        _opened(policy, steps=1000, interval=authors_steps(policy, 50, layers=12), layers=layers)
        for policy in (policies.top_down(), permutation)
    )
    assert gu == {0: "11", **{50 * (i + 2) - 1: str(10 - i) for i in range(11)}}
    assert order == {0: "11", **{50 * (i + 1) - 1: str(10 - i) for i in range(11)}}


def test_a_policy_that_asked_for_no_scores_is_told_how():
    by_score = policies.Policy("mine", lambda layers: layers[-1:], lambda c: (max(c.frozen, key=c.scores.__getitem__),))
    with pytest.raises(KeyError) as raised:
        _opened(by_score)
    assert "policy 'mine' gets no scores: pass scoring=Scoring()" in raised.value.__notes__[0]


def test_unequal_intervals():
    assert _opened(policies.top_down(), interval=[3, 4, 50]) == {0: "3", 3: "2", 4: "1", 50: "0"}
    assert _opened(policies.top_down(), interval=(5,)) == {0: "3", 5: "2"}
    assert _opened(policies.fun(), interval=authors_steps("fun", [3, 4, 50], 4)) == {0: "3", 2: "0", 3: "2", 49: "1"}


def test_the_authors_steps():
    """After k - 1, 2k - 1, ... updates; gradual unfreezing loses its first turn. Recorded from the option that this was."""
    assert authors_steps(policies.fun(), 10, layers=4) == (9, 19, 29, 39)
    assert authors_steps(policies.top_down(), 10, layers=4) == authors_steps("top_down", 10, 4) == (19, 29, 39)
    assert authors_steps("top_down", [3, 4, 50], 4) == (3, 49)
    assert authors_steps("fun", 1, 3) == (0, 1, 2)
    with pytest.raises(ValueError, match="layers as a whole number of at least 1, got 0"):
        authors_steps("fun", 10, 0)


@pytest.mark.parametrize("given", [np.int64(5), np.array([5, 10, 15, 20]), range(5, 25, 5), iter([5, 10, 15, 20])])
def test_whole_numbers_of_other_kinds(given):
    unfreezing = Unfreezing(policies.top_down(), LAYERS, given)
    assert unfreezing.due_steps == (5, 10, 15, 20)
    json.dumps(unfreezing.state_dict())


def test_random_order_opens_all_and_every_order():
    orders = {tuple(_opened(policies.random_order(), seed).values()) for seed in range(60)}
    assert {"".join(sorted("".join(order))) for order in orders} == {"0123"}
    assert {order[0] for order in orders} == {"3"}
    assert len(orders) == 6
    assert _opened(policies.random_order(), 7) == _opened(policies.random_order(), 7)


def test_open_at_is_a_function_of_decisions():
    unfreezing = Unfreezing(policies.top_down(), LAYERS, interval=10)
    for step in (10, 20, 30):
        unfreezing.select(step)
    assert [unfreezing.open_at(step) for step in (0, 9, 10, 29, 30)] == [
        ("3",), ("3",), ("3", "2"), ("3", "2", "1"), ("3", "2", "1", "0"),
    ]  # fmt: skip


def test_apply_freezes_and_drops_gradients():
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in LAYERS))
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    Unfreezing(policies.top_down(), LAYERS, interval=10).apply(model, 0)
    assert [p.requires_grad for p in model.parameters()] == [False] * 6 + [True] * 2
    assert [p.grad is None for p in model.parameters()] == [True] * 6 + [False] * 2


class Stack(nn.Sequential):
    """Four layers and a head; a classifier's logits come out."""

    def __init__(self):
        super().__init__(*(nn.Linear(2, 2) for _ in LAYERS), nn.Linear(2, 3))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Stack()


@pytest.fixture
def data():
    x = torch.randn(160, 2, generator=torch.Generator().manual_seed(1))
    return [(a, a.argmax(dim=1)) for a in x.split(8)]


def loop(model, unfreezing, optimizer, data, steps, start=0):
    """A hand-written loop that leaves zeros, not None, in gradients: the way in which AdamW moves what is frozen."""
    for step in range(start, steps):
        unfreezing.step()
        x, y = data[step % len(data)]
        optimizer.zero_grad(set_to_none=False)
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        yield {layer for layer in LAYERS if optimizer.state.get(model.get_parameter(LAYERS[layer][0]))}


@pytest.mark.parametrize("policy", [policies.top_down(), policies.linear_probing(), policies.fun()])
def test_a_loop_of_ones_own(model, data, policy):
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    unfreezing = Unfreezing(policy, LAYERS, 3).attach(model, optimizer, data)
    for step, trained in enumerate(loop(model, unfreezing, optimizer, data, 14)):
        assert trained == set(unfreezing.open_at(step))
        for layer in set(LAYERS) - trained:
            assert all(torch.equal(before[name], model.get_parameter(name)) for name in LAYERS[layer])
    assert set(unfreezing.open_at(13)) == set(LAYERS)


def test_a_step_that_comes_twice_is_asked_once(model, data):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    unfreezing = Unfreezing(policies.top_down(), LAYERS, 2).attach(model, optimizer)
    assert [unfreezing.step(step) for step in (0, 0, 1, 1, 2, 2, 3, 4)] == [(), (), (), (), ("2",), (), (), ("1",)]


@pytest.mark.parametrize(
    ("interval", "steps", "missed"),
    [
        (3, (0, 4), 3),  # batches are counted, four an update
        ([2, 5], (0, 1, 2, 3, 9), 5),
        (10, (50,), 10),  # resumed without the schedule's state
        ([0, 1, 2, 3], (1,), 0),  # counted from 1
    ],
)
def test_a_due_step_cannot_be_jumped_over(model, interval, steps, missed):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    unfreezing = Unfreezing(policies.bottom_up(), LAYERS, interval).attach(model, optimizer)
    for step in steps[:-1]:
        unfreezing.step(step)
    with pytest.raises(
        ValueError, match=rf"step\({steps[-1]}\) jumps over step {missed}, .*every update.*load_state_dict"
    ):
        unfreezing.step(steps[-1])


def test_steps_may_be_left_out_where_nobody_is_asked(model):
    """Between due steps, after the last one, and where all is open."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    unfreezing = Unfreezing(policies.top_down(), LAYERS, [2, 6]).attach(model, optimizer)
    assert [unfreezing.step(step) for step in (1, 2, 5, 6, 50, 99)] == [(), ("2",), (), ("1",), (), ()]
    for policy in (policies.all_at_once(), policies.linear_probing()):
        unfreezing = Unfreezing(policy, LAYERS, 2).attach(model, optimizer)
        for step in (0, 2, 50):
            unfreezing.step(step)
        assert set(unfreezing.open_at(50)) == set(LAYERS)


@pytest.mark.parametrize("policy", [policies.random_order, policies.fun])
@pytest.mark.parametrize("cut", [4, 5, 7])
def test_resume(model, data, policy, cut):
    """Through JSON, with weights and optimizer taken along as a user would: decisions and weights go on to the bit."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    unfreezing = Unfreezing(policy(), LAYERS, 2, seed=3).attach(model, optimizer, data)
    list(loop(model, unfreezing, optimizer, data, cut))
    again = Stack()
    again.load_state_dict(model.state_dict())
    new = torch.optim.AdamW(again.parameters(), lr=0.1)
    new.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    resumed = Unfreezing(policy(), LAYERS, 2, seed=99).attach(again, new, data)
    resumed.load_state_dict(json.loads(json.dumps(unfreezing.state_dict())))
    list(loop(model, unfreezing, optimizer, data, 12, cut))
    list(loop(again, resumed, new, data, 12, cut))
    assert repr(resumed.decisions) == repr(unfreezing.decisions)
    assert repr(resumed.selections) == repr(unfreezing.selections)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_resume_checks_the_mask_against_the_optimizer(model, data):
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    ahead = Unfreezing(policies.top_down(), LAYERS, 2).attach(model, optimizer)
    early = json.loads(json.dumps(ahead.state_dict()))
    list(loop(model, ahead, optimizer, data, 5))
    with pytest.raises(
        ValueError, match=r"layer\(s\) 1, 2 are frozen by the saved schedule, but the optimizer has trained"
    ):
        Unfreezing(policies.top_down(), LAYERS, 2).attach(model, optimizer).load_state_dict(early)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (Unfreezing(policies.bottom_up(), LAYERS, 2), "policy 'top_down', not 'bottom_up'"),
        (Unfreezing(policies.top_down(), LAYERS, 3), "interval 2, not 3"),
        (Unfreezing(policies.top_down(), LAYERS, [1, 3]), r"interval 2, not \[1, 3\]"),
        (Unfreezing(policies.top_down(), {"0": LAYERS["0"]}, 2), "layers"),
    ],
)
def test_resume_refuses_another_schedule(other, message):
    with pytest.raises(ValueError, match=f"saved schedule is another one: it has .*{message}"):
        other.load_state_dict(Unfreezing(policies.top_down(), LAYERS, 2).state_dict())


def test_an_optimizer_made_too_late(model):
    for p in [*model[0].parameters(), *model[1].parameters()]:
        p.requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    with pytest.raises(ValueError, match=r"lacks parameters of layer\(s\) 0, 1, .*make it while all layers"):
        Unfreezing(policies.top_down(), LAYERS, 2).attach(model, optimizer)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: Unfreezing(policies.top_down(), LAYERS, 0),
            r"interval that is a whole number of at least 1 update, .*got .*0",
        ),
        (lambda: Unfreezing(policies.top_down(), LAYERS, [3, 3]), "steps of at least 0 that increase"),
        (lambda: Unfreezing(policies.top_down(), LAYERS, []), "steps of at least 0 that increase"),
        (lambda: Unfreezing(policies.top_down(), LAYERS, 2.5), "interval that is a whole number .* got 2.5"),
        (lambda: Unfreezing(policies.top_down(), LAYERS, True), "interval that is a whole number .* got True"),
        (lambda: Unfreezing(policies.top_down(), LAYERS, None), "interval that is a whole number .* got None"),
        (lambda: Unfreezing(policies.top_down(), LAYERS, "2"), "interval that is a whole number .* got '2'"),
        (lambda: Unfreezing(policies.top_down(), LAYERS, [1.5, 3.2, 7]), r"got \[1\.5, 3\.2, 7\]"),
        (
            lambda: Unfreezing(policies.top_down(), LAYERS, np.int64(0)),
            r"interval that is a whole number of at least 1 update, .*got .*0",
        ),
        (lambda: Unfreezing(policies.top_down(), LAYERS, 2, seed=None), "seed as a whole number, got None"),
        (lambda: Unfreezing(policies.top_down(), LAYERS, [-1, 3]), "steps of at least 0 that increase"),
        (lambda: Unfreezing("fun", LAYERS, 5), "expected a policy"),
        (lambda: Unfreezing(policies.permutation([0, 1]), LAYERS, 5), "names each of 0, 1, 2 once"),
        (lambda: Unfreezing(policies.permutation([0, 1, 1]), LAYERS, 5), "got 0,1,1"),
        (lambda: Unfreezing(policies.surgical([7]), LAYERS, 5), r"unknown layer\(s\) 7: the model has 0, 1, 2, 3"),
        (lambda: Unfreezing(policies.top_down(), LAYERS, 5).step(), "attach"),
    ],
)
def test_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ({"a": ("zz",)}, "layer 'a': the model has no parameter 'zz'; it has 0.weight"),
        ({"a": "0.weight"}, "expected a dict of layer -> tuple of parameter names"),
        ({"a": ("0.weight",), "b": ("1.weight", "0.weight")}, "'0.weight' is in two layers, 'a' and 'b'"),
        ({"a": ()}, "layer 'a' has no parameters"),
        ({}, "no layer has a parameter"),
    ],
)
def test_layers_are_checked_as_fit_does(model, layers, message):
    optimizer = torch.optim.SGD(model.parameters(), lr=1)
    with pytest.raises(ValueError, match=message):
        Unfreezing(policies.top_down(), layers, 2).attach(model, optimizer)


def test_fun_needs_something_to_measure_on(model):
    with pytest.raises(ValueError, match="'fun' measures"):
        Unfreezing(policies.fun(), LAYERS, 2).attach(model, torch.optim.SGD(model.parameters(), lr=1))


@pytest.mark.parametrize("answer", [("3",), ("9",), ("1", "1")])
def test_a_wrong_answer_is_refused(answer):
    wrong = policies.Policy("wrong", lambda layers: layers[-1:], lambda now: answer)
    with pytest.raises(ValueError, match="'wrong' chose"):
        Unfreezing(wrong, LAYERS, 10).select(10)


@pytest.fixture
def process_group(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_distributed_data_parallel(model, data):
    """Frozen layers have no gradient, late ones are averaged: the wrapped model trains as the plain one does."""
    plain = copy.deepcopy(model)
    wrapped = nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
    for bare, called in ((plain, plain), (model, wrapped)):
        optimizer = torch.optim.AdamW(bare.parameters(), lr=0.1)
        unfreezing = Unfreezing(policies.fun(), LAYERS, 3).attach(called, optimizer, data)
        for step, (x, y) in enumerate(data[:14]):
            unfreezing.step(step)
            optimizer.zero_grad()
            nn.functional.cross_entropy(called(x), y).backward()
            optimizer.step()
        assert set(unfreezing.open_at(13)) == set(LAYERS)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), model.parameters(), strict=True))


@pytest.mark.usefixtures("process_group")
@pytest.mark.filterwarnings("ignore:You passed find_unused_parameters=true")
@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({}, "find_unused_parameters=True"),
        ({"find_unused_parameters": True, "static_graph": True}, "static_graph=False"),
        ({"find_unused_parameters": True}, "made while 2 parameters .* were frozen"),
    ],
)
def test_distributed_data_parallel_is_refused(model, how, message):
    for p in model[1].parameters():
        p.requires_grad_("made while" not in message)
    wrapped = nn.parallel.DistributedDataParallel(model, **how)
    with pytest.raises(ValueError, match=message):
        Unfreezing(policies.top_down(), LAYERS, 3).attach(wrapped, torch.optim.SGD(model.parameters(), lr=0.1))


@pytest.mark.parametrize("answer", ["3", ("q",), (0,), ("3", "3"), None])
def test_a_policys_answers_are_layers(answer):
    """Of start as of select: text is not read as layers letter by letter, and what is unknown is not passed over."""
    with pytest.raises(ValueError, match="policy 'mine'"):
        Unfreezing(policies.Policy("mine", lambda layers: answer, lambda context: ()), LAYERS, 10)
    unfreezing = Unfreezing(policies.Policy("mine", lambda layers: (), lambda context: answer), LAYERS, 10)
    with pytest.raises(ValueError, match="policy 'mine'"):
        unfreezing.select(10)
