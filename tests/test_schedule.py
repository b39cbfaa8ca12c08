"""Which layers are open at which step: the table of every policy."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fisherdyn import policies
from fisherdyn.schedule import Unfreezing

LAYERS = {name: (f"{i}.weight", f"{i}.bias") for i, name in enumerate("0123")}
SCORES = {"0": (5.0, 0.1), "1": (1.0, 0.1), "2": (3.0, 0.1), "3": (9.0, 0.1)}

TABLE = {
    "standard": (policies.all_at_once(), {0: "0123"}),
    "top_down": (policies.top_down(), {0: "3", 10: "2", 20: "1", 30: "0"}),
    "bottom_up": (policies.bottom_up(), {0: "3", 10: "0", 20: "1", 30: "2"}),
    "linear_probing": (policies.linear_probing(), {10: "0123"}),
    "permutation": (policies.permutation([1, 0, 2]), {0: "3", 10: "1", 20: "0", 30: "2"}),
    "surgical": (policies.surgical([1, 3]), {0: "13"}),
    "fun": (policies.fun(), {0: "3", 10: "0", 20: "2", 30: "1"}),
}


def _opened(policy: policies.Policy, seed: int = 0, steps: int = 100) -> dict[int, str]:
    unfreezing = Unfreezing(policy, LAYERS, interval=10)
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        if unfreezing.due(step):
            unfreezing.select(step, SCORES, generator)
    return {step: "".join(layers) for step, layers in unfreezing.decisions if layers}


@pytest.mark.parametrize("name", TABLE)
def test_table(name):
    policy, expected = TABLE[name]
    assert _opened(policy) == expected


def test_random_order_opens_all_and_every_order():
    orders = {tuple(_opened(policies.random_order(), seed).values()) for seed in range(60)}
    assert {"".join(sorted("".join(order))) for order in orders} == {"0123"}
    assert {order[0] for order in orders} == {"3"}
    assert len(orders) == 6
    assert _opened(policies.random_order(), 7) == _opened(policies.random_order(), 7)


def test_fun_breaks_ties_upwards():
    equal = dict.fromkeys(SCORES, (1.0, 0.0))
    assert policies.fun().select(tuple(LAYERS), ("3",), equal, torch.Generator()) == ("2",)


def test_open_at_is_a_function_of_decisions():
    unfreezing = Unfreezing(policies.top_down(), LAYERS, interval=10)
    for step in (10, 20, 30):
        unfreezing.select(step, {}, torch.Generator())
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


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Unfreezing(policies.top_down(), LAYERS, 0), "interval of at least 1 step, got 0"),
        (lambda: Unfreezing(policies.permutation([0, 1]), LAYERS, 5), "names each of 0, 1, 2 once"),
        (lambda: Unfreezing(policies.permutation([0, 1, 1]), LAYERS, 5), "got 0,1,1"),
        (lambda: Unfreezing(policies.surgical([7]), LAYERS, 5), r"unknown layer\(s\) 7: the model has 0, 1, 2, 3"),
    ],
)
def test_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_policy_that_opens_what_is_open_is_refused():
    again = policies.Policy("again", lambda layers: layers[-1:], lambda layers, o, s, g: layers[-1:])
    unfreezing = Unfreezing(again, LAYERS, 10)
    with pytest.raises(ValueError, match="'again' chose \\['3'\\]"):
        unfreezing.select(10, {}, torch.Generator())
