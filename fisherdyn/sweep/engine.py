"""How a study is run: an engine does what it is given and hands back what came of it; here, one after the other.

An engine keeps nothing: what is done is known to the store alone, and a run's numbers do not depend on where it was done.
`processes` and `cluster` have the other two.
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
"""How one run is trained; `execute` is the default. A pure function, as far as the record is concerned."""
Watch = Callable[[int, int, float], None]
"""Called now and then with a run's number, its step and loss."""
SECONDS = 0.5
"""Between two words of one run's progress."""


@dataclass(frozen=True)
class Job:
    """One run, as engines see it."""

    index: int
    run: Run
    settings: Settings


Outcome = xr.Dataset | Failure


class Engine(Protocol):
    """What does runs. `capacity` of them are asked for at a time: what waits, waits with us."""

    @property
    def capacity(self) -> int: ...
    def submit(self, job: Job) -> None: ...
    def result(self) -> tuple[int, Outcome]:
        """Waits until a run ends, whichever does first."""
        ...

    def close(self, abandon: bool = False) -> None:
        """Lets go of workers; `abandon` gives up the runs that are under way."""
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
    """Yields (number of the run, what came of it) as runs end, in any order; a run that failed does not stop the others.

    Where doing it again can help, it is done again before it is given up. As many results are held as are under way.
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
    finally:  # Ctrl-C, or the caller stopped listening: runs that are under way are given up
        engine.close(abandon)


def guarded(train: Train, job: Job, watch: Watch) -> Outcome:
    """One run, whatever happens in it."""
    spoken = 0.0

    def on_step(step: int, loss: float) -> None:
        nonlocal spoken
        if time.monotonic() - spoken > SECONDS:
            spoken = time.monotonic()
            watch(job.index, step, loss)

    try:
        return train(job.run, job.settings, on_step)
    except Exception as error:  # the sweep goes on and reports it
        return failures.of(error)
