"""python -m paper_figures: redraw the paper's figures and tables, from data/ or from your own sweeps beside it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import xarray as xr
from matplotlib.figure import Figure

from fisherdyn import plots

from . import captions, drawings, figures, stores, tables

DATA = Path(__file__).resolve().parent.parent / "data"
REFERENCE = ("compare-lr8e-3.nc", "permutations-lr2e-3.nc", "permutations-lr8e-3.nc")
"""Sweeps that the repository has; others in data/ are drawn too."""
FORMATS = ("png", "pdf", "svg")

DRAWINGS: dict[str, Callable[[], Figure]] = {"fig1": drawings.fig1, "fig2": figures.fig2, "fig6": drawings.fig6}
"""What can be drawn without a sweep."""
FIGURES: dict[str, Callable[[xr.Dataset], Figure]] = {
    "fig2": figures.fig2,
    "fig3": figures.fig3,
    "fig4": figures.fig4,
    "fig5": figures.fig5,
    "transfer": figures.transfer,
    "forest": figures.forest,
}
TABLES = tuple(f"table{number}" for number in tables.TITLES)
ALL = ("fig1", "fig2", "fig3", "fig4", "fig5", "fig6", "transfer", "forest", *TABLES)


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line and exit code 2."""
        self.exit(2, f"{self.prog}: {message} (--help lists the options)\n")


@dataclass(frozen=True)
class Sweep:
    """A record, and where it came from."""

    path: Path
    ds: xr.Dataset

    @property
    def stem(self) -> str:
        return self.path.resolve().stem


def parse(argv: Sequence[str] | None) -> tuple[Parser, argparse.Namespace]:
    parser = Parser(prog="python -m paper_figures", description=__doc__)
    parser.add_argument("wanted", nargs="*", metavar="NAME", help=f"{', '.join(ALL)} (default: all)")
    parser.add_argument(
        "--runs",
        type=Path,
        action="append",
        metavar="STORE",
        help="a sweep's .nc file or folder (default: those in data/)",
    )
    parser.add_argument("--format", default="pdf,png", help="of figures, comma-separated: pdf, png, svg (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("figures"), help="folder (%(default)s)")
    args = parser.parse_args(argv)
    args.formats = args.format.split(",")
    if unknown := [name for name in args.wanted if name not in ALL]:
        parser.error(f"unknown {', '.join(unknown)}: choose among {', '.join(ALL)}")
    if unknown := [name for name in args.formats if name not in FORMATS]:
        parser.error(f"unknown format {', '.join(unknown)}: choose among {', '.join(FORMATS)}")
    if args.out.exists() and not args.out.is_dir():
        parser.error(f"--out {args.out}: expected a folder, found a file")
    return parser, args


Faults = dict[str, list[str]]
"""What went wrong -> what could not be drawn for it."""


def sweeps(parser: Parser, given: list[Path] | None, faults: Faults) -> list[Sweep]:
    """What --runs names, all of which must be readable, or what is in data/, less what is not."""
    found = []
    paths = given or sorted({DATA / name for name in REFERENCE} | set(DATA.glob("*.nc")))
    for path in paths:
        try:
            found.append(Sweep(path, stores.read(path)))
        except ValueError as error:
            if given:
                parser.error(f"--runs {error}")
            faults[str(error)] = []
    return found


def draw(name: str, sweep: Sweep | None, formats: Sequence[str], out: Path) -> Iterator[Path]:
    """Writes one figure in every format, or one table in both, and yields the files."""
    stem = name if sweep is None else f"{name}-{sweep.stem}"
    ds = None if sweep is None else sweep.ds
    if name in TABLES:
        table = tables.build(int(name.removeprefix("table")), ds)
        for ending, text in ((".md", tables.markdown(table)), (".tex", tables.latex(table))):
            (out / f"{stem}{ending}").write_text(text)
            yield out / f"{stem}{ending}"
        return
    if ds is not None:
        stores.refuse_several_sizes(ds)
    figure = DRAWINGS[name]() if ds is None else FIGURES[name](ds)
    for ending in formats:
        plots.save(figure, out / f"{stem}.{ending}")
        yield out / f"{stem}.{ending}"


def inputs(name: str, found: list[Sweep]) -> list[Sweep | None]:
    """What a figure or table is drawn from, one after the other; None is the paper's numbers, or nothing."""
    alone: list[Sweep | None] = [None] if name in DRAWINGS or name in TABLES else []
    takes_sweeps = name in FIGURES or (name in TABLES and int(name.removeprefix("table")) in tables.COMPARED)
    return alone + (list(found) if takes_sweeps else [])


def attempt(name: str, found: list[Sweep], args: argparse.Namespace, said: dict[str, str]) -> list[str]:
    """Draws one figure or table from everything that it can be drawn from; adds captions, and returns what went wrong."""
    unfit, drawn = [], False
    for sweep in inputs(name, found):
        path, ds = (None, None) if sweep is None else (sweep.path, sweep.ds)
        try:
            for file in draw(name, sweep, args.formats, args.out):
                print(file)
        except FileNotFoundError as error:
            return [str(error)]
        except ValueError as error:
            unfit.append(f"{path.name if path else 'data/paper'} has {error}")
            continue
        drawn = True
        own = f" --runs {path}" if path and args.runs else ""
        command = f"python -m paper_figures {name}{own} --format {args.format} --out {args.out}"
        said[name if sweep is None else f"{name}-{sweep.stem}"] = captions.caption(name, path, ds, command)
    if unfit and (not drawn or (args.wanted and args.runs)):
        return unfit
    return [] if drawn else ["there is no sweep to draw it from, name one with --runs"]


def main(argv: list[str] | None = None) -> int:
    parser, args = parse(argv)
    faults: Faults = {}
    found = sweeps(parser, args.runs, faults)
    args.out.mkdir(parents=True, exist_ok=True)
    said: dict[str, str] = {}
    for name in args.wanted or ALL:
        for fault in attempt(name, found, args, said):
            faults.setdefault(fault, []).append(name)
    print(captions.write(args.out, said))
    for fault, names in faults.items():
        print(f"not drawn: {', '.join(names)}{': ' if names else ''}{fault}", file=sys.stderr)
    return int(bool(faults))


if __name__ == "__main__":
    raise SystemExit(main())
