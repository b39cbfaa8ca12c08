"""What a reading is worth: label noise in trained models, and the time to a 5 % standard error on every layer.

Two encoders of four layers are trained on the spot, on 3 and on 10 classes, until they are right on 96 % of fresh inputs. On
inputs that they never saw:

- label noise: the variance of one reading of one input over label draws and inputs, over that of exact labels, per layer;
- time to 5 %: (relative variance of a reading of one batch, worst layer) / 0.05^2 batches times the seconds of one batch.
  The reading of a method that sees single examples is their mean over the batch; that of a batch gradient is its square.
  Variances come from many more batches than are timed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import BertConfig, BertForSequenceClassification

from fisherdyn import FisherTrace, fisher_trace
from fisherdyn.layers import resolve_layers

from .peers import opacus
from .workloads import Inputs, Workload

BATCH, LENGTH, BATCHES, TIMED, REPEATS = 32, 32, 64, 8, 4
TARGET = 0.05
CLASSES = (3, 10)
OURS: dict[str, dict[str, str]] = {
    "hooks, rademacher": {},
    "hooks, exact": {"labels": "exact"},
    "hooks, mc": {"labels": "mc"},
    "batch, sampled labels": {"labels": "mc", "method": "batch"},
}
"""Method -> options of fisher_trace."""
BASE, PEER = "batch, sampled labels", "Opacus, ghost, sampled labels"
Clock = Callable[[torch.device], float]


def _sentences(classes: int, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Tokens of which some are markers of a class; the label is the class with most markers, two more than any other."""
    ids = torch.randint(classes, 100, (batch, LENGTH), generator=generator)
    labels = torch.randint(classes, (batch,), generator=generator)
    places = torch.rand(batch, LENGTH, generator=generator).argsort(dim=1)
    others = torch.randint(classes, (batch, 4), generator=generator)
    ids.scatter_(1, places[:, :4], others)
    most = torch.nn.functional.one_hot(others, classes).sum(dim=1).amax(dim=1)
    for i in range(6):
        place = places[:, 4 + i : 5 + i]
        ids.scatter_(1, place, torch.where(i < most + 2, labels, ids.gather(1, place)[:, 0])[:, None])
    return ids, labels


def _inputs(ids: Tensor) -> dict[str, Tensor]:
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def trained(classes: int, accuracy: float = 0.96, seed: int = 0) -> tuple[BertForSequenceClassification, float]:
    """An encoder of four layers, 96 wide, and its accuracy on 1,024 fresh inputs."""
    torch.manual_seed(seed)
    g = torch.Generator().manual_seed(seed)
    config = BertConfig(
        vocab_size=100,
        num_hidden_layers=4,
        hidden_size=96,
        intermediate_size=192,
        num_attention_heads=4,
        num_labels=classes,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        attn_implementation="eager",
    )
    model = BertForSequenceClassification(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4)
    reached = 0.0
    for step in range(4000):
        ids, labels = _sentences(classes, 64, g)
        loss = cross_entropy(model(**_inputs(ids)).logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 99:
            ids, labels = _sentences(classes, 1024, g)
            with torch.no_grad():
                reached = float((model(**_inputs(ids)).logits.argmax(dim=1) == labels).float().mean())
            if reached >= accuracy:
                break
    return model.eval(), reached


def measure(device: torch.device, clock: Clock) -> dict[str, Any]:
    return {f"{classes} classes": _of(classes, device, clock) for classes in CLASSES}


def _of(classes: int, device: torch.device, clock: Clock) -> dict[str, Any]:
    model, accuracy = trained(classes)
    model.to(device)
    g = torch.Generator().manual_seed(1)
    batches: list[Inputs] = [_inputs(_sentences(classes, BATCH, g)[0].to(device)) for _ in range(BATCHES)]
    layers = resolve_layers(model, r"layer\.(\d+)\.")

    def read(options: dict[str, str], some: list[Inputs], seed: int = 0) -> FisherTrace:
        g = torch.Generator().manual_seed(seed)
        return fisher_trace(model, some, layers=layers, likelihood="categorical", generator=g, **options)  # type: ignore[arg-type]

    # Sampled labels have heavy tails: several readings of the same inputs.
    traces = {
        name: [read(options, batches, seed) for seed in range(1 if options.get("labels") == "exact" else REPEATS)]
        for name, options in OURS.items()
    }
    exact = traces["hooks, exact"][0].values.var(dim=0)
    noise = {
        name: (torch.stack([t.values.var(dim=0) for t in traces[name]]).mean(dim=0) / exact).tolist()
        for name in ("hooks, rademacher", "hooks, mc")
    }
    truth = traces["hooks, exact"][0].trace
    variance = {
        name: float(torch.stack([(t.se / truth).square() for t in ts]).mean(dim=0).max()) * BATCHES
        for name, ts in traces.items()
    }
    work = Workload(model, batches[:TIMED], [torch.zeros(BATCH, dtype=torch.long, device=device)] * TIMED, layers)
    seconds = {name: _seconds(partial(read, options, work.batches), clock, device) for name, options in OURS.items()}
    ghost = opacus(work)
    seconds[PEER] = _seconds(
        lambda: [ghost(x, y) for x, y in zip(work.batches, work.labels, strict=True)], clock, device
    )
    variance[PEER] = variance["hooks, mc"]
    return {
        "accuracy": accuracy,
        "label noise": noise,
        "relative variance of one batch": variance,
        "seconds a batch": seconds,
        "seconds to 5 %": {name: variance[name] / TARGET**2 * seconds[name] for name in variance},
    }


def _seconds(method: Callable[[], Any], clock: Clock, device: torch.device, rounds: int = 7) -> float:
    """Of one batch: the median over rounds, after one that warms up."""
    method()
    found = []
    for _ in range(rounds):
        started = clock(device)
        method()
        found.append((clock(device) - started) / TIMED)
    return sorted(found)[rounds // 2]


def tables(found: dict[str, Any]) -> str:
    """Markdown: label noise, then times."""
    rows = [f"| variance of a reading over that of exact labels, worst layer | {' | '.join(found)} |"]
    rows.append("|---" * (1 + len(found)) + "|")
    for name in ("hooks, rademacher", "hooks, mc"):
        rows.append(
            f"| {name} | " + " | ".join(f"{max(one['label noise'][name]):.3f}" for one in found.values()) + " |"
        )
    rows += ["", f"| seconds to 5 % on every layer, models {_accuracies(found)} right | {' | '.join(found)} |"]
    rows.append("|---" * (1 + len(found)) + "|")
    for name in (BASE, PEER, *(name for name in OURS if name != BASE)):
        cells = []
        for one in found.values():
            seconds = one["seconds to 5 %"]
            cells.append(
                f"{seconds[name]:.2f} (1/{seconds[BASE] / seconds[name]:.1f}, 1/{seconds[PEER] / seconds[name]:.1f})"
            )
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
    rows.append(f"\nIn parentheses: as a share of {BASE!r}, and of {PEER!r}.")
    return "\n".join(rows)


def _accuracies(found: dict[str, Any]) -> str:
    return " and ".join(f"{100 * one['accuracy']:.1f} %" for one in found.values())
