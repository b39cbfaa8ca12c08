"""CONTRIBUTING's second column: one extension of each kind, in a folder of its own, by the command line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import xarray as xr

ROOT = Path(__file__).resolve().parent.parent

EXTENSIONS = '''
"""A task with a module of its own, and a rule, an estimator, a label mode, a policy and a statistic."""

from contextlib import contextmanager
from types import SimpleNamespace

import torch
from torch import nn

from fisherdyn import analysis
from fisherdyn.fisher.methods import Method
from fisherdyn.fisher.plain import PlainPass
from fisherdyn.fisher.rules import RULES, Rule, elementwise
from fisherdyn.labels import LabelMode
from fisherdyn.policies import Policy, Scoring


class Scale(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x):
        return x * self.weight


def as_vectors(module, x):
    return x.reshape(len(x), -1, x.shape[-1])


calls = []


def counted(module, a, d):
    calls.append(len(a))
    return elementwise(module, a, d)


RULES[Scale] = Rule(inputs=as_vectors, gradients=as_vectors, norms=counted)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.scale, self.head = nn.Linear(4, 6), Scale(6), nn.Linear(6, 3)

    def forward(self, x, labels=None):
        logits = self.head(self.scale(self.body(x).tanh()))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return SimpleNamespace(logits=logits, loss=loss)


class Task:
    name, source, targets, skipped, coordinates = "mine", "here", ("there",), {}, {}

    def check(self):
        pass

    def build_model(self, seed):
        torch.manual_seed(seed)
        return Model()

    def layers(self, model):
        return {name: tuple(f"{name}.{p}" for p, _ in module.named_parameters()) for name, module in model.named_children()}

    def train_loader(self, seed):
        g = torch.Generator().manual_seed(seed)
        return [
            {"x": torch.randn(8, 4, generator=g), "labels": torch.randint(3, (8,), generator=g)} for _ in range(9)
        ]

    def probe_loader(self):
        return self.train_loader(100)

    def evaluate_source(self):
        return lambda model: float(model.head.weight.detach().norm())

    def evaluate(self):
        return {"there": lambda model: float(model.body.weight.detach().norm())}


class TwoDraws(LabelMode):
    name = "two-draws"

    def draw(self, likelihood, f, generator, batch):
        for _ in range(2):
            yield likelihood.sampled_score(f, generator, batch) / 2**0.5


class OneByOne(Method):
    name, needs_check = "one-by-one", False
    batches = 0

    @contextmanager
    def forward(self, call):
        OneByOne.batches += 1
        yield OneByOnePass(call)


class OneByOnePass:
    folded = False

    def __init__(self, call):
        self.passes = [PlainPass(call.example(i)) for i in range(call.examples)]
        self.logits = torch.cat([plain.logits for plain in self.passes])
        self.signatures = [None] * len(call.layers)

    def squared_norms(self, cotangents, generator):
        rows = [plain.squared_gradients([c[i : i + 1] for c in cotangents]) for i, plain in enumerate(self.passes)]
        return torch.cat(rows, dim=1)


def largest(context):
    return (max(context.frozen, key=lambda layer: context.scores[layer][0]),)


mine = Policy("mine", lambda layers: layers[-1:], largest, Scoring(TwoDraws(), OneByOne(), batches=9), label="my own")


def share_of_the_head(ds):
    curve = ds["fisher_trace"]
    return (curve.sel(layer="head") / curve.sum("layer")).mean("step")
'''

STUDY = """
import extensions
from fisherdyn.sweep.execute import execute  # noqa: F401

options = {"task": "extensions:Task", "steps": 4, "lr": 1e-2, "interval": 1, "seeds": 2}
policies = [extensions.mine]
schedules = {"mine": {"policy": "mine"}, "standard": {"policy": "standard"}}
"""


def test_an_extension_of_each_kind_needs_no_edit_of_the_project(tmp_path):
    (tmp_path / "extensions.py").write_text(EXTENSIONS)
    (tmp_path / "mine.py").write_text(STUDY)
    path = os.pathsep.join([str(tmp_path), str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "fisherdyn.sweep", "mine.py", "--workers", "1", "--out", "runs"]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| mine |" in done.stdout
    with xr.open_dataset(tmp_path / "runs" / "mine.nc") as ds:
        assert ds["layer"].values.tolist() == ["body", "scale", "head"]
        assert ds["label"].values.tolist() == ["my own", "standard"] * 2
        runs = ds.isel(run=ds["policy"].values == "mine")
        # The policy's scores came from the estimator and labels of its own, over candidates.
        assert runs["selection_examples"].values[:, :2].tolist() == [[72, 0]] * 2  # a lone candidate is not measured
        assert bool((ds["fisher_trace"].sel(layer="scale") > 0).all())
    check = (
        "import extensions, torch, fisherdyn, xarray as xr\n"
        "ds = xr.open_dataset('runs/mine.nc')\n"
        "assert ((extensions.share_of_the_head(ds) > 0) & (extensions.share_of_the_head(ds) < 1)).all()\n"
        "task = extensions.Task(); model = task.build_model(0)\n"
        "exact = dict(layers=task.layers(model), labels='exact')\n"
        "hooks = fisherdyn.fisher_trace(model, task.probe_loader(), **exact)\n"
        "loop = fisherdyn.fisher_trace(model, task.probe_loader(), method=extensions.OneByOne(), **exact)\n"
        "assert extensions.calls and extensions.OneByOne.batches\n"
        "torch.testing.assert_close(hooks.values, loop.values, rtol=1e-4, atol=1e-9)\n"
        "two = fisherdyn.fisher_trace(model, task.probe_loader(), labels=extensions.TwoDraws())\n"
        "assert two.estimator == 'hooks/two-draws'\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", check],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
