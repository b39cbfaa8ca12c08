"""The command line: python -m fisherdyn.sweep permutations | compare | low-resource | reverse | interval | FILE."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from . import notes, report, tables
from .cluster import Cluster, SchedulerLostError
from .commandline import PROGRAM, Command, parse
from .engine import Engine, InProcess, Watch
from .listing import listing
from .planning import folder_of, open_store, plan, selected
from .processes import Processes
from .running import run
from .status import status
from .store import SweepStore

__all__ = ["main", "parse", "plan"]


@contextmanager
def stoppable() -> Iterator[Callable[[], None]]:
    """Turns Ctrl-C into KeyboardInterrupt. The function yielded raises it too, in case a finaliser swallowed it."""
    pressed = False

    def press(*_: object) -> None:
        nonlocal pressed
        pressed = True
        raise KeyboardInterrupt

    def check() -> None:
        if pressed:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, press)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, before)


def engine(command: Command, left: int, device: str) -> Callable[[Watch], Engine]:
    """The engine of a command: one run at a time, several worker processes, or a cluster."""
    train, scheduler = command.study.train, command.options.scheduler
    gpus = torch.cuda.device_count() if device == "cuda" else 0
    workers = command.options.workers or gpus or cores()
    if scheduler:
        return lambda watch: Cluster(train, watch, scheduler, workers)
    if min(workers, left) == 1:
        return lambda watch: InProcess(train, watch)
    return lambda watch: Processes(train, watch, min(workers, left), gpus)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def sweep(
    store: SweepStore, chosen: Sequence[int], make: Callable[[Watch], Engine], check_stop: Callable[[], None]
) -> int:
    """Trains the runs that are left, publishes the dataset and prints its table. Returns the exit code."""
    for line in notes.openings([store.runs[index] for index in chosen], store.settings):
        print(line)
    failed = run(store, make, chosen, check_stop)
    _print_results(store)
    for index, reason in failed.items():
        print(f"failed: {store.runs[index]}: {reason}", file=sys.stderr)
    if failed:
        print(f"{len(failed)} of {len(store.runs)} runs failed; repeat the command to try them again", file=sys.stderr)
    return 1 if failed else 0


def _print_results(store: SweepStore) -> None:
    """Publishes the runs that are done, and prints their table and the paths of the files."""
    done = store.done()
    if not done.any():
        return
    files = [store.publish()]
    ds = store.read()
    if not done.all():
        print(f"\n{int(done.sum())} of {len(done)} runs are done; the results below are of these")
    words = report if store.study == "permutations" else tables
    try:
        print(f"\n{words.table(ds)}\n\n{words.findings(ds)}\n")
        files += words.write(ds, store.folder)
    except (
        KeyError,
        ValueError,
    ) as error:  # a trainer of the user's own recorded no such variables, or no seed is complete
        print(f"\nno table: {' '.join(str(error).split())}\n")
    for path in files:
        print(path)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code.

    Raises:
        SystemExit: with code 2, after one line on stderr: the command cannot be run as it was typed.
    """
    try:
        with stoppable() as check_stop:
            return _main(argv, check_stop)
    except (ValueError, ImportError) as error:
        print(f"{PROGRAM}: {error} (--help lists the options)", file=sys.stderr)
        raise SystemExit(2) from error
    except SchedulerLostError:
        print("the scheduler is lost; what is finished is kept: repeat the command with a scheduler", file=sys.stderr)
        return 1
    except BrokenPipeError:  # `| head` has read enough; Python would complain once more when it flushes
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("\nstopped; what is finished is kept: repeat the command to go on", file=sys.stderr)
        return 130


def _main(argv: Sequence[str] | None, check_stop: Callable[[], None]) -> int:
    command = parse(argv)
    if command is None:
        return 0
    options = command.options
    if options.status:
        print(status(folder_of(command), command.study.name))
        return 0
    runs, settings = plan(command)
    chosen = selected(runs, options.only)
    if options.dry_run:
        listed = [runs[index] for index in chosen]
        print("\n".join([*notes.openings(listed, settings), listing(listed, settings)]))
        return 0
    scheduler = options.scheduler or ""
    if scheduler.endswith((".yaml", ".yml")) and not Path(scheduler).is_file():
        raise ValueError(f"--scheduler {scheduler}: there is no such file")  # known before the folder is claimed
    with open_store(command, runs, settings) as store:
        left = int((~store.done()[chosen]).sum())
        return sweep(store, chosen, engine(command, left, settings.device), check_stop)


if __name__ == "__main__":
    raise SystemExit(main())
