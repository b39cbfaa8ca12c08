"""python -m benchmarks.fun: what FUN's selections cost, and whether stopping early changes them.

world: FUN on the embedded world (k = 40, 800 steps, selections from the training set). At every selection the choice of the
stopping rule is compared with that of all 40 batches, which follow the same ones; training goes on with the rule's. Timed:
the rule's selections in every run, as it reads more in some than in others; training steps and the authors' procedure (a
deep copy of the model, 41 batches, whatever the run) in the first one. How often two equal layers would be told apart:
examples are drawn anew from those 40 batches, with the second-best layer's values scaled to the best one's mean, and the
rule is asked; beside it the same without its guard against tails.

paper: twelve layers x 768 with a language and a task adapter each, 128 tokens. A run of 10,000 steps with k = 50 is not run:
training steps and batches of both procedures are timed, 8 examples a batch, with one, half and all layers open. The share is
extrapolated with the number of batches that the rule reads on the world when asked one at a time, as of a large model:
of 32, the paper's smallest batch (a step and a measurement both grow with it), and, as the hard case, of 8.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn

from fisherdyn import fisher_trace, policies, selection, tasks
from fisherdyn.fisher.running_mean import BatchValues, RunningMean
from fisherdyn.layers import Layers
from fisherdyn.policies import Scores
from fisherdyn.schedule import Unfreezing
from fisherdyn.selection import Rule, Selection, choose

from .machine import environment
from .workloads import w1

Loader = list[dict[str, Tensor]]
OF_32, OF_8 = "batches of 32, one at a time", "batches of 8, one at a time"
"""What the rule reads of a model whose batches are not put together."""
TOLD_APART, UNGUARDED = "equal layers told apart", "equal layers told apart, without the guard"
OURS, THEIRS = "ours, share of training time", "theirs, share of training time"
SEVERAL = "theirs, share of training time, without the lone last candidate"
REDRAWN = 8
"""Samples with two equal layers, of every selection."""

_sampling = policies.fun().scoring
assert _sampling is not None
SAMPLING = _sampling


def seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = call()
    return time.perf_counter() - started, result


def best(scores: Scores) -> str:
    return max(reversed(list(scores)), key=lambda layer: scores[layer][0])


def authors(model: nn.Module, loader: Loader, candidates: Layers) -> None:
    """Their procedure: a deep copy, and the squared gradient of 41 batches' mean losses."""
    twin = copy.deepcopy(model)
    fisher_trace(twin, loader, layers=candidates, labels="argmax", method="authors", num_batches=41)


def update(model: nn.Module, optimizer: torch.optim.Optimizer, batch: dict[str, Tensor]) -> None:
    model.train()
    optimizer.zero_grad()
    model(**batch).loss.backward()
    nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
    optimizer.step()


def replayed(values: Tensor, size: int) -> tuple[int, bool]:
    """Batches of so many examples that the rule reads of kept values (examples, layers), and whether the best is a tie."""
    budget = min(SAMPLING.batches, len(values) // size)
    rule, read = Rule(budget, SAMPLING.error_rate), RunningMean()
    for rows in values[: budget * size].split(size):
        read.add(BatchValues(rows, size, 1))
        if rule.enough(read):
            break
    return read.batches, rule.confidence(read.values.numpy()) < 1 - SAMPLING.error_rate


def told_apart(values: Tensor, seed: list[int]) -> dict[str, float]:
    """How often the best of two equal layers is called established, with the guard against tails and without."""
    (highest, lower), (_, second) = values.mean(dim=0).topk(2)
    equal, rng = values.clone(), np.random.default_rng(seed)
    equal[:, second] *= highest / lower
    drawn = [equal[rng.integers(0, len(equal), len(equal))] for _ in range(REDRAWN)]
    share = lambda: float(np.mean([not replayed(x, 32)[1] for x in drawn]))  # noqa: E731
    guarded = share()
    unguarded = selection._leads
    with patch.object(selection, "_leads", lambda values, guarded=False: unguarded(values)):
        return {TOLD_APART: guarded, UNGUARDED: share()}


def optimizer_of(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr, weight_decay=0.01, fused=True)


def world(seed: int, lr: float, steps: int, interval: int, timed: bool) -> list[dict[str, float]]:
    """One row a selection, with the seconds that the training steps before it took."""
    task = tasks.load("world")
    model = task.build_model(seed)
    optimizer = optimizer_of(model, lr)
    unfreezing = Unfreezing(policies.fun(), task.layers(model), interval, seed=seed)
    batches = _forever(task.train_loader(seed))
    rows, training = [], 0.0
    for step in range(steps):
        if unfreezing.due(step):
            candidates = {n: p for n, p in unfreezing.layers.items() if n not in unfreezing.open_at(step)}
            loader = list(_first(task.train_loader(1000 * seed + step), 41))
            found, row = compared(model, loader, candidates, step, seed)
            theirs = seconds(lambda: authors(model, loader, candidates))[0] if timed else np.nan  # noqa: B023
            rows.append({"seed": seed, "step": step, "training": training, "theirs": theirs, **row})
            training = 0.0
            unfreezing.select(step, found)
        unfreezing.apply(model, step)
        training += seconds(lambda: update(model, optimizer, next(batches)))[0]
    rows.append({"training": training})
    return rows


def compared(
    model: nn.Module, loader: Loader, candidates: Layers, step: int, seed: int
) -> tuple[Selection, dict[str, float]]:
    """The rule's selection, and what it says beside that of the whole budget of batches of 32."""
    noise = [torch.Generator().manual_seed(step) for _ in range(2)]
    spent, found = seconds(lambda: choose(model, loader, candidates, SAMPLING, step=step, generator=noise[0]))
    row = {"ours": spent, "batches": found.batches, "tie": found.tie, "confidence": found.confidence}
    if len(candidates) == 1:
        return found, {**row, OF_32: 0, OF_8: 0}
    whole = fisher_trace(model, loader, layers=candidates, num_batches=SAMPLING.batches, generator=noise[1])
    read = {OF_32: replayed(whole.values, 32)[0], OF_8: replayed(whole.values, 8)[0]}
    row = {**row, "agree": best(found.scores) == best(whole.scores()), **read, **told_apart(whole.values, [seed, step])}
    return found, row


def _forever(loader: Any) -> Iterator[dict[str, Tensor]]:
    while True:
        yield from loader


def _first(loader: Any, n: int) -> Iterator[dict[str, Tensor]]:
    batches = _forever(loader)
    return (next(batches) for _ in range(n))


def paper(batches_read: dict[str, list[float]], rounds: int) -> dict[str, Any]:
    """Shares of the time of 10,000 steps; `batches_read` by the rule at each of its eleven selections, by size of batch."""
    work = w1()
    model, layers = work.model, list(work.layers)
    inputs = work.batches[0]
    assert isinstance(inputs, dict)
    batch = {**inputs, "labels": work.labels[0]}
    optimizer = optimizer_of(model, 1e-4)
    step_time, ours, theirs, copying = {}, {}, {}, seconds(lambda: copy.deepcopy(model))[0]
    for opened in (1, 6, 12):
        unfreezing = Unfreezing(policies.surgical(layers[-opened:]), work.layers, 50)
        unfreezing.apply(model, 0)
        candidates = {n: work.layers[n] for n in layers[: max(12 - opened, 2)]}
        spent: dict[str, list[float]] = {"step": [], "ours": [], "theirs": []}
        for _ in range(rounds + 1):
            spent["step"].append(seconds(lambda: update(model, optimizer, batch))[0])
            for name, method, labels in (("ours", "hooks", "rademacher"), ("theirs", "authors", "argmax")):
                measured = (model, [inputs])
                how: dict[str, Any] = {"layers": candidates, "method": method, "labels": labels}
                spent[name].append(seconds(partial(fisher_trace, *measured, **how))[0])
        middle = {name: float(np.median(values[1:])) for name, values in spent.items()}
        step_time[opened], ours[opened], theirs[opened] = middle["step"], middle["ours"], middle["theirs"]
    opened_at = [min(12, 1 + i) for i in range(12)]
    interpolate = lambda table, x: float(np.interp(x, list(table), list(table.values())))  # noqa: E731
    total = sum(50 * interpolate(step_time, x) for x in opened_at) + (10_000 - 600) * step_time[12]
    mine = {
        size: sum(n * interpolate(ours, x) for n, x in zip(reads, opened_at, strict=False))
        for size, reads in batches_read.items()
    }
    other = [41 * interpolate(theirs, x) + copying for x in opened_at[:11]]
    return {
        "seconds by open layers": {"a step": step_time, "a batch, ours": ours, "a batch, theirs": theirs},
        "deep copy": copying,
        "batches read": batches_read,
        OURS: {size: time / total for size, time in mine.items()},
        THEIRS: sum(other) / total,
        SEVERAL: sum(other[:-1]) / total,
    }


def worlds(seeds: list[int], lr: float, steps: int, interval: int) -> dict[str, Any]:
    """The rule on the world at one learning rate. The first seed's run goes to its end, to time the training.

    A lone last candidate is no choice: it counts in the times alone, and in the authors' with and without.
    """
    first, *others = seeds
    rows = [world(first, lr, steps, interval, timed=True)]
    rows += [world(seed, lr, 11 * interval + 1, interval, timed=False) for seed in others]
    choices = [row for run in rows for row in run[:-1]]
    measured = [row for row in choices if row["batches"]]
    early = [row for row in measured if row["batches"] < SAMPLING.batches]
    training = sum(row["training"] for row in rows[0])
    mean = lambda name, among: float(np.mean([row[name] for row in among]))  # noqa: E731
    return {
        "choices of several": len(measured),
        "agree": mean("agree", measured),
        "stopped early": len(early),
        "agree where stopped early": mean("agree", early),
        "share of examples": mean("batches", measured) / SAMPLING.batches,
        "ties": mean("tie", measured),
        TOLD_APART: mean(TOLD_APART, measured),
        UNGUARDED: mean(UNGUARDED, measured),
        OURS: float(np.mean([sum(row["ours"] for row in run[:-1]) for run in rows])) / training,
        THEIRS: sum(row["theirs"] for row in rows[0][:-1]) / training,
        SEVERAL: sum(row["theirs"] for row in rows[0][:-1] if row["batches"]) / training,
        "environment": environment(),
        "choices": choices,
    }


def read_by_selection(found: dict[str, Any]) -> dict[str, list[float]]:
    """Size of batch -> how many of them the rule read at the first, second, ... selection, mean over the world's runs."""
    runs: dict[tuple[str, float], list[dict[str, float]]] = {}
    for part, about in found.items():
        for row in about.get("choices", []):
            runs.setdefault((part, row["seed"]), []).append(row)
    return {
        size: np.mean([[row[size] for row in run] for run in runs.values()], axis=0).tolist() for size in (OF_32, OF_8)
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fun", description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[*range(320, 332)], help="(%(default)s)")
    parser.add_argument("--lr", type=float, nargs="+", default=[2e-3, 8e-3], help="of the world (%(default)s)")
    parser.add_argument("--steps", type=int, default=800, help="(%(default)s)")
    parser.add_argument("--interval", type=int, default=40, help="(%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="of the paper-sized timing (%(default)s)")
    parser.add_argument(
        "--only-paper", action="store_true", help="with the world's selections that are in --out already"
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "fun.json", help="(%(default)s)")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    found: dict[str, Any] = json.loads(args.out.read_text()) if args.only_paper else {}
    if not args.only_paper:
        for lr in args.lr:
            one = found[f"world, lr {lr:g}"] = worlds(args.seeds, lr, args.steps, args.interval)
            print(json.dumps({k: v for k, v in one.items() if k != "choices"}, indent=1), flush=True)
    extrapolated = paper(read_by_selection(found), args.rounds)
    found["paper-sized, extrapolated"] = {**extrapolated, "environment": environment()}
    print(json.dumps(found["paper-sized, extrapolated"], indent=1))
    args.out.write_text(json.dumps(found, indent=1) + "\n")
    print(args.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
