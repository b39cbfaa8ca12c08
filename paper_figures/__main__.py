"""python -m paper_figures: draws the paper's figures and tables, with the sweeps in data/ or your own beside them."""

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
"""The sweeps of the repository. Others in data/ are drawn too."""
FORMATS = ("png", "pdf", "svg")

DRAWINGS: dict[str, Callable[[], Figure]] = {"fig1": drawings.fig1, "fig2": figures.fig2, "fig6": drawings.fig6}
"""Figures that need no sweep."""
FIGURES: dict[str, Callable[[xr.Dataset], Figure]] = {
    "fig2": figures.fig2,
    "fig3": figures.fig3,
    "fig4": figures.fig4,
    "fig5": figures.fig5,
    "transfer": figures.transfer,
    "forest": figures.forest,
}
"""Figures of a sweep."""
TABLES = {f"table{number}": number for number in tables.TITLES}
ALL = ("fig1", "fig2", "fig3", "fig4", "fig5", "fig6", "transfer", "forest", *TABLES)


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Prints one line and exits with code 2."""
        self.exit(2, f"{self.prog}: {message} (--help lists the options)\n")


@dataclass(frozen=True)
class Sweep:
    """A sweep's record, and its file or folder."""

    path: Path
    ds: xr.Dataset


@dataclass(frozen=True)
class Picture:
    """A figure or table, drawn from a sweep, or from the paper's numbers alone (None)."""

    name: str
    sweep: Sweep | None

    @property
    def stem(self) -> str:
        """The name of its files, without their endings."""
        return self.name if self.sweep is None else f"{self.name}-{self.sweep.path.resolve().stem}"

    @property
    def source(self) -> str:
        """The name of its data, for error messages."""
        return "data/paper" if self.sweep is None else self.sweep.path.name

    def draw(self, formats: Sequence[str], out: Path) -> Iterator[Path]:
        """Writes a figure in every format, or a table as Markdown and LaTeX, and yields the files.

        Raises:
            ValueError: the sweep lacks what the picture shows.
            FileNotFoundError: a table of data/paper is missing.
        """
        ds = None if self.sweep is None else self.sweep.ds
        if self.name in TABLES:
            table = tables.build(TABLES[self.name], ds)
            for ending, text in ((".md", tables.markdown(table)), (".tex", tables.latex(table))):
                path = out / f"{self.stem}{ending}"
                path.write_text(text)
                yield path
            return
        if ds is not None:
            stores.refuse_several_sizes(ds)
        figure = DRAWINGS[self.name]() if ds is None else FIGURES[self.name](ds)
        for ending in formats:
            path = out / f"{self.stem}.{ending}"
            plots.save(figure, path)
            yield path

    def caption(self, args: argparse.Namespace) -> str:
        path, ds = (None, None) if self.sweep is None else (self.sweep.path, self.sweep.ds)
        runs = f" --runs {path}" if path and args.runs else ""
        command = f"python -m paper_figures {self.name}{runs} --format {args.format} --out {args.out}"
        return captions.caption(self.name, path, ds, command)


def parse(argv: Sequence[str] | None) -> tuple[Parser, argparse.Namespace]:
    parser = Parser(prog="python -m paper_figures", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(ALL)} (default: all)")
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
    if unknown := [name for name in args.names if name not in ALL]:
        parser.error(f"unknown {', '.join(unknown)}: choose among {', '.join(ALL)}")
    if unknown := [name for name in args.formats if name not in FORMATS]:
        parser.error(f"unknown format {', '.join(unknown)}: choose among {', '.join(FORMATS)}")
    if args.out.exists() and not args.out.is_dir():
        parser.error(f"--out {args.out}: expected a folder, found a file")
    return parser, args


def read_sweeps(parser: Parser, runs: list[Path] | None) -> tuple[list[Sweep], list[str]]:
    """The sweeps of --runs, all of which must be readable, or else those of data/, and what was wrong with the others."""
    sweeps, faults = [], []
    for path in runs or sorted({DATA / name for name in REFERENCE} | set(DATA.glob("*.nc"))):
        try:
            sweeps.append(Sweep(path, stores.read(path)))
        except ValueError as error:
            if runs:
                parser.error(f"--runs {error}")
            faults.append(str(error))
    return sweeps, faults


def pictures(name: str, sweeps: list[Sweep]) -> list[Picture]:
    """A figure or table from the paper's numbers, where it can do without a sweep, and from each sweep, where it has any."""
    without_sweep = [Picture(name, None)] if name in DRAWINGS or name in TABLES else []
    takes_sweeps = name in FIGURES or TABLES.get(name) in tables.COMPARED
    return without_sweep + ([Picture(name, sweep) for sweep in sweeps] if takes_sweeps else [])


def draw(name: str, sweeps: list[Sweep], args: argparse.Namespace) -> tuple[dict[str, str], list[str]]:
    """Draws a figure or table from everything that it can be drawn from.

    Returns:
        The captions of what was drawn, and what went wrong. A sweep that does not fit is no fault, as long as another one
        does, unless the figure and the sweep were both named.
    """
    drawn: dict[str, str] = {}
    faults = []
    for picture in pictures(name, sweeps):
        try:
            for path in picture.draw(args.formats, args.out):
                print(path)
        except FileNotFoundError as error:
            return drawn, [str(error)]
        except ValueError as error:
            faults.append(f"{picture.source} has {error}")
        else:
            drawn[picture.stem] = picture.caption(args)
    if not drawn:
        return drawn, faults or ["there is no sweep to draw it from, name one with --runs"]
    return drawn, faults if args.names and args.runs else []


def main(argv: list[str] | None = None) -> int:
    parser, args = parse(argv)
    sweeps, unreadable = read_sweeps(parser, args.runs)
    not_drawn: dict[str, list[str]] = {fault: [] for fault in unreadable}
    args.out.mkdir(parents=True, exist_ok=True)
    drawn: dict[str, str] = {}
    for name in args.names or ALL:
        captions_of_name, faults = draw(name, sweeps, args)
        drawn |= captions_of_name
        for fault in faults:
            not_drawn.setdefault(fault, []).append(name)
    print(captions.write(args.out, drawn))
    for fault, names in not_drawn.items():
        print(f"not drawn: {', '.join(names)}{': ' if names else ''}{fault}", file=sys.stderr)
    return int(bool(not_drawn))


if __name__ == "__main__":
    raise SystemExit(main())
