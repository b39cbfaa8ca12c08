"""How a study is run. An engine trains the runs it is given and returns their results; this one trains them one by one.

Engines keep no state: only the store knows which runs are done. A run's numbers do not depend on where it was trained.
The other two engines are in `processes` and `cluster`.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import xarray as xr

from . import failures
from .failures import Failure
from .runs import Run, Settings

OnStep = Callable[[int, float], None]
"""Called with the number of updates made, and the last one's loss."""
Train = Callable[[Run, Settings, OnStep], xr.Dataset]
"""Trains one run; `execute` is the default. Its record depends on its arguments alone."""
Watch = Callable[[int, int, float], None]
"""Reports progress: called from time to time with a run's number, its step and its loss."""
SECONDS = 0.5
"""Shortest time between two reports of one run's progress."""


@dataclass(frozen=True)
class Job:
    """One run, as engines see it."""

    index: int
    run: Run
    settings: Settings


Outcome = xr.Dataset | Failure


class Engine(Protocol):
    """Trains runs, at most `capacity` at a time; the other runs wait in `run_all`."""

    @property
    def capacity(self) -> int: ...
    def submit(self, job: Job) -> None: ...
    def result(self) -> tuple[int, Outcome]:
        """Waits for the next run that ends."""
        ...

    def close(self, abandon: bool = False) -> None:
        """Releases the workers; `abandon` stops the runs that are under way."""
        ...


class InProcess:
    """One run after the other, in this process."""

    capacity = 1

    def __init__(self, train: Train, watch: Watch) -> None:
        self._train, self._watch = train, watch
        self._jobs: deque[Job] = deque()

    def submit(self, job: Job) -> None:
        self._jobs.append(job)

    def result(self) -> tuple[int, Outcome]:
        job = self._jobs.popleft()
        return job.index, guarded(self._train, job, self._watch)

    def close(self, abandon: bool = False) -> None:
        self._jobs.clear()


def run_all(engine: Engine, jobs: Iterable[Job], tell: Callable[[str], None] = print) -> Iterator[tuple[int, Outcome]]:
    """Yields (number of the run, its outcome) as runs end, in any order. A failed run does not stop the others.

    A run that may succeed on another try is tried again. No more results are in memory than runs are under way.
    """
    waiting, under_way, tries = iter(jobs), dict[int, Job](), Counter[int]()
    again: deque[Job] = deque()
    abandon = True
    try:
        while True:
            while len(under_way) < engine.capacity and (job := again.popleft() if again else next(waiting, None)):
                under_way[job.index] = job
                engine.submit(job)
            if not under_way:
                break
            index, outcome = engine.result()
            job = under_way.pop(index)
            if isinstance(outcome, Failure) and outcome.again and tries[index] < failures.RETRIES:
                tries[index] += 1
                tell(f"{job.run}: {outcome.reason}; once more ({tries[index]} of {failures.RETRIES})")
                again.append(job)
            else:
                tries.pop(index, None)
                yield index, outcome
        abandon = False
    finally:  # after Ctrl-C, or when the caller stops iterating, runs under way are abandoned
        engine.close(abandon)


def guarded(train: Train, job: Job, watch: Watch) -> Outcome:
    """Trains one run; an error becomes a `Failure`."""
    reported = 0.0

    def on_step(step: int, loss: float) -> None:
        nonlocal reported
        if time.monotonic() - reported > SECONDS:
            reported = time.monotonic()
            watch(job.index, step, loss)

    try:
        return train(job.run, job.settings, on_step)
    except Exception as error:  # the sweep goes on and reports it
        return failures.of(error)
