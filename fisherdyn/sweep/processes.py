"""Several runs at a time on this machine: worker processes of one thread and, where there are GPUs, one GPU each."""

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
    """Workers come from a server that has imported torch once: they start at once, also in the place of a lost one."""
    from_server = multiprocessing.get_context("forkserver")
    from_server.set_forkserver_preload([__name__, "fisherdyn.sweep.execute", "fisherdyn.tasks.world.inference"])
    return from_server


class Processes:
    """`workers` processes. A killed one costs the run that it was at, and nothing else.

    Args:
        train: how one run is trained; it is pickled.
        watch: hears of progress.
        gpus: on this machine; worker i has GPU i modulo that number for its own.
        start: how processes start.
    """

    def __init__(
        self, train: Train, watch: Watch, workers: int, gpus: int = 0, start: BaseContext | None = None
    ) -> None:
        # Read by the workers' BLAS when they start: one thread each, so that they do not fight over cores.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        self._train, self._watch, self._gpus, self._start = train, watch, gpus, start or context()
        self._idle = list(range(workers))
        self._pools: dict[int, tuple[ProcessPoolExecutor, Connection]] = {}
        self._under_way: dict[Future[Outcome], tuple[int, int]] = {}
        self.capacity = workers

    def submit(self, job: Job) -> None:
        worker = self._idle.pop(0)
        # A Ctrl-C while a process starts would leave one that nobody knows of: it is held back until then.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            if worker not in self._pools:
                self._pools[worker] = self._worker(worker)
            future = self._pools[worker][0].submit(_work, self._train, job)
            self._under_way[future] = worker, job.index
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})

    def _worker(self, number: int) -> tuple[ProcessPoolExecutor, Connection]:
        """A pool of one: one of several breaks as a whole. It has its own pipe: no lock that a killed one could hold."""
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
            except (EOFError, OSError):  # its worker was killed, perhaps in the middle of a word
                continue

    def close(self, abandon: bool = False) -> None:
        for pool, _ in self._pools.values():
            if abandon:
                for process in list((pool._processes or {}).values()):
                    process.terminate()
            pool.shutdown(wait=not abandon, cancel_futures=True)


_speak: Connection | None = None


def _begin(there: Connection, gpu: int | None) -> None:
    """Workers leave Ctrl-C to the parent, and end when it does, even by SIGKILL."""
    global _speak
    _speak = there
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
    return guarded(train, job, lambda *word: _speak.send(word) if _speak is not None else None)
