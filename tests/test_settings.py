"""Settings: checked when they are made, with errors of one line."""

from __future__ import annotations

import re
from dataclasses import FrozenInstanceError
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fisherdyn.settings import Checkpoints, Evaluation, Execution, Measurement, Optimization
from fisherdyn.validation import Count, Natural, check, fields_of


def optimization(**changes):
    return Optimization(**{"steps": 20, "lr": 1e-3, **changes})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: optimization(steps=0), "expected steps as a whole number of at least 1, got 0"),
        (lambda: optimization(steps=2.0), "expected steps as a whole number of at least 1, got 2.0"),
        (lambda: optimization(steps="20"), "expected steps as a whole number of at least 1, got '20'"),
        (lambda: optimization(steps=True), "expected steps as a whole number of at least 1, got True"),
        (lambda: optimization(steps=np.bool_(True)), "expected steps as a whole number of at least 1, got np.True_"),
        (lambda: optimization(accumulate=None), "expected accumulate as a whole number of at least 1, got None"),
        (lambda: optimization(lr="1e-3"), "expected lr as a number of at least 0, such as 1e-3, got '1e-3'"),
        (lambda: optimization(lr=-1), "expected lr as a number of at least 0, such as 1e-3, got -1"),
        (lambda: optimization(lr=float("nan")), "expected lr as a number of at least 0, such as 1e-3, got nan"),
        (lambda: optimization(lr=float("inf")), "expected lr as a number of at least 0, such as 1e-3, got inf"),
        (lambda: optimization(lr=True), "expected lr as a number of at least 0, such as 1e-3, got True"),
        (lambda: optimization(max_grad_norm=0), "expected max_grad_norm as a number above 0, got 0"),
        (lambda: optimization(lr_schedule="cosine"), "expected lr_schedule as one of constant, linear, got 'cosine'"),
        (
            lambda: optimization(learning_rate=1),
            "Optimization has no 'learning_rate': choose from steps, lr, lr_schedule, weight_decay, max_grad_norm, "
            "accumulate",
        ),
        (lambda: Optimization(lr=1e-3), "Optimization needs steps=, a whole number of at least 1"),
        (
            lambda: optimization(steps=0, lr=-1),
            "expected steps as a whole number of at least 1, got 0; expected lr as a number of at least 0, such as "
            "1e-3, got -1",
        ),
        (
            lambda: Measurement(loader=[], labels="empirical"),
            "expected labels as one of exact, rademacher, mc (the labels of the true Fisher), got 'empirical'",
        ),
        (lambda: Evaluation(every=0), "expected every as a whole number of at least 1 or None, got 0"),
        (lambda: Evaluation(every=1.5), "expected every as a whole number of at least 1 or None, got 1.5"),
        (lambda: Evaluation(source=3), "expected source as a function or None, got 3"),
        (
            lambda: Evaluation(patience=2),
            "patience and keep_best go by the source's metric: pass Evaluation(source=...)",
        ),
        (lambda: Execution(precision="fp16"), "expected precision as one of float32, bf16, got 'fp16'"),
        (
            lambda: Execution(accelerator=SimpleNamespace(mixed_precision="fp16")),
            'expected an Accelerator with mixed_precision="no", got \'fp16\': ask for Execution(precision="bf16") instead',
        ),
        (lambda: Checkpoints(folder="a", every=None), "expected every as a whole number of at least 1, got None"),
        (lambda: Checkpoints(folder=3), "expected folder as a path, got 3"),
        (lambda: check("step", -1, Natural), "expected step as a whole number of at least 0, got -1"),
    ],
)
def test_what_is_refused_is_said_in_one_line(make, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make()


def test_numpys_numbers_become_pythons():
    made = optimization(steps=np.int64(3), lr=np.float32(0.25), weight_decay=np.int32(0))
    assert made == optimization(steps=3, lr=0.25, weight_decay=0.0)
    assert [type(value) for value in (made.steps, made.lr, made.weight_decay)] == [int, float, float]
    assert type(check("every", np.int16(2), Count)) is int


def test_loaders_are_kept_as_they_are():
    loader = torch.utils.data.DataLoader([{"x": torch.ones(2)}])
    assert Measurement(loader=loader).loader is loader


def test_settings_do_not_change():
    with pytest.raises(FrozenInstanceError):
        optimization().steps = 3
    assert Evaluation().targets is not Evaluation().targets


def test_paths_may_be_texts():
    assert Checkpoints(folder="runs").folder == Path("runs")


@pytest.mark.parametrize("kind", [Optimization, Measurement, Evaluation, Execution, Checkpoints])
def test_every_field_has_a_help_of_one_line(kind):
    for field in fields_of(kind).values():
        assert field.help.endswith("."), field.name
        assert "\n" not in field.help
