"""python -m benchmarks.sweep: what a sweep costs beside its training, and what a second worker saves.

Overhead: a study whose trainer does nothing but hand back a record of the usual size goes through plan, engine, store and
published dataset; the time of making the record is taken off. Memory: what the process holds more at the end than after the
first tenth of the runs. Workers: small real runs with one worker and with two, in turns; the ratio of their times.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

from fisherdyn import record
from fisherdyn.sweep.engine import Engine, InProcess, OnStep, Train, Watch
from fisherdyn.sweep.execute import execute
from fisherdyn.sweep.processes import Processes
from fisherdyn.sweep.running import run
from fisherdyn.sweep.runs import Run, Settings
from fisherdyn.sweep.store import SweepStore

from .machine import environment, status

NOTHING = Settings(steps=100, record_every=10, evaluate_every=25)
LAYERS, TARGETS = 12, 9


def nothing(one: Run, settings: Settings, on_step: OnStep) -> xr.Dataset:
    """A record as fit() gives it, made up."""
    rng = np.random.default_rng(one.seed)
    steps, evaluations = settings.record_steps(), settings.evaluation_steps()
    trace = rng.uniform(size=(len(steps), LAYERS))
    variables: dict[str, tuple[tuple[str, ...], Any]] = {
        "fisher_trace": (("step", "layer"), trace),
        "fisher_trace_se": (("step", "layer"), trace / 10),
        "trainable": (("step", "layer"), np.ones(trace.shape, dtype=np.int8)),
        "train_loss": (("step",), trace[:, 0]),
        "source_metric": (("step",), trace[:, 1]),
        "selected": (("layer",), np.arange(LAYERS)),
        "num_params": (("layer",), np.full(LAYERS, 1000)),
        "metric": (("eval_step", "target"), rng.uniform(size=(len(evaluations), TARGETS))),
    }
    layers, targets = [str(i) for i in range(LAYERS)], [chr(97 + i) for i in range(TARGETS)]
    coords = {"step": steps, "eval_step": evaluations, "layer": layers, "target": targets}
    return record.build(variables, coords, {"estimator": "none"})


class Timed:
    """`nothing`, and the seconds that it took; and memory, now and then."""

    def __init__(self) -> None:
        self.wall = self.cpu = 0.0
        self.resident: list[int] = []

    def __call__(self, one: Run, settings: Settings, on_step: OnStep) -> xr.Dataset:
        wall, cpu = time.perf_counter(), time.process_time()
        ds = nothing(one, settings, on_step)
        self.wall, self.cpu = self.wall + time.perf_counter() - wall, self.cpu + time.process_time() - cpu
        self.resident.append(status("VmRSS"))
        return ds


def overhead(runs: int) -> dict[str, float]:
    """Milliseconds a run, by the clock and of the processor, and MiB held more at the end than after a tenth of the runs."""
    made = [Run("standard", (), seed) for seed in range(runs)]
    train = Timed()
    wall, cpu = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        _do(Path(folder), made, NOTHING, lambda watch: InProcess(train, watch))
        wall, cpu = time.perf_counter() - wall - train.wall, time.process_time() - cpu - train.cpu
    held = np.array(train.resident) / 1024
    return {
        "runs": runs,
        "ms_a_run": round(1000 * wall / runs, 2),
        "processor_ms_a_run": round(1000 * cpu / runs, 2),
        "mib_more_in_the_last_nine_tenths": round(float(held[-1] - held[runs // 10]), 1),
    }


def _do(folder: Path, runs: list[Run], settings: Settings, engine: Any) -> None:
    with SweepStore(folder / "sweep", "sweep", runs, settings) as store, contextlib.redirect_stdout(io.StringIO()):
        if failed := run(store, engine, range(len(runs)), lambda: None):
            raise RuntimeError(f"{len(failed)} runs failed, such as: {next(iter(failed.values()))}")
        store.publish()


def workers(runs: int, steps: int, rounds: int) -> dict[str, Any]:
    """Seconds of small real runs with one worker and with two, round by round; the start of workers is part of it."""
    made = [Run("standard", (), seed) for seed in range(runs)]
    settings = replace(Settings(), steps=steps, record_every=steps, evaluate_every=steps)

    def seconds(count: int) -> float:
        def engine(watch: Watch) -> Engine:
            train: Train = execute
            return InProcess(train, watch) if count == 1 else Processes(train, watch, count)

        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            _do(Path(folder), made, settings, engine)
        return time.perf_counter() - started

    found = [{"one": round(seconds(1), 2), "two": round(seconds(2), 2)} for _ in range(rounds)]
    ratios = [one["two"] / one["one"] for one in found]
    return {"runs": runs, "steps": steps, "seconds": found, "median_ratio": round(float(np.median(ratios)), 3)}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sweep", description=__doc__)
    parser.add_argument("--runs", type=int, default=10_000, help="that do nothing (%(default)s)")
    parser.add_argument("--real-runs", type=int, default=8, help="(%(default)s)")
    parser.add_argument("--steps", type=int, default=100, help="of a real run (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="of one worker and two (%(default)s)")
    parser.add_argument("--only", choices=["overhead", "workers"], help="a part")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"), help="(benchmarks/sweep.json)")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    found: dict[str, Any] = json.loads(args.out.read_text()) if args.only and args.out.exists() else {}
    if args.only != "workers":
        found["overhead"] = overhead(args.runs)
    if args.only != "overhead":
        found["workers"] = workers(args.real_runs, args.steps, args.rounds)
    found["environment"] = environment()
    args.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))
    print(args.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
