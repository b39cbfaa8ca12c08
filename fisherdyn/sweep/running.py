"""From the engine to the store: trains the runs that a sweep still lacks, whatever becomes of single runs."""

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


def run(
    store: SweepStore, make_engine: MakeEngine, indices: Iterable[int], check_stop: Callable[[], None]
) -> dict[int, str]:
    """Trains those of the runs that are not done.

    Args:
        store: where the runs are kept.
        make_engine: makes what trains them, from the function that follows their progress.
        indices: of the runs, in the store.
        check_stop: called after every run; raises KeyboardInterrupt if Ctrl-C was pressed.

    Returns:
        Index of each run that failed -> why.
    """
    done = store.done()
    left = [index for index in indices if not done[index]]
    if done.any():
        print(f"{int(done.sum())} of {len(done)} runs are there already", flush=True)
    if not left:
        return {}
    steps = {index: store.settings.of(store.runs[index]).steps for index in left}
    with progress(steps, {index: str(store.runs[index]) for index in left}) as display:
        writer = _ResultWriter(store, display)
        check_stop()
        jobs = (Job(index, store.runs[index], store.settings) for index in left)
        for index, outcome in run_all(make_engine(display.watch), jobs, display.say):
            writer.take(index, outcome)
            check_stop()
        writer.finish()
    return writer.failed


class _ResultWriter:
    """Writes outcomes to the store. A result for which the disk has no room waits in memory until there is room."""

    def __init__(self, store: SweepStore, display: Progress) -> None:
        self._store, self._display = store, display
        self._unwritten: dict[int, xr.Dataset] = {}
        self.failed: dict[int, str] = {}

    def take(self, index: int, outcome: xr.Dataset | Failure) -> None:
        if isinstance(outcome, Failure):
            self._fail(index, outcome)
            return
        self._unwritten[index] = outcome
        self._write_all()

    def finish(self) -> None:
        """Tries once more to write what waits; what cannot be written has failed."""
        self._write_all()
        for index in self._unwritten:
            self._fail(index, Failure("its result could not be written: the disk is full, or gone", again=True))

    def _write_all(self) -> None:
        for index in list(self._unwritten):
            self._write(index)

    def _write(self, index: int) -> None:
        try:
            self._store.write(index, self._unwritten[index])
        except OSError as error:
            self._display.say(f"{self._store.runs[index]}: cannot be written yet ({error.strerror or error})")
        except (ValueError, TypeError) as error:
            del self._unwritten[index]
            self._fail(index, failures.of(error))
        else:
            self._display.end(index, result(self._unwritten.pop(index)))

    def _fail(self, index: int, failure: Failure) -> None:
        self.failed[index] = failure.reason
        self._display.end(index, f"failed: {failure.reason}")
        with suppress(OSError):  # the disk is full: the display and the exit code tell of the failure
            self._store.fail(index, failure.reason)
            with (self._store.folder / FAILURES).open("a") as log:
                log.write(f"{self._store.runs[index]}: {failure.reason}\n{failure.details}\n")
