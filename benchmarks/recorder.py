"""python -m benchmarks.recorder: which share of a training run recording takes, next to what its traces alone cost.

Adapters are trained on the embedded world as a study trains them (12 layers, batches of 32) and recorded into a file on
disk, with tr(F) from 1, 10 and 40 batches of training's size. Every other step is recorded; the share at one record in 100
steps follows from the median record and the median step in between, which has the recorder's hooks too. At every record
`fisher_trace` alone is timed as well, on the same state and batches, before the recorder and after it in turns. The first
record, which also makes the store, is reported by itself.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fisherdyn import Recorder, fisher_trace, tasks

from .machine import environment

BATCHES, EVERY = (1, 10, 40), 100


def batches_for_ever(loader: tasks.Loader) -> Iterator[dict[str, Tensor]]:
    while True:
        yield from loader


def timed(clock: list[float], *, starts: bool) -> None:
    """Adds a span of time to the clock: begun, it is minus the time it began at."""
    now = time.perf_counter()
    if starts:
        clock.append(-now)
    else:
        clock[-1] += now


def run(count: int, records: int, folder: Path) -> dict[str, list[float]]:
    """One recorded run: seconds of each record, of its trace alone, and of each step in between."""
    task = tasks.load("world")
    model = task.build_model(seed=0)
    probe = list(islice(batches_for_ever(task.train_loader(seed=1)), count))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    recorder = Recorder(model, probe, every=2, path=folder / f"{count}.nc")
    before: list[float] = []
    after: list[float] = []
    # Hooks run in the order in which they are registered: the recorder's lie between start and stop.
    optimizer.register_step_pre_hook(lambda *_: timed(before, starts=True))
    optimizer.register_step_post_hook(lambda *_: timed(after, starts=True))
    recorder.attach(optimizer)
    optimizer.register_step_pre_hook(lambda *_: timed(before, starts=False))
    optimizer.register_step_post_hook(lambda *_: timed(after, starts=False))
    found: dict[str, list[float]] = {"record": [], "trace": [], "step": []}

    def trace_alone() -> None:
        timed(found["trace"], starts=True)
        fisher_trace(model, probe, layers=recorder.layers)
        timed(found["trace"], starts=False)

    trace_alone()  # warms up
    found["trace"].clear()
    for step, batch in enumerate(islice(batches_for_ever(task.train_loader(seed=0)), 2 * records)):
        began = time.perf_counter()
        model(**batch).loss.backward()
        forward = time.perf_counter() - began
        recorded, first = step % 2 == 0, step % 4 == 0
        if recorded and first:
            trace_alone()
        began = time.perf_counter()
        optimizer.step()
        optimizer.zero_grad()
        update = time.perf_counter() - began
        if recorded and not first:
            trace_alone()
        if recorded:
            found["record"].append(before[-1] + after[-1])
        else:
            found["step"].append(forward + update)
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recorder", description=__doc__)
    parser.add_argument("--records", type=int, default=11, help="of each run, at least 3 (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "recorder.json", help="(%(default)s)")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        found = {count: run(count, args.records, Path(folder)) for count in BATCHES}
    made_on = environment(threads=args.threads)
    args.out.write_text(json.dumps({"seconds": found, "environment": made_on}, indent=1) + "\n")

    def share(seconds: dict[str, list[float]], what: str) -> float:
        one = np.median(seconds[what][1:])
        return float(one / (EVERY * np.median(seconds["step"]) + one))

    rows = {
        f"recording, share of a run with a record every {EVERY} steps": lambda s: f"{share(s, 'record'):.1%}",
        "its traces alone": lambda s: f"{share(s, 'trace'):.1%}",
        "a record over its trace, median": lambda s: f"{np.median(np.divide(s['record'], s['trace'])[1:]):.3f}",
        "the first record over its trace, once a run": lambda s: f"{s['record'][0] / s['trace'][0]:.2f}",
        "a step, ms": lambda s: f"{1e3 * np.median(s['step']):.0f}",
    }
    print(f"| batches of tr(F) | {' | '.join(map(str, found))} |")
    print("|---" * (1 + len(found)) + "|")
    for name, cell in rows.items():
        print(f"| {name} | {' | '.join(map(cell, found.values()))} |")
    print(args.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
