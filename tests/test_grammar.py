"""Models drawn at random: right or refused with a remedy. Planted faults are found, and so is a wrong rule.

`python tests/grammar.py --models 2000` is the long run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace

import pytest
import remedies
import torch
from grammar import Plan, attack, draw, failed, shrink
from grammar_blocks import RULES

from fisherdyn.fisher.rules import RULES as RULES_OF_HOOKS

MODELS, SEED = 60, 0
PLAIN = Plan(
    seed=1,
    shape="sequence",
    blocks=(("mlp",),),
    front="series",
    pooling="mean",
    likelihood="categorical",
    batches=((4, 3),),
    padding="none",
    form="tensor",
    layers="parameters",
    method="hooks",
)
NOT_YET = {name: rule.pending for name, rule in RULES.items() if rule.pending}


def _pending(known: dict, names: Iterable) -> list:
    marks = {name: [pytest.mark.xfail(strict=True, reason=reason)] for name, reason in known.items()}
    return [pytest.param(name, marks=marks.get(name, [])) for name in names]


@pytest.mark.parametrize("index", range(MODELS))
def test_right_or_refused_with_a_remedy(index):
    outcome = attack(draw(SEED, index))
    assert not failed(outcome), outcome


@pytest.mark.parametrize("name", _pending(NOT_YET, RULES))
def test_each_block_alone(name):
    rule = RULES[name]
    image = rule.shapes == ("image",)
    inner = ("image_convolution",) if image else ("linear",)
    shape, front = ("image", "image") if image else ("sequence", "series")
    outcome = attack(replace(PLAIN, shape=shape, front=front, blocks=((name, *[inner] * rule.children),)))
    assert not failed(outcome), outcome


@pytest.mark.parametrize(
    ("seed", "block", "batch"),
    [(582112, ("transposed",), (1, 5)), (413481, ("both_ways", ("frozen", ("batch_norm",))), (2, 5))],
)
def test_what_the_long_run_found(seed, block, batch):
    """One weight is read elsewhere too, and one block sees the batch twice: 67 % off, and neither is refused."""
    plan = replace(PLAIN, seed=seed, blocks=(block,), batches=(batch,), front="tokens", form="dict", padding="right")
    outcome = attack(replace(plan, likelihood="token", layers="children"))
    assert not failed(outcome), outcome


def test_planted_faults_are_found():
    """Not one gives a wrong number. Nearly all are refused; the others do no harm in their batch."""
    outcomes = [attack(draw(SEED, index, fault=True)) for index in range(24)]
    kinds = Counter(outcome.kind for outcome in outcomes)
    assert not kinds["silent"], outcomes
    assert kinds["found"] + kinds["refused"] + kinds["circle"] >= 18, kinds


def test_a_wrong_rule_is_found(monkeypatch):
    linear = RULES_OF_HOOKS[torch.nn.Linear]
    wrong = replace(linear, norms=lambda *args: {name: 1.0001 * norm for name, norm in linear.norms(*args).items()})
    monkeypatch.setitem(RULES_OF_HOOKS, torch.nn.Linear, wrong)
    assert attack(PLAIN).kind == "silent"


def test_a_vague_refusal_an_exception_and_a_changed_model_are_found(monkeypatch):
    def measured_by(fault: Callable[..., None]) -> str:
        monkeypatch.setattr(remedies, "fisher_trace", fault)
        return attack(PLAIN).kind

    def change(model: torch.nn.Module, *args: object, **options: object) -> None:
        model.train()
        raise ValueError("front: use another")

    def refuse(*args: object, **options: object) -> None:
        raise ValueError("it does not work")

    def crash(*args: object, **options: object) -> None:
        raise KeyError("front")

    assert [measured_by(fault) for fault in (change, refuse, crash)] == ["changed", "vague", "raw"]


def test_a_failure_is_shrunk_to_its_cause():
    plan = replace(PLAIN, blocks=(("residual", ("mlp",)), ("cached",), ("attention",)), batches=((3, 3), (2, 3)))
    assert attack(plan).kind == "silent"
    assert shrink(plan, "silent").blocks == (("cached",),)
