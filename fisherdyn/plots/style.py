"""How pictures look: print sizes, colours that colour-blind eyes and grey print keep apart, the same file twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.figure import Figure

ACL_COLUMN, ACL_PAGE = 3.03, 6.3
"""Widths in inches of a column and of a page's text."""
STYLE: Any = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "pdf.fonttype": 42,
    "figure.dpi": 150,
    "savefig.dpi": 300,
}
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe & Ito's, told apart by colour-blind eyes; line styles differ too, for print in grey."""
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (1, 2)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GREY = "0.45"


def labels(ds: xr.Dataset) -> dict[str, str]:
    """Schedule -> its name in figures: the record's `label` where it has one, else the schedule itself."""
    of = ds["label"] if "label" in ds.coords else ds["schedule"]
    return dict(zip(np.atleast_1d(ds["schedule"]).tolist(), np.atleast_1d(of).tolist(), strict=True))


def look(i: int) -> dict[str, Any]:
    """Colour and dashes of the i-th line."""
    return {"color": COLOURS[i % len(COLOURS)], "linestyle": DASHES[i % len(DASHES)]}


def marks(i: int) -> dict[str, Any]:
    """`look(i)` and a marker of its own, for points with error bars."""
    return {**look(i), "marker": MARKERS[i % len(MARKERS)], "markersize": 3.5, "elinewidth": 0.8, "capsize": 1.5}


def save(figure: Figure, path: Path) -> None:
    """Writes a picture without a date in it: the same data is the same file, byte for byte."""
    undated = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}}
    with matplotlib.rc_context({"svg.hashsalt": "fisherdyn", "pdf.fonttype": 42}):
        figure.savefig(path, metadata=undated.get(path.suffix))
