"""How a study is run: one after the other in this process, or in several worker processes of one thread each."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait

import numpy as np
import torch
import xarray as xr

from .. import policies, record, tasks
from ..tasks.metrics import AnswerMetric
from ..train import Metric, fit
from .studies import Run, Settings


def execute(run: Run, settings: Settings) -> xr.Dataset:
    """Trains one run from scratch; a pure function of its arguments (on one kind of machine)."""
    # One thread whatever the engine: sums in another order would be other numbers.
    torch.set_num_threads(1)
    settings = settings.of(run)
    task = tasks.load(settings.task, **settings.options)
    model = task.build_model(run.seed)
    # Dropout, where the task has it, draws from the global state.
    torch.manual_seed(run.seed)
    metrics = task.evaluate()
    ds = fit(
        model,
        task.train_loader(run.seed),
        policy=_policy(run),
        interval=settings.interval,
        steps=settings.steps,
        lr=settings.lr,
        layers=task.layers(model),
        probe_loader=task.probe_loader(),
        evaluate_source=task.evaluate_source(),
        evaluate=metrics,
        record_every=settings.record_every,
        evaluate_every=settings.evaluate_every,
        seed=run.seed,
        **settings.fit,
    )
    return _with_distances(_with_exact_match(ds, metrics), task.distances)


def _policy(run: Run) -> policies.Policy:
    if run.policy in ("", "permutation"):
        return policies.permutation(run.order) if run.order else policies.all_at_once()
    return policies.NAMED[run.policy]()


def _with_exact_match(ds: xr.Dataset, metrics: Mapping[str, Metric]) -> xr.Dataset:
    """The exact match beside the F1 of extraction, from the calls that gave the F1; the best checkpoint's is the last."""
    if not all(isinstance(metric, AnswerMetric) for metric in metrics.values()):
        return ds
    calls = np.array([metric.exact_matches for metric in metrics.values()]).T  # type: ignore[attr-defined]
    ds["exact_match"] = (("eval_step", "target"), calls[: ds.sizes["eval_step"]])
    if "metric_at_best" in ds:
        ds["exact_match_at_best"] = (("target",), calls[-1])
    return record.describe(ds)


def _with_distances(ds: xr.Dataset, distances: Mapping[str, float]) -> xr.Dataset:
    if not distances:
        return ds
    return record.describe(
        ds.assign_coords(distance=("target", [distances[str(target)] for target in ds["target"].values]))
    )


Execute = Callable[[Run, Settings], xr.Dataset]


def run_all(
    runs: dict[int, Run], settings: Settings, workers: int, execute: Execute = execute
) -> Iterator[tuple[int, xr.Dataset | Exception]]:
    """Yields (index, dataset or what went wrong) as runs finish, in any order.

    The numbers do not depend on `workers`. An exception of one run does not stop the others.
    """
    if workers == 1:
        for index, run in runs.items():
            yield index, _guarded(execute, run, settings)
        return
    context = multiprocessing.get_context("spawn")
    # Read by the workers' BLAS when they start: one thread each, so that they do not fight over cores.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)
    try:
        futures = {pool.submit(_guarded, execute, run, settings): index for index, run in runs.items()}
        for future in as_completed(futures):
            yield futures[future], _result(future)
    except BaseException:  # Ctrl-C, or the caller stopped listening: runs that are under way are given up
        pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    pool.shutdown()


def _result(future: Future[xr.Dataset | Exception]) -> xr.Dataset | Exception:
    """A worker that is killed takes the whole pool with it: every run that was left is reported as that."""
    try:
        return future.result()
    except BrokenProcessPool:
        return RuntimeError("a worker process was killed, perhaps for want of memory: try fewer --workers")


def _guarded(execute: Execute, run: Run, settings: Settings) -> xr.Dataset | Exception:
    try:
        return execute(run, settings)
    except Exception as error:  # the sweep goes on and reports it
        return error


def _start_worker() -> None:
    """Workers leave Ctrl-C to the parent, and end when it does, even by SIGKILL."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
