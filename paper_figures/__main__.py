"""python -m paper_figures: draw the figures that there are, from data/ or from your own sweep."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import matplotlib
import xarray as xr
from matplotlib.figure import Figure

from fisherdyn import plots

DATA = Path(__file__).resolve().parent.parent / "data"


def fig4(ds: xr.Dataset) -> Figure:
    """tr(F) and the validation curve of the schedules, grouped by transfer."""
    return plots.figure_4(ds)


def transfer(ds: xr.Dataset) -> Figure:
    """Accuracy by language against its distance from the source: standard training and top-down."""
    with matplotlib.rc_context(plots.STYLE):
        figure = Figure(figsize=(plots.ACL_COLUMN, 2.4), layout="constrained")
        plots.transfer_by_distance(figure.subplots(), ds, ["standard", "top-down"])
        return figure


NEEDED = ("fisher_trace", "trainable", "source_metric", "metric", "schedule", "seed", "distance")
"""What a sweep's record has and these figures are drawn from."""

FIGURES: dict[str, Callable[[xr.Dataset], Figure]] = {"fig4": fig4, "transfer": transfer}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m paper_figures", description=__doc__)
    parser.add_argument("figures", nargs="*", metavar="FIGURE", help=f"{', '.join(FIGURES)} (default: all)")
    parser.add_argument("--runs", type=Path, action="append", help="a sweep's .nc file (default: all in data/)")
    parser.add_argument("--format", default="png,pdf", help="comma-separated: png, pdf, svg (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("figures"), help="folder (%(default)s)")
    args = parser.parse_args(argv)
    wanted, formats = args.figures or list(FIGURES), args.format.split(",")
    if unknown := [name for name in wanted if name not in FIGURES]:
        parser.error(f"unknown figure {', '.join(unknown)}: choose among {', '.join(FIGURES)}")
    if unknown := [name for name in formats if name not in ("png", "pdf", "svg")]:
        parser.error(f"unknown format {', '.join(unknown)}: choose among png, pdf, svg")
    runs = args.runs or sorted(DATA.glob("*.nc"))
    if not runs:
        parser.error(f"no records in {DATA}: name one with --runs")
    if args.out.exists() and not args.out.is_dir():
        parser.error(f"--out {args.out}: expected a folder, found a file")
    args.out.mkdir(parents=True, exist_ok=True)
    for path in runs:
        try:
            with xr.open_dataset(path) as opened:
                ds = opened.load()
        except (OSError, ValueError) as error:
            parser.error(f"--runs {path}: not a record that can be read ({str(error).splitlines()[0]})")
        if missing := [name for name in NEEDED if name not in ds.variables]:
            parser.error(f"--runs {path}: not the record of a permutation sweep: it has no {', '.join(missing)}")
        for name in wanted:
            figure = FIGURES[name](ds)
            for ending in formats:
                target = args.out / f"{name}-{path.stem}.{ending}"
                plots.save(figure, target)
                print(target)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
