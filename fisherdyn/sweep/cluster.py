"""Runs on many machines: a Dask cluster, given by its scheduler's address or by a dask-jobqueue file (SLURM and others).

One run is one task. A worker has one thread, and a GPU if it is given one, and trains one run at a time. The cluster keeps
no state of the sweep: if the scheduler or workers are lost, the same command continues with others.
"""

from __future__ import annotations

import logging
import uuid
from collections import deque
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

from . import failures
from .engine import SECONDS, Job, Outcome, Train, Watch, guarded
from .failures import Failure

AT_LEAST = 64
"""Fewest tasks that the scheduler holds at a time; it holds two per worker if that is more."""
PATIENCE = "20s"
"""How long to wait for a scheduler that does not answer."""
ENVIRONMENT = {"DASK_DISTRIBUTED__WORKER__DAEMON": "False", "OMP_NUM_THREADS": "1"}
"""Environment of the workers: data loaders may start processes, and BLAS has one thread."""
CLUSTERS = {
    "slurm": "SLURMCluster",
    "pbs": "PBSCluster",
    "sge": "SGECluster",
    "lsf": "LSFCluster",
    "oar": "OARCluster",
    "moab": "MoabCluster",
    "htcondor": "HTCondorCluster",
}
"""Section of a file's `jobqueue` -> class of dask_jobqueue."""


class NoSchedulerError(ValueError):
    """The scheduler that --scheduler names cannot be used."""


class SchedulerLostError(Exception):
    """The scheduler is lost, and with it the runs under way."""


class Cluster:
    """The workers of a Dask scheduler.

    Args:
        train: trains one run; it is pickled.
        watch: receives progress.
        scheduler: an address such as "tcp://host:8786", or a YAML file that describes a cluster of dask-jobqueue.
        workers: number of jobs to submit to the queue. Not used with an address, whose workers you start yourself.

    Raises:
        NoSchedulerError: nothing answers, the file describes no cluster of one-thread workers, a package is missing.
    """

    def __init__(self, train: Train, watch: Watch, scheduler: str, workers: int) -> None:
        try:
            import dask
            from distributed import Client
        except ModuleNotFoundError as error:
            raise NoSchedulerError(
                f"--scheduler {scheduler}: needs {error.name}: pip install 'fisherdyn[cluster]'"
            ) from error
        dask.config.set({"distributed.worker.daemon": False})
        # It prints three tracebacks when the scheduler is lost; we print one line.
        logging.getLogger("distributed.client").setLevel(logging.CRITICAL)
        self._train, self._watch = train, watch
        self._cluster = queue(Path(scheduler)) if Path(scheduler).suffix in (".yaml", ".yml") else None
        if self._cluster is not None:
            self._cluster.scale(jobs=workers)
        try:
            self._client = Client(self._cluster or scheduler, timeout=PATIENCE)
        except (OSError, ValueError) as error:
            raise NoSchedulerError(f"--scheduler {scheduler}: no scheduler answers there ({error})") from error
        self.capacity = max(AT_LEAST, 2 * workers, 2 * len(self._client.ncores()))
        self._under_way: dict[Any, int] = {}
        self._reports: deque[tuple[int, int, float]] = deque()
        self._topic = f"fisherdyn-{uuid.uuid4().hex}"  # unique, because a cluster may serve several sweeps
        self._client.subscribe_topic(self._topic, lambda event: self._reports.append(event[1]))

    def submit(self, job: Job) -> None:
        key = f"run-{job.index}-{uuid.uuid4().hex}"  # a new key, so that no earlier result is returned
        future = self._client.submit(_work, self._train, job, self._topic, key=key, pure=False)
        self._under_way[future] = job.index

    def result(self) -> tuple[int, Outcome]:
        from distributed import KilledWorker, wait

        while not (done := [future for future in self._under_way if future.status != "pending"]):
            try:
                wait(list(self._under_way), timeout=SECONDS, return_when="FIRST_COMPLETED")
            except TimeoutError:
                self._listen()
            except CancelledError:
                break
        self._listen()
        if not done or done[0].status in ("cancelled", "lost"):
            raise SchedulerLostError
        index = self._under_way.pop(done[0])
        try:
            return index, done[0].result()
        except KilledWorker:
            return index, failures.lost_worker(", or more memory per worker")
        except CancelledError as error:
            raise SchedulerLostError from error
        except Exception as error:  # a worker that cannot even read the task
            return index, failures.of(error)

    def _listen(self) -> None:
        while self._reports:
            self._watch(*self._reports.popleft())

    def close(self, abandon: bool = False) -> None:
        if abandon and self._client.status == "running":
            self._client.cancel(list(self._under_way))
        self._client.close(timeout=2)
        if self._cluster is not None:
            self._cluster.close()


def queue(path: Path) -> Any:
    """The cluster that a file describes in dask-jobqueue's format: `jobqueue: {slurm: {cores: 1, memory: 16GB, ...}}`.

    Raises:
        NoSchedulerError: the file describes no cluster, or its workers would have more than one thread.
    """
    try:
        import dask_jobqueue
        import yaml
    except ModuleNotFoundError as error:
        raise NoSchedulerError(f"--scheduler {path}: needs {error.name}: pip install 'fisherdyn[cluster]'") from error
    try:
        described = yaml.safe_load(path.read_text())
        [(kind, options)] = described["jobqueue"].items()
        make = getattr(dask_jobqueue, CLUSTERS[kind])
    except OSError as error:
        raise NoSchedulerError(f"--scheduler {path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise NoSchedulerError(
            f"--scheduler {path}: expected dask-jobqueue's format, jobqueue: and below it one of "
            f"{', '.join(CLUSTERS)} ({error})"
        ) from error
    if options.get("cores", 1) != options.get("processes", 1):
        raise NoSchedulerError(
            f"--scheduler {path}: a worker trains one run on one thread: expected cores equal to processes, got cores "
            f"{options.get('cores')} and processes {options.get('processes', 1)}; for more CPUs per job set job_cpu"
        )
    exports = [f"export {name}={value}" for name, value in ENVIRONMENT.items()]
    before = [*options.pop("job_script_prologue", []), *exports]
    try:
        return make(**{"cores": 1, "processes": 1, **options}, job_script_prologue=before)
    except (TypeError, ValueError) as error:
        raise NoSchedulerError(f"--scheduler {path}: {error}") from error


def _work(train: Train, job: Job, topic: str) -> Outcome:
    """Runs on a worker. It has one thread, because two runs in one process would share the random state of dropout."""
    from distributed import get_worker

    worker = get_worker()
    if worker.state.nthreads != 1:
        return Failure(f"the worker has {worker.state.nthreads} threads: start workers with --nthreads 1")
    return guarded(train, job, lambda *report: worker.log_event(topic, report))
