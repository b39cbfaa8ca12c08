"""Several runs at a time on this machine: each worker process has one thread and, if there are GPUs, one GPU."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection, Pipe
from multiprocessing.connection import wait as wait_for
from multiprocessing.context import BaseContext

from .engine import SECONDS, Job, Outcome, Train, Watch, guarded
from .failures import lost_worker


def context() -> BaseContext:
    """A fork server that has imported torch: new workers, also those that replace a lost one, start without delay."""
    from_server = multiprocessing.get_context("forkserver")
    from_server.set_forkserver_preload([__name__, "fisherdyn.sweep.execute", "fisherdyn.tasks.world.inference"])
    return from_server


class Processes:
    """A pool of `workers` processes. If one is killed, only its current run is lost.

    Args:
        train: trains one run; it is pickled.
        watch: receives progress.
        gpus: the number of GPUs; worker i uses GPU i modulo this number.
        start: the multiprocessing context.
    """

    def __init__(
        self, train: Train, watch: Watch, workers: int, gpus: int = 0, start: BaseContext | None = None
    ) -> None:
        # The workers' BLAS reads it when they start. With one thread each they do not compete for cores.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        self._train, self._watch, self._gpus, self._start = train, watch, gpus, start or context()
        self._idle = list(range(workers))
        self._pools: dict[int, tuple[ProcessPoolExecutor, Connection]] = {}
        self._under_way: dict[Future[Outcome], tuple[int, int]] = {}
        self.capacity = workers

    def submit(self, job: Job) -> None:
        worker = self._idle.pop(0)
        # Ctrl-C is blocked while a process starts: otherwise it could leave a process that nothing tracks.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            if worker not in self._pools:
                self._pools[worker] = self._worker(worker)
            future = self._pools[worker][0].submit(_work, self._train, job)
            self._under_way[future] = worker, job.index
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})

    def _worker(self, number: int) -> tuple[ProcessPoolExecutor, Connection]:
        """A pool of one process and a pipe of its own: a larger pool breaks as a whole, a killed process may hold a lock."""
        here, there = Pipe(duplex=False)
        gpu = number % self._gpus if self._gpus else None
        pool = ProcessPoolExecutor(1, mp_context=self._start, initializer=_begin, initargs=(there, gpu))
        return pool, here

    def result(self) -> tuple[int, Outcome]:
        while not (done := wait(self._under_way, SECONDS, FIRST_COMPLETED).done):
            self._listen()
        self._listen()
        future = next(iter(done))
        worker, index = self._under_way.pop(future)
        self._idle.append(worker)
        try:
            return index, future.result()
        except BrokenProcessPool:
            self._pools.pop(worker)[0].shutdown()
            return index, lost_worker()

    def _listen(self) -> None:
        for connection in wait_for([here for _, here in self._pools.values()], 0):
            assert isinstance(connection, Connection)
            try:
                self._watch(*connection.recv())
            except (EOFError, OSError):  # its worker was killed, perhaps while it was sending
                continue

    def close(self, abandon: bool = False) -> None:
        for pool, _ in self._pools.values():
            if abandon:
                for process in list((pool._processes or {}).values()):
                    process.terminate()
            pool.shutdown(wait=not abandon, cancel_futures=True)


_reports: Connection | None = None


def _begin(there: Connection, gpu: int | None) -> None:
    """Workers ignore Ctrl-C, which the parent handles, and exit when the parent dies, even by SIGKILL."""
    global _reports
    _reports = there
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(gpu)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait_for([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _work(train: Train, job: Job) -> Outcome:
    return guarded(train, job, lambda *report: _reports.send(report) if _reports is not None else None)
