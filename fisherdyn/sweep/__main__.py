"""The command line: python -m fisherdyn.sweep permutations | compare | low-resource | reverse."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from tqdm import tqdm

from .. import tasks
from . import estimate, recipes, report, studies, tables
from .engine import run_all
from .store import SweepStore
from .studies import Run, Settings

STUDIES = {
    "permutations": "standard training and the ten schedules of the paper's Figure 4",
    "compare": "the rows of Table 2: standard, random, GU, LPFT, FUN, reverse, full fine-tuning",
    "low-resource": "the rows of Tables 1 and 12: standard, GU and FUN with few training examples",
    "reverse": "the rows of Table 11: GU, and from the bottom up",
}
METHODS = {
    "compare": studies.METHODS,
    "low-resource": studies.LOW_RESOURCE_METHODS,
    "reverse": studies.REVERSE_METHODS,
}
WORLDS_RECORDS, RECORDS = 15, 40
"""Records of tr(F) in a run of the world, and of the paper's tasks."""
OPTIONS = ("model", "data", "adapters", "tuning", "train_examples", "languages")
"""Of the task, as the command line has them."""


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line and exit code 2."""
        self.exit(2, f"{self.prog}: {message} (--help lists the options)\n")


def parse(argv: Sequence[str] | None = None) -> tuple[Parser, argparse.Namespace]:
    parser = Parser(prog="python -m fisherdyn.sweep", description="Studies of many training runs, resumable.")
    commands = parser.add_subparsers(dest="study", required=True, parser_class=Parser)
    for study, what in STUDIES.items():
        one = commands.add_parser(
            study, help=what, description=f"{what}, for each seed. Repeat the command to go on where it stopped."
        )
        _add_task_options(one)
        _add_run_options(one)
        if study == "permutations":
            one.add_argument(
                "--schedules", type=int, default=10, metavar="N", help="the first N of Figure 4's (%(default)s)"
            )
            one.add_argument(
                "--order", action="append", default=[], metavar="10,1,...", help="an order of your own; may be repeated"
            )
    return parser, parser.parse_args(argv)


def _add_task_options(one: argparse.ArgumentParser) -> None:
    one.add_argument("--task", default="world", help=f"what is trained on: {', '.join(tasks.REGISTRY)} (%(default)s)")
    one.add_argument(
        "--model",
        metavar="NAME|DIR",
        help="xlm-roberta-base (the default), bert-base-multilingual-cased, microsoft/mdeberta-v3-base, or a folder",
    )
    one.add_argument("--data", metavar="DIR", help="folder with the data sets (default: the hub)")
    one.add_argument(
        "--adapters", metavar="DIR", help="folder with language adapters, one a language (default: the hub)"
    )
    one.add_argument("--tuning", metavar="HOW", default="adapter", help="adapter (MAD-X), lora or full (%(default)s)")
    one.add_argument("--languages", metavar="ar,de,...", help="targets (default: the paper's)")
    one.add_argument("--train-examples", type=int, metavar="N", help="a random subsample (default: all)")


def _add_run_options(one: argparse.ArgumentParser) -> None:
    one.add_argument("--seeds", type=int, default=3, metavar="N", help="runs of each schedule (%(default)s)")
    one.add_argument("--first-seed", type=int, default=0, metavar="S", help="seeds are S, S+1, ... (%(default)s)")
    one.add_argument("--steps", type=int, metavar="N", help="updates a run (default: the task's recipe)")
    one.add_argument("--lr", type=float, help="learning rate (default: the recipe's)")
    one.add_argument("--interval", type=int, metavar="K", help="steps between openings (default: the recipe's)")
    one.add_argument("--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="processes (%(default)s)")
    one.add_argument("--out", type=Path, metavar="DIR", help="folder (default: runs/STUDY, with task and model)")
    one.add_argument("--dry-run", action="store_true", help="list the runs, their steps and what they may cost")


def _check_numbers(args: argparse.Namespace) -> None:
    for name in ("seeds", "steps", "workers", "interval", "train_examples"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} {value}: expected at least 1")
    if args.lr is not None and not 0 < args.lr < float("inf"):
        raise ValueError(f"--lr {args.lr}: expected a positive number")
    if args.first_seed < 0:
        raise ValueError(f"--first-seed {args.first_seed}: expected at least 0")


def plan(args: argparse.Namespace) -> tuple[list[Run], Settings]:
    """The runs and what they share, from the arguments alone; ValueError where they make no study."""
    _check_numbers(args)
    given = {name: getattr(args, name) for name in OPTIONS if getattr(args, name) is not None}
    if args.languages is not None:
        given["languages"] = args.languages.split(",")
    task = tasks.load(args.task, **given)
    recipe = recipes.find(args.study, args.task, args.model)
    if task.skipped:
        given["languages"] = list(task.targets)  # full fine-tuning too is tested where adapters can be
    wanted = {"steps": args.steps, "lr": args.lr, "interval": args.interval}
    settings = Settings(
        task=args.task,
        **recipe.of(studies.TOP_DOWN, (recipe.sizes or (args.train_examples,))[0], wanted),
        options={**given, "batch": recipe.batch},
        skipped=_skipped(task.skipped),
        fit=recipe.fit,
    )
    every = _cadence(settings)
    settings = replace(settings, record_every=every["record_every"], evaluate_every=every["evaluate_every"])
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    if args.study == "permutations":
        orders = [studies.parse_order(text) for text in args.order]
        return studies.permutations(seeds, args.schedules, orders), settings
    base = {**settings.options, **{name: getattr(settings, name) for name in ("steps", "lr", "interval")}}
    runs = studies.of_recipe(recipe, seeds, METHODS[args.study], wanted, base)
    return [replace(run, changes={**run.changes, **_own_cadence(settings, run)}) for run in runs], settings


def _skipped(languages: Mapping[str, str]) -> str:
    """ "it, th (no language adapter)" """
    reasons = dict.fromkeys(languages.values())
    return "; ".join(f"{', '.join(c for c in languages if languages[c] == why)} ({why})" for why in reasons)


def _cadence(settings: Settings) -> dict[str, int]:
    """How often is recorded and evaluated: a run of any length as often as another."""
    records = WORLDS_RECORDS if settings.task.startswith("world") else RECORDS
    return {"record_every": max(1, settings.steps // records), "evaluate_every": max(1, settings.steps // 4)}


def _own_cadence(settings: Settings, run: Run) -> dict[str, int]:
    return _cadence(settings.of(run)) if "steps" in run.changes else {}


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
    for line in _late_openings(store):
        print(line)
    failed = run(store, workers, check_stop)
    for line in failed:
        print(f"failed: {line}", file=sys.stderr)
    if failed:
        print(f"{len(failed)} of {len(store.runs)} runs failed; repeat the command to try them again", file=sys.stderr)
        return 1
    dataset = store.publish()
    ds = store.read()
    says = report if store.study == "permutations" else tables
    print(f"\n{says.table(ds)}\n\n{says.findings(ds)}\n")
    for path in (dataset, *says.write(ds, store.folder)):
        print(path)
    return 0


def _late_openings(store: SweepStore) -> list[str]:
    """The rows whose last layer opens when most of the training is over."""
    rows = {}
    for run in store.runs:
        own = store.settings.of(run)
        opening = own.interval * (1 if run.policy == "linear_probing" else studies.LAYERS - 1)
        if run.policy != "standard" and run.schedule != studies.STANDARD and opening > 0.6 * own.steps:
            rows[run.schedule] = f"{run.schedule}: the last layer opens at step {opening} of {own.steps}"
    return [f"note: {line}: little or no time to train with all open" for line in rows.values()]


def open_store(args: argparse.Namespace, runs: list[Run], settings: Settings) -> SweepStore:
    """The folder of the sweep, once all that its runs will read is known to be there."""
    checked: list[Mapping[str, Any]] = []
    for run in runs:
        options = settings.of(run).options
        if options not in checked:
            tasks.load(args.task, **options).check()  # damaged weights, missing data end here, not in a worker
            checked.append(options)
    return SweepStore(args.out or default_folder(args), args.study, runs, settings)


def default_folder(args: argparse.Namespace) -> Path:
    model = (
        [Path(args.model or "xlm-roberta-base").name] if recipes.find(args.study, args.task, args.model).model else []
    )
    named = [] if args.task == "world" else [args.task, *model]
    return Path("runs") / "-".join([args.study, *named])


def main(argv: Sequence[str] | None = None) -> int:
    parser, args = parse(argv)
    try:
        with stoppable() as check_stop:
            try:
                runs, settings = plan(args)
                if args.dry_run:
                    recipe = recipes.find(args.study, args.task, args.model)
                    print(estimate.listing(runs, settings, recipe))
                    return 0
                store = open_store(args, runs, settings)
            except (ValueError, ImportError) as error:
                parser.error(str(error))
            with store:
                return sweep(store, args.workers, check_stop)
    except KeyboardInterrupt:
        print("\nstopped; what is finished is kept: repeat the command to go on", file=sys.stderr)
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
