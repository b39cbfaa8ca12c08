"""The command line: python -m fisherdyn.sweep permutations."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from tqdm import tqdm

from .. import tasks
from . import report, studies
from .engine import run_all
from .store import SweepStore
from .studies import Run, Settings

DEFAULTS = Settings()
SHARE_OF_OPENING = 0.55
"""k L over the steps by default: the rest is trained with everything open."""


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line and exit code 2."""
        self.exit(2, f"{self.prog}: {message} (--help lists the options)\n")


def parse(argv: Sequence[str] | None = None) -> tuple[Parser, argparse.Namespace]:
    parser = Parser(prog="python -m fisherdyn.sweep", description="Studies of many training runs, resumable.")
    commands = parser.add_subparsers(dest="study", required=True, parser_class=Parser)
    one = commands.add_parser(
        "permutations",
        help="standard training and the ten schedules of the paper's Figure 4",
        description="Standard training and the ten schedules of the paper's Figure 4, for each seed. Repeat the command "
        "to go on where it stopped.",
    )
    one.add_argument("--task", default=DEFAULTS.task, help="what is trained on (%(default)s)")
    one.add_argument("--seeds", type=int, default=3, metavar="N", help="runs of each schedule (%(default)s)")
    one.add_argument("--first-seed", type=int, default=0, metavar="S", help="seeds are S, S+1, ... (%(default)s)")
    one.add_argument("--steps", type=int, default=DEFAULTS.steps, metavar="N", help="updates a run (%(default)s)")
    one.add_argument("--lr", type=float, default=DEFAULTS.lr, help="learning rate (%(default)s)")
    one.add_argument("--interval", type=int, metavar="K", help="steps between openings (default: all open at 55 %%)")
    one.add_argument("--schedules", type=int, default=10, metavar="N", help="the first N of Figure 4's (%(default)s)")
    one.add_argument(
        "--order", action="append", default=[], metavar="10,1,...", help="an order of your own; may be repeated"
    )
    one.add_argument("--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="processes (%(default)s)")
    one.add_argument("--out", type=Path, default=Path("runs/permutations"), metavar="DIR", help="folder (%(default)s)")
    return parser, parser.parse_args(argv)


def plan(args: argparse.Namespace) -> tuple[list[Run], Settings]:
    """The runs and what they share; ValueError where the arguments make no study."""
    for name in ("seeds", "steps", "workers"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name} {getattr(args, name)}: expected at least 1")
    if args.interval is not None and args.interval < 1:
        raise ValueError(f"--interval {args.interval}: expected at least 1")
    if not 0 < args.lr < float("inf"):
        raise ValueError(f"--lr {args.lr}: expected a positive number")
    if args.first_seed < 0:
        raise ValueError(f"--first-seed {args.first_seed}: expected at least 0")
    settings = Settings(
        task=args.task,
        steps=args.steps,
        interval=args.interval or max(1, int(SHARE_OF_OPENING * args.steps / (studies.LAYERS - 1))),
        lr=args.lr,
        record_every=max(1, args.steps // 15),
        evaluate_every=max(1, args.steps // 4),
    )
    orders = [studies.parse_order(text) for text in args.order]
    runs = studies.permutations(range(args.first_seed, args.first_seed + args.seeds), args.schedules, orders)
    tasks.load(args.task).build_model(args.first_seed)  # an unknown task or damaged weights end here, not in a worker
    return runs, settings


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


def run(store: SweepStore, workers: int, check_stop: Callable[[], None]) -> list[str]:
    """Does what is left to do; says what went wrong with which run."""
    done = store.done()
    left = {i: run for i, run in enumerate(store.runs) if not done[i]}
    if done.any():
        print(f"{int(done.sum())} of {len(done)} runs are there already", flush=True)
    failed = []
    # As long as the terminal is one: a bar. In a log file: a line a run.
    bar = tqdm(total=len(left), desc="runs", unit="run", disable=not sys.stderr.isatty())
    with bar:
        check_stop()
        started = time.monotonic()
        for n, (index, result) in enumerate(run_all(left, store.settings, min(workers, len(left) or 1)), start=1):
            name = f"{store.runs[index].schedule}, seed {store.runs[index].seed}"
            if isinstance(result, Exception):
                failed.append(f"{name}: {type(result).__name__}: {result}")
            else:
                store.write(index, result)
            bar.update()
            bar.set_postfix_str(name)
            if bar.disable:
                remaining = (time.monotonic() - started) / n * (len(left) - n)
                print(f"{n}/{len(left)} {name}; about {remaining / 60:.1f} min left", flush=True)
            check_stop()
    return failed


def sweep(store: SweepStore, workers: int, check_stop: Callable[[], None]) -> int:
    """Runs what is left, publishes the dataset and says what it shows; the exit code."""
    opening, steps = store.settings.interval * (studies.LAYERS - 1), store.settings.steps
    if opening > 0.6 * steps:
        print(f"note: the last layer opens at step {opening} of {steps}: little or no time to train with all open")
    failed = run(store, workers, check_stop)
    for line in failed:
        print(f"failed: {line}", file=sys.stderr)
    if failed:
        print(f"{len(failed)} of {len(store.runs)} runs failed; repeat the command to try them again", file=sys.stderr)
        return 1
    dataset = store.publish()
    ds = store.read()
    print(f"\n{report.table(ds)}\n\n{report.findings(ds)}\n")
    for path in (dataset, *report.write(ds, store.folder)):
        print(path)
    return 0


def open_store(parser: Parser, args: argparse.Namespace) -> SweepStore:
    """The folder that the arguments ask for; wrong arguments end the command."""
    try:
        runs, settings = plan(args)
        return SweepStore(args.out, args.study, runs, settings)
    except (ValueError, ImportError) as error:
        parser.error(str(error))


def main(argv: Sequence[str] | None = None) -> int:
    parser, args = parse(argv)
    try:
        with stoppable() as check_stop, open_store(parser, args) as store:
            return sweep(store, args.workers, check_stop)
    except KeyboardInterrupt:
        print("\nstopped; what is finished is kept: repeat the command to go on", file=sys.stderr)
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
