"""What can be said on the command line."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from .. import tasks
from . import studyfile

STUDIES = {
    "permutations": "standard training and the ten schedules of the paper's Figure 4",
    "compare": "the rows of Table 2: standard, random, GU, LPFT, FUN, reverse, full fine-tuning",
    "low-resource": "the rows of Tables 1 and 12: standard, GU and FUN with few training examples",
    "reverse": "the rows of Table 11: GU, and from the bottom up",
    "interval": "standard training, and GU and FUN with several k",
}


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line and exit code 2."""
        self.exit(2, f"{self.prog}: {message} (--help lists the options)\n")


def parse(argv: Sequence[str] | None = None) -> tuple[Parser, argparse.Namespace]:
    """The parser, for its errors, and the arguments; `file` is the study's own file, if it has one."""
    argv = sys.argv[1:] if argv is None else argv
    parser = Parser(
        prog="python -m fisherdyn.sweep",
        description="Studies of many training runs, resumable. A study is one of those below, or a YAML or Python file.",
    )
    commands = parser.add_subparsers(dest="study", required=True, parser_class=Parser, metavar="STUDY")
    own = Path(argv[0]) if argv and argv[0].endswith(studyfile.SUFFIXES) else None
    for study, what in {**STUDIES, **({str(own): "the study of that file"} if own else {})}.items():
        one = commands.add_parser(
            study, help=what, description=f"{what}, for each seed. Repeat the command to go on where it stopped."
        )
        _add_task_options(one)
        _add_run_options(one)
        if study == "permutations":
            _add_orders(one)
        if study == "interval":
            one.add_argument("--intervals", metavar="K,K,...", help="(default: a quarter to 1.5 of the recipe's k)")
        if study == str(own):
            _take_from_file(parser, one, Path(study))
    return parser, parser.parse_args(argv)


def _take_from_file(parser: Parser, one: argparse.ArgumentParser, path: Path) -> None:
    """The file's options become defaults, and are read as what is typed is."""
    try:
        file = studyfile.read(path)
        known = {action.dest: action.type for action in one._actions if action.dest != "help"}
        if unknown := [name for name in file.options if name not in known]:
            raise ValueError(f"{path}: unknown option {', '.join(unknown)}: choose from {', '.join(sorted(known))}")
    except ValueError as error:
        parser.error(str(error))
    given = {name: value for name, value in file.options.items() if value is not None}
    one.set_defaults(file=file, **{name: str(value) if known[name] else value for name, value in given.items()})


def _add_orders(one: argparse.ArgumentParser) -> None:
    which = one.add_mutually_exclusive_group()
    which.add_argument("--schedules", type=int, default=10, metavar="N", help="the first N of Figure 4's (%(default)s)")
    which.add_argument(
        "--random-orders",
        type=int,
        metavar="N",
        help="top-down and N orders drawn by footnote 8's rule, not Figure 4's",
    )
    one.add_argument(
        "--order", action="append", default=[], metavar="10,1,...", help="an order of your own; may be repeated"
    )


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
    one.add_argument("--device", help="that torch trains on, such as cpu or cuda (default: cuda where there is one)")
    one.add_argument(
        "--workers", type=int, metavar="N", help="processes, or jobs of a cluster's file (default: GPUs, or else cores)"
    )
    one.add_argument(
        "--scheduler", metavar="ADDRESS|FILE", help="of Dask: tcp://host:8786, or a dask-jobqueue YAML file (SLURM)"
    )
    one.add_argument("--out", type=Path, metavar="DIR", help="folder (default: runs/STUDY, with task and model)")
    one.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="what is done in --out is not done again; with --no-resume, a folder that holds a sweep is refused",
    )
    one.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="SCHEDULE[:SEED]",
        help="do these runs of the study now, such as 'figure-4/*' or 'FUN:3'; may be repeated",
    )
    what = one.add_mutually_exclusive_group()
    what.add_argument("--dry-run", action="store_true", help="list the runs, their steps and what they may cost")
    what.add_argument("--status", action="store_true", help="what of --out is done, has failed and is left")


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
