"""The command line: python -m fisherdyn.sweep permutations | compare | low-resource | reverse | interval | FILE."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from . import estimate, notes, recipes, report, tables
from .cluster import Cluster, NoSchedulerError, SchedulerLostError
from .engine import Engine, InProcess, Train, Watch
from .execute import execute
from .options import cores, parse
from .planning import default_folder, open_store, plan, selected, study_file, study_name
from .processes import Processes
from .running import run
from .status import status
from .store import SweepStore

__all__ = ["main", "parse", "plan"]


@contextmanager
def stoppable() -> Iterator[Callable[[], None]]:
    """Ctrl-C as a KeyboardInterrupt at once or, where Python swallows that (in a finaliser), from the function yielded."""
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


def engine(args: argparse.Namespace, left: int, device: str) -> Callable[[Watch], Engine]:
    """What does the runs: one after the other here, several here, or a cluster."""
    file = study_file(args)
    train: Train = file.train if file else execute
    gpus = torch.cuda.device_count() if device == "cuda" else 0
    workers = args.workers or gpus or cores()
    if args.scheduler:
        return lambda watch: Cluster(train, watch, args.scheduler, workers)
    if min(workers, left) == 1:
        return lambda watch: InProcess(train, watch)
    return lambda watch: Processes(train, watch, min(workers, left), gpus)


def sweep(
    store: SweepStore, wanted: Sequence[int], make: Callable[[Watch], Engine], check_stop: Callable[[], None]
) -> int:
    """Runs what is left, publishes the dataset and says what it shows; the exit code."""
    for line in notes.openings([store.runs[index] for index in wanted], store.settings):
        print(line)
    failed = run(store, make, wanted, check_stop)
    _say_results(store)
    for index, reason in failed.items():
        print(f"failed: {store.runs[index]}: {reason}", file=sys.stderr)
    if failed:
        print(f"{len(failed)} of {len(store.runs)} runs failed; repeat the command to try them again", file=sys.stderr)
    return 1 if failed else 0


def _say_results(store: SweepStore) -> None:
    """The dataset of the runs that are done, its table, and where the files are."""
    done = store.done()
    if not done.any():
        return
    files = [store.publish()]
    ds = store.read()
    if not done.all():
        print(f"\n{int(done.sum())} of {len(done)} runs are done; the results below are of these")
    says = report if store.study == "permutations" else tables
    try:
        print(f"\n{says.table(ds)}\n\n{says.findings(ds)}\n")
        files += says.write(ds, store.folder)
    except (KeyError, ValueError) as error:  # runs of one's own trainer without such variables; no seed is complete
        print(f"\nno table: {' '.join(str(error).split())}\n")
    for path in files:
        print(path)


def main(argv: Sequence[str] | None = None) -> int:
    parser, args = parse(argv)
    try:
        with stoppable() as check_stop:
            try:
                if args.status:
                    print(status(args.out or default_folder(args), study_name(args)))
                    return 0
                runs, settings = plan(args)
                wanted = selected(runs, args.only)
                if args.dry_run:
                    recipe = recipes.find(args.study, args.task, args.model)
                    listed = [runs[index] for index in wanted]
                    print("\n".join([*notes.openings(listed, settings), estimate.listing(listed, settings, recipe)]))
                    return 0
                scheduler = str(args.scheduler or "")
                if scheduler.endswith((".yaml", ".yml")) and not Path(scheduler).is_file():
                    raise ValueError(f"--scheduler {scheduler}: there is no such file")  # before the folder is claimed
                store = open_store(args, runs, settings)
            except (ValueError, ImportError) as error:
                parser.error(str(error))
            with store:
                left = int((~store.done()[wanted]).sum())
                try:
                    return sweep(store, wanted, engine(args, left, settings.device), check_stop)
                except NoSchedulerError as error:
                    parser.error(str(error))
    except SchedulerLostError:
        print("the scheduler is lost; what is finished is kept: repeat the command with a scheduler", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; what is finished is kept: repeat the command to go on", file=sys.stderr)
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
