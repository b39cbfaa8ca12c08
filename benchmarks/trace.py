"""python -m benchmarks.trace: what tr(F) of every layer costs, beside a plain training pass and beside what others do.

Time: the methods take turns within a round, each over all batches of a workload; the median over rounds of each one's ratio
to the plain forward and backward pass of the same round is reported, with its quartiles. On one thread of a CPU it is the
thread's own time, so that a busy machine counts less. Memory: the peak over the model's own, each method in a process of its
own, as a ratio to the plain pass. Label noise and the time to a 5 % standard error: `benchmarks.noise`.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fisherdyn import fisher_trace

from . import noise
from .machine import environment, status
from .peers import PEERS, DoesNotRun, Step, forward, plain
from .workloads import WORKLOADS, Workload

PLAIN = "plain forward + backward"
Method = Callable[[], None]
"""All batches of a workload, once."""


def _ours(method: str = "hooks", labels: str = "rademacher") -> Callable[[Workload], Method]:
    def prepare(work: Workload) -> Method:
        return lambda: _measure(work, method=method, labels=labels)

    return prepare


def _measure(work: Workload, **options: str) -> None:
    fisher_trace(work.model, work.batches, layers=work.layers, likelihood="categorical", **options)  # type: ignore[arg-type]


def _theirs(peer: Callable[[Workload], Step]) -> Callable[[Workload], Method]:
    def prepare(work: Workload) -> Method:
        step = peer(work)

        def all_batches() -> None:
            for inputs, labels in zip(work.batches, work.labels, strict=True):
                step(inputs, labels)

        return all_batches

    return prepare


METHODS: dict[str, Callable[[Workload], Method]] = {
    PLAIN: _theirs(plain),
    "forward alone": _theirs(forward),
    "hooks, rademacher (the default)": _ours(),
    "hooks, exact": _ours(labels="exact"),
    "batch, rademacher": _ours("batch"),
    "vmap, rademacher": _ours("vmap"),
    **{name: _theirs(peer) for name, peer in PEERS.items()},
}


def prepared(work: Workload) -> dict[str, Method | str]:
    """Every method, or why it does not run."""
    found: dict[str, Method | str] = {}
    for name, prepare in METHODS.items():
        try:
            found[name] = prepare(work)
        except DoesNotRun as reason:
            found[name] = str(reason)
    return found


def clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.thread_time() if torch.get_num_threads() == 1 else time.perf_counter()


def times(work: Workload, rounds: int, device: torch.device) -> dict[str, list[float] | str]:
    """Method -> quartiles of its time over that of the plain pass, or why it does not run."""
    methods = prepared(work)
    seconds: dict[str, list[float]] = {name: [] for name, method in methods.items() if callable(method)}
    for round_ in range(rounds + 1):
        for name in seconds:
            method = methods[name]
            assert callable(method)
            started = clock(device)
            method()
            if round_:  # the first one warms up
                seconds[name].append(clock(device) - started)
    unit = np.array(seconds[PLAIN])
    found: dict[str, list[float] | str] = {n: m for n, m in methods.items() if isinstance(m, str)}
    found.update({n: np.percentile(np.array(s) / unit, [25, 50, 75]).round(3).tolist() for n, s in seconds.items()})
    return {name: found[name] for name in METHODS}


def memory(make: Callable[[], Workload], device: torch.device) -> dict[str, float | str]:
    """Method -> peak memory over the model's own, as a ratio to the plain pass."""
    peaks = {name: _peak(make, name, device) for name in METHODS}
    unit = peaks[PLAIN]
    assert isinstance(unit, float)
    return {name: p if isinstance(p, str) else round(p / unit, 3) for name, p in peaks.items()}


def _peak(make: Callable[[], Workload], name: str, device: torch.device) -> float | str:
    """MiB; on a CPU by a child process, whose peak the kernel counts from a mark."""
    if device.type == "cuda":
        work = make().to(device)
        try:
            method = METHODS[name](work)
        except DoesNotRun as reason:
            return str(reason)
        method()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        method()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        work = make()
        work.batches, work.labels = work.batches[:1], work.labels[:1]
        try:
            method = METHODS[name](work)
            method()  # what is imported and allocated once is no part of it
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")
            before = status("VmRSS")
            method()
            answer = str((status("VmHWM") - before) / 2**10)
        except DoesNotRun as reason:
            answer = f"no: {reason}"
        os.write(writer, answer.encode())
        os._exit(0)
    os.close(writer)
    answer = os.read(reader, 2**12).decode()
    os.waitpid(child, 0)
    os.close(reader)
    return answer.removeprefix("no: ") if answer.startswith("no: ") else float(answer)


def table(title: str, columns: dict[str, dict[str, Any]]) -> str:
    def cell(value: Any) -> str:
        return "does not run" if isinstance(value, str) else f"{value[1] if isinstance(value, list) else value:.2f}"

    rows = [f"| {title} | {' | '.join(columns)} |", "|---" * (1 + len(columns)) + "|"]
    rows += [f"| {name} | " + " | ".join(cell(column[name]) for column in columns.values()) + " |" for name in METHODS]
    return "\n".join(rows)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trace", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="(%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (%(default)s)")
    parser.add_argument("--only", choices=[*WORKLOADS, "noise"], action="append", help="a part; may be repeated")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda: in bfloat16 (%(default)s)")
    parser.add_argument("--out", type=Path, help="(benchmarks/trace.json, trace-cuda.json)")
    args = parser.parse_args(argv)
    warnings.filterwarnings("ignore", message="Full backward hook is firing")  # two of the peers'
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    parts = args.only or [*WORKLOADS, "noise"]
    out = args.out or Path(__file__).parent / ("trace.json" if device.type == "cpu" else f"trace-{device.type}.json")
    found: dict[str, Any] = json.loads(out.read_text()) if args.only and out.exists() else {}
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
        for name in (part for part in parts if part != "noise"):
            torch.manual_seed(0)
            found.setdefault("memory", {})[name] = memory(WORKLOADS[name], device)
            found.setdefault("time", {})[name] = times(WORKLOADS[name]().to(device), args.rounds, device)
    if "noise" in parts:
        found["noise"] = noise.measure(device, clock)
    gpu = torch.cuda.get_device_name() if device.type == "cuda" else ""
    found["environment"] = environment(gpu, threads=args.threads, rounds=args.rounds)
    out.write_text(json.dumps(found, indent=1) + "\n")
    print(table("time, median ratio to plain forward + backward", found["time"]))
    print("\n" + table("peak memory over the model, ratio to plain forward + backward", found["memory"]))
    if "noise" in found:
        print("\n" + noise.tables(found["noise"]))
    print(out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
