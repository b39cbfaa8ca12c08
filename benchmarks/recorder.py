"""python -m benchmarks.recorder: which share of a training run recording takes, next to what its traces alone cost.

Adapters are trained on the embedded world as a study trains them (12 layers, batches of 32), and recorded every 100 steps,
into a store on disk, with tr(F) from 1, 10 and 40 batches of training's size. At every record `fisher_trace` alone is timed
too, on the same state and batches, before the recorder is or after it in turns, and is taken out of the run's time.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from fisherdyn import Recorder, fisher_trace, tasks
from fisherdyn.record import provenance

BATCHES = (1, 10, 40)


def batches_for_ever(loader: tasks.Loader) -> Iterator[dict[str, Tensor]]:
    while True:
        yield from loader


class Clock:
    """Seconds between `start` and `stop`, added up."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def start(self, *_: object) -> None:
        self.began = time.perf_counter()

    def stop(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self.began


def run(count: int, steps: int, every: int, folder: Path) -> dict[str, float]:
    """One recorded run: seconds in all, in the recorder, and of its traces alone."""
    task = tasks.load("world")
    model = task.build_model(seed=0)
    probe = list(islice(batches_for_ever(task.train_loader(seed=1)), count))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    whole, recording, alone = Clock(), Clock(), Clock()

    def trace(at: int) -> Callable[..., None]:
        def measure(*_: object) -> None:
            if recorder.updates % every == 0 and recorder.updates // every % 2 == at:
                whole.stop()
                alone.start()
                fisher_trace(model, probe, layers=recorder.layers)
                alone.stop()
                whole.start()

        return measure

    recorder = Recorder(model, probe, every=every, path=folder / str(count))
    # Hooks run in the order in which they are registered: the recorder's lie between start and stop.
    optimizer.register_step_pre_hook(trace(0))
    optimizer.register_step_pre_hook(recording.start)
    optimizer.register_step_post_hook(recording.start)
    recorder.attach(optimizer)
    optimizer.register_step_pre_hook(recording.stop)
    optimizer.register_step_pre_hook(trace(1))
    optimizer.register_step_post_hook(recording.stop)
    train(model, optimizer, task.train_loader(seed=0), steps, whole)
    recorder.detach()
    return {"run": whole.seconds, "recording": recording.seconds, "traces": alone.seconds}


def train(model: nn.Module, optimizer: torch.optim.Optimizer, loader: tasks.Loader, steps: int, clock: Clock) -> None:
    for step, batch in enumerate(islice(batches_for_ever(loader), steps)):
        if step == 0:
            model(**batch).loss.backward()  # warms up
            optimizer.zero_grad()
            clock.start()
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    clock.stop()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recorder", description=__doc__)
    parser.add_argument("--steps", type=int, default=400, help="updates a run (%(default)s)")
    parser.add_argument("--every", type=int, default=100, help="steps between records (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "recorder.json", help="(%(default)s)")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        found = {count: run(count, args.steps, args.every, Path(folder)) for count in BATCHES}
    environment = {**provenance(), "processor": platform.processor() or platform.machine(), "threads": args.threads}
    kept = {"seconds": found, "steps": args.steps, "every": args.every, "environment": environment}
    args.out.write_text(json.dumps(kept, indent=1) + "\n")
    print(f"| recorded every {args.every} of {args.steps} steps, batches: | {' | '.join(map(str, found))} |")
    print("|---" * (1 + len(found)) + "|")
    rows = {
        "share of the run that recording takes": lambda s: f"{s['recording'] / s['run']:.1%}",
        "share that its traces alone would take": lambda s: (
            f"{s['traces'] / (s['run'] - s['recording'] + s['traces']):.1%}"
        ),
        "recording over traces alone": lambda s: f"{s['recording'] / s['traces']:.3f}",
        "seconds of the run": lambda s: f"{s['run']:.1f}",
    }
    for name, cell in rows.items():
        print(f"| {name} | {' | '.join(map(cell, found.values()))} |")
    print(args.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
