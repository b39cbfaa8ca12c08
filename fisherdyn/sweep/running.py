"""From the engine to the store: what is left of a sweep is done, whatever becomes of single runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress

import xarray as xr

from . import failures
from .engine import Engine, Job, Watch, run_all
from .failures import Failure
from .folder import FAILURES
from .progress import Progress, progress, result
from .store import SweepStore

MakeEngine = Callable[[Watch], Engine]


def run(store: SweepStore, engine: MakeEngine, wanted: Iterable[int], check_stop: Callable[[], None]) -> dict[int, str]:
    """Does those of the wanted runs that are not done.

    Returns:
        Number of each run that failed -> why.
    """
    done = store.done()
    left = [index for index in wanted if not done[index]]
    if done.any():
        print(f"{int(done.sum())} of {len(done)} runs are there already", flush=True)
    if not left:
        return {}
    steps = {index: store.settings.of(store.runs[index]).steps for index in left}
    with progress(steps, {index: str(store.runs[index]) for index in left}) as shown:
        keeper = _Keeper(store, shown)
        check_stop()
        jobs = (Job(index, store.runs[index], store.settings) for index in left)
        for index, outcome in run_all(engine(shown.watch), jobs, shown.say):
            keeper.take(index, outcome)
            check_stop()
        keeper.give_up_what_cannot_be_written()
    return keeper.failed


class _Keeper:
    """Puts what came of runs into the store. A result that finds no room waits in memory until there is some."""

    def __init__(self, store: SweepStore, shown: Progress) -> None:
        self._store, self._shown = store, shown
        self._unwritten: dict[int, xr.Dataset] = {}
        self.failed: dict[int, str] = {}

    def take(self, index: int, outcome: xr.Dataset | Failure) -> None:
        if isinstance(outcome, Failure):
            self._fail(index, outcome)
            return
        self._unwritten[index] = outcome
        for waiting in list(self._unwritten):
            self._write(waiting)

    def _write(self, index: int) -> None:
        try:
            self._store.write(index, self._unwritten[index])
        except OSError as error:
            self._shown.say(f"{self._store.runs[index]}: cannot be written yet ({error.strerror or error})")
            return
        except (ValueError, TypeError) as error:
            del self._unwritten[index]
            self._fail(index, failures.of(error))
            return
        self._shown.end(index, result(self._unwritten.pop(index)))

    def _fail(self, index: int, failure: Failure) -> None:
        self.failed[index] = failure.reason
        self._shown.end(index, f"failed: {failure.reason}")
        with suppress(OSError):  # a full disk: it is said above, and in the exit code
            self._store.fail(index, failure.reason)
            with (self._store.folder / FAILURES).open("a") as log:
                log.write(f"{self._store.runs[index]}: {failure.reason}\n{failure.details}\n")

    def give_up_what_cannot_be_written(self) -> None:
        for index in list(self._unwritten):
            self._write(index)
        for index in self._unwritten:
            self._fail(index, Failure("its result could not be written: the disk is full, or gone", again=True))
