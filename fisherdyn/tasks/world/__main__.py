"""python -m fisherdyn.tasks.world: show a newcomer the world."""

from __future__ import annotations

import argparse

from . import describe


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m fisherdyn.tasks.world", description=__doc__)
    parser.add_argument("--languages", default="so,te,ny", help="codes, separated by commas (%(default)s)")
    parser.add_argument("--examples", type=int, default=3, help="pairs to show (%(default)s)")
    args = parser.parse_args(argv)
    if args.examples < 1:
        parser.error(f"--examples {args.examples}: expected at least 1")
    try:
        print(describe(args.languages.split(","), args.examples))
    except ValueError as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
