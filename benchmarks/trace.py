"""python -m benchmarks.trace: what tr(F) of every layer costs, as a ratio to one plain forward and backward pass.

Workloads: W1 twelve layers x 768 with a language and a task adapter each, task adapters measured and trained, 3 classes,
batch 8, 128 tokens; W2 BERT 6 x 256, every weight of its blocks, batch 16, 64 tokens; W3 MLP 784-512-512-10, batch 256.
The methods take turns within a round, and the median over rounds of each one's ratio to the plain pass of the same round
is reported, with its quartiles.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import adapters
import numpy as np
import torch
from adapters import SeqBnConfig
from adapters.composition import Stack
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

from fisherdyn import fisher_trace
from fisherdyn.layers import Layers, resolve_layers
from fisherdyn.record import provenance

Inputs = dict[str, Tensor] | Tensor


@dataclass
class Workload:
    model: nn.Module
    inputs: Inputs
    labels: Tensor
    layers: Layers

    def loss(self) -> Tensor:
        output = self.model(**self.inputs) if isinstance(self.inputs, dict) else self.model(self.inputs)
        return nn.functional.cross_entropy(getattr(output, "logits", output), self.labels)


def _bert(layers: int, hidden: int, batch: int, length: int) -> tuple[BertForSequenceClassification, Inputs, Tensor]:
    config = BertConfig(
        vocab_size=1000,
        num_hidden_layers=layers,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_attention_heads=hidden // 64,
        num_labels=3,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        attn_implementation="eager",
    )
    ids = torch.randint(1000, (batch, length))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return BertForSequenceClassification(config), inputs, torch.randint(3, (batch,))


def w1() -> Workload:
    model, inputs, labels = _bert(12, 768, 8, 128)
    adapters.init(model)
    for name, reduction in (("language", 2), ("task", 16)):
        model.add_adapter(name, config=SeqBnConfig(reduction_factor=reduction))
    model.train_adapter(Stack("language", "task"))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".adapters.task." in name or name.startswith("classifier"))
    return Workload(model, inputs, labels, resolve_layers(model))


def w2() -> Workload:
    model, inputs, labels = _bert(6, 256, 16, 64)
    return Workload(model, inputs, labels, resolve_layers(model, r"layer\.(\d+)\."))


def w3() -> Workload:
    model = nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
    return Workload(model, torch.randn(256, 784), torch.randint(10, (256,)), resolve_layers(model))


WORKLOADS = {"W1": w1, "W2": w2, "W3": w3}


def _plain(work: Workload) -> None:
    work.loss().backward()
    work.model.zero_grad(set_to_none=True)


def _forward(work: Workload) -> None:
    with torch.no_grad():
        work.loss()


def _ours(method: str, labels: str) -> Callable[[Workload], None]:
    def measure(work: Workload) -> None:
        fisher_trace(work.model, [work.inputs], layers=work.layers, method=method, labels=labels)

    return measure


METHODS: dict[str, Callable[[Workload], None]] = {
    "plain forward + backward": _plain,
    "forward alone": _forward,
    "hooks, class_mix (the default)": _ours("hooks", "class_mix"),
    "hooks, exact": _ours("hooks", "exact"),
    "batch, class_mix": _ours("batch", "class_mix"),
    "authors, argmax": _ours("authors", "argmax"),
    "vmap, class_mix": _ours("vmap", "class_mix"),
}


def ratios(work: Workload, rounds: int) -> dict[str, list[float]]:
    """For each method (first quartile, median, third quartile) of its time over that of the plain pass."""
    seconds: dict[str, list[float]] = {name: [] for name in METHODS}
    for round_ in range(rounds + 1):
        for name, method in METHODS.items():
            started = time.perf_counter()
            method(work)
            if round_:  # the first one warms up
                seconds[name].append(time.perf_counter() - started)
    plain = np.array(seconds["plain forward + backward"])
    return {name: np.percentile(np.array(s) / plain, [25, 50, 75]).round(3).tolist() for name, s in seconds.items()}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trace", description=__doc__)
    parser.add_argument("--rounds", type=int, default=11, help="(%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (%(default)s)")
    parser.add_argument("--only", choices=WORKLOADS, action="append", help="a workload; may be repeated")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "trace.json", help="(%(default)s)")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    found = {name: ratios(WORKLOADS[name](), args.rounds) for name in args.only or WORKLOADS}
    environment = {**provenance(), "processor": platform.processor() or platform.machine(), "threads": args.threads}
    args.out.write_text(
        json.dumps({"ratios": found, "rounds": args.rounds, "environment": environment}, indent=1) + "\n"
    )
    print(f"| time, median ratio to plain forward + backward | {' | '.join(found)} |")
    print("|---" * (1 + len(found)) + "|")
    for name in METHODS:
        print(f"| {name} | " + " | ".join(f"{column[name][1]:.2f}" for column in found.values()) + " |")
    print(args.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
