"""Models built at random from blocks, and what happens when they are measured: `python tests/grammar.py --models 2000`."""

from __future__ import annotations

import argparse
import copy
import json
import random
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grammar_positions  # noqa: F401  its blocks are registered
import torch
from grammar_blocks import FAULTS, RULES, Cached, call, matrix
from oracle import cast, logits, per_example_trace
from remedies import Outcome, follow
from torch import Tensor, nn

WIDTH, VOCABULARY = 4, 9
Tree = tuple[Any, ...]
"""A block's name, and its children."""


@dataclass(frozen=True)
class Plan:
    """All that a model, its batches and the way of measuring them follow from."""

    seed: int
    shape: str
    blocks: tuple[Tree, ...]
    front: str
    pooling: str
    likelihood: str
    batches: tuple[tuple[int, int], ...]
    padding: str
    form: str
    layers: str
    method: str


# A plan at random


def draw(seed: int, index: int, fault: bool = False, pending: bool = False) -> Plan:
    choose = random.Random(f"{seed}/{index}")
    front = choose.choice(["vectors", "series", "tokens", "tokens", "tokens", "patches", "image"])
    shape = {"vectors": "row", "image": "image"}.get(front, "sequence")
    blocks = tuple(_tree(choose, shape, 2, pending) for _ in range(choose.randint(1, 4)))
    if fault:
        planted = (choose.choice([name for name, rule in FAULTS.items() if shape in rule.shapes]),)
        place = choose.randint(0, len(blocks))
        blocks = (*blocks[:place], planted, *blocks[place:])
    sequence = shape == "sequence"
    padding = choose.choice(["right", "right", "left", "none"]) if front in ("tokens", "series") else "none"
    n = 4 if front == "patches" else choose.randint(2, 4)
    sizes = [choose.randint(2 if fault else 1, 5) for _ in range(choose.randint(1, 2))]
    longer = int(front == "tokens")
    return Plan(
        seed=choose.randrange(10**6),
        shape=shape,
        blocks=blocks,
        front=front,
        pooling=choose.choice(POOLINGS) if sequence else "mean",
        likelihood=choose.choice(
            ["categorical", "categorical", "gaussian", "bernoulli", "token"][: 5 if sequence else 4]
        ),
        batches=tuple((size, n + choose.randint(0, longer)) for size in sizes),
        padding=padding,
        form=choose.choice(
            ["dict", "logits"] if front == "tokens" or padding != "none" else ["dict", "tuple", "tensor"]
        ),
        layers=choose.choice(["parameters", "parameters", "children"]),
        method=choose.choice(["hooks", "hooks", "hooks", "vmap"]),
    )


def _tree(choose: random.Random, shape: str, depth: int, pending: bool) -> Tree:
    names = [
        name
        for name, rule in RULES.items()
        if shape in rule.shapes and (depth or not rule.children) and (pending or not rule.pending)
    ]
    weights = [3 if RULES[name].children else 1 for name in names]
    name = choose.choices(names, weights)[0]
    return (name, *(_tree(choose, shape, depth - 1, pending) for _ in range(RULES[name].children)))


# The plan's model and batches


class Grown(nn.Module):
    def __init__(self, plan: Plan) -> None:
        super().__init__()
        d, n, self.plan = WIDTH, max(length for _, length in plan.batches), plan
        if plan.front in ("patches", "image"):
            self.front: nn.Module = nn.Conv2d(2, d, 2, stride=2)
        else:
            self.front = nn.Embedding(VOCABULARY, d, padding_idx=0) if plan.front == "tokens" else nn.Linear(3, d)
        self.blocks = nn.ModuleList(_grow(tree, d, n) for tree in plan.blocks)
        self.query = matrix(d) if plan.pooling in ("attended", "first_learned") else None
        self.head = nn.Linear(d, 3)

    def forward(
        self, x: Tensor | None = None, input_ids: Tensor | None = None, attention_mask: Tensor | None = None
    ) -> Any:
        mask = None if attention_mask is None else attention_mask.bool()
        h = self.front(x if input_ids is None else input_ids)
        h = h.flatten(2).mT if self.plan.front == "patches" else h
        for one in self.blocks:
            h = call(one, h, mask)
        f = self.head(h if self.plan.likelihood == "token" else self.pooled(h, mask))
        return SimpleNamespace(logits=f) if self.plan.form == "logits" else f

    def pooled(self, h: Tensor, mask: Tensor | None) -> Tensor:
        if self.plan.shape == "row":
            return h
        if self.plan.shape == "image":
            return h.mean(dim=(2, 3))
        if self.plan.pooling == "masked_mean" and mask is not None:
            return (h * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
        if self.plan.pooling == "max":
            return h.amax(dim=1)
        if self.plan.pooling in ("first", "last"):
            return h[:, 0 if self.plan.pooling == "first" else -1]
        if self.plan.pooling == "attended":
            scores = h @ self.query if mask is None else (h @ self.query).masked_fill(~mask, -1e9)
            return (scores.softmax(dim=1)[..., None] * h).sum(dim=1)
        if self.plan.pooling == "first_learned":
            h = torch.cat([self.query.expand(len(h), 1, -1), h], dim=1)
            return torch.softmax(h @ h.mT, dim=-1)[:, 0, None].bmm(h)[:, 0]
        return h.mean(dim=1)


POOLINGS = ("mean", "masked_mean", "max", "first", "last", "attended", "first_learned")


def _grow(tree: Tree, d: int, n: int) -> nn.Module:
    name, *children = tree
    return {**RULES, **FAULTS}[name].make(d, n, *(_grow(child, d, n) for child in children))


def grow(plan: Plan) -> tuple[nn.Module, list[Any], list[Any]]:
    """The model in float64, its batches, and the inputs of each batch."""
    torch.manual_seed(plan.seed)
    model = Grown(plan).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2.0)
    inputs = [cast(_inputs(plan, *size), torch.float64) for size in plan.batches]
    with_targets = [(x, torch.zeros(len(x), dtype=torch.long)) if plan.form == "tuple" else x for x in inputs]
    return model, with_targets, inputs


def _inputs(plan: Plan, examples: int, n: int) -> Any:
    if plan.front == "tokens":
        inputs = {"input_ids": torch.randint(1, VOCABULARY, (examples, n))}
    else:
        shape = {"vectors": (3,), "series": (n, 3), "patches": (2, 4, 4), "image": (2, 8, 8)}[plan.front]
        inputs = {"x": torch.randn(examples, *shape)}
    if plan.padding != "none":
        places, lengths = torch.arange(n), torch.randint(1, n + 1, (examples, 1))
        inputs["attention_mask"] = (places < lengths if plan.padding == "right" else places >= n - lengths).long()
        if "input_ids" in inputs:
            inputs["input_ids"] *= inputs["attention_mask"]
    return inputs if plan.form in ("dict", "logits") else inputs["x"]


def layers_of(plan: Plan, model: nn.Module) -> dict[str, tuple[str, ...]]:
    names = [name for name, _ in model.named_parameters()]
    if plan.layers == "parameters":
        return {name: (name,) for name in names}
    place = lambda name: ".".join(name.split(".")[: 2 if name.startswith("blocks") else 1])  # noqa: E731
    return {layer: tuple(name for name in names if place(name) == layer) for layer in dict.fromkeys(map(place, names))}


# What must come out


def truth(plan: Plan, model: nn.Module, inputs: list[Any], layers: dict[str, tuple[str, ...]]) -> Tensor:
    """(examples, layers) of all batches, by the oracle."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, Cached):
            module.keeps = False
    one = per_example_trace if plan.likelihood in ("categorical", "token") else _of_independent_outputs(plan.likelihood)
    return torch.cat([one(model, x, layers) for x in inputs])


def _of_independent_outputs(likelihood: str) -> Any:
    """sum over outputs k of Var[score_k] ||grad f_k||^2, one backward pass for each."""

    def trace(model: nn.Module, inputs: Any, layers: dict[str, tuple[str, ...]]) -> Tensor:
        model, rows = copy.deepcopy(model).requires_grad_(True), []
        n = len(inputs) if isinstance(inputs, Tensor) else len(next(iter(inputs.values())))
        for i in range(n):
            alone = inputs[i : i + 1] if isinstance(inputs, Tensor) else {k: v[i : i + 1] for k, v in inputs.items()}
            total = torch.zeros(len(layers), dtype=torch.float64)
            for f in logits(model, alone).flatten():
                model.zero_grad()
                f.backward(retain_graph=True)
                p = f.detach().sigmoid()
                grads = {name: w.grad for name, w in model.named_parameters() if w.grad is not None}
                norms = [
                    sum(grads[name].square().sum() for name in names if name in grads) for names in layers.values()
                ]
                total += torch.as_tensor(norms) * (p * (1 - p) if likelihood == "bernoulli" else 1.0)
            rows.append(total)
        return torch.stack(rows)

    return trace


# The attack


def attack(plan: Plan) -> Outcome:
    """As `remedies.follow`; a fault is "found", and a model without one is "accused"."""
    model, batches, inputs = grow(plan)
    layers = layers_of(plan, model)
    expected = truth(plan, model, inputs, layers)
    outcome = follow(model, batches, layers, expected, likelihood=plan.likelihood, method=plan.method)
    if outcome.kind == "mixing":
        return replace(outcome, kind="found" if has_fault(plan) else "accused")
    return outcome


def failed(outcome: Outcome) -> bool:
    return outcome.failed or outcome.kind == "accused"


def has_fault(plan: Plan) -> bool:
    return any(name in FAULTS for name, *_ in plan.blocks)


def shrink(plan: Plan, kind: str) -> Plan:
    """The smallest plan found that still ends so."""
    for smaller in _smaller(plan):
        try:
            if attack(smaller).kind == kind:
                return shrink(smaller, kind)
        except RuntimeError:  # no model: a piece is needed by another
            continue
    return plan


def _smaller(plan: Plan) -> Iterator[Plan]:
    for i, (_, *children) in enumerate(plan.blocks):
        before, after = plan.blocks[:i], plan.blocks[i + 1 :]
        yield replace(plan, blocks=before + after)
        for child in children:
            yield replace(plan, blocks=(*before, child, *after))
    for i in range(len(plan.batches) if len(plan.batches) > 1 else 0):
        yield replace(plan, batches=plan.batches[:i] + plan.batches[i + 1 :])
    for i, (examples, n) in enumerate(plan.batches):
        if examples > 1:
            yield replace(plan, batches=(*plan.batches[:i], (examples - 1, n), *plan.batches[i + 1 :]))
    if plan.padding != "none":
        yield replace(plan, padding="none")
    if plan.pooling not in ("mean", "max"):
        yield replace(plan, pooling="mean")


# The command


def _sign(outcome: Outcome) -> tuple[str, str]:
    """By which failures of one cause are known, so that one of them is shrunk and shown."""
    return outcome.kind, re.sub(r"[\d.]+", "", outcome.path.split(" -> ")[-1])[:90]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--faults", action="store_true", help="plant a fault in each model: a negative control")
    parser.add_argument("--pending", action="store_true", help="also blocks that are known not to be right yet")
    parser.add_argument("--out", type=Path, help="a file with a line a model, which a second run goes on with")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = options.out.read_text().splitlines() if options.out and options.out.exists() else []
    done = {record["index"]: record for record in map(json.loads, lines)}
    for index in range(options.models):
        if index not in done:
            plan = draw(options.seed, index, options.faults, options.pending)
            outcome = attack(plan)
            new = failed(outcome) and not any(
                _sign(outcome) == _sign(Outcome(r["kind"], r["path"])) for r in done.values()
            )
            smallest = shrink(plan, outcome.kind) if new else plan
            done[index] = {"index": index, **asdict(outcome), "plan": repr(smallest)}
            if options.out:
                with options.out.open("a") as file:
                    file.write(json.dumps(done[index]) + "\n")
            if new:
                print(f"model {index}: {outcome.kind}: {attack(smallest).path}\n    {smallest}", flush=True)
    print(dict(Counter(record["kind"] for record in done.values())))


if __name__ == "__main__":
    main()
