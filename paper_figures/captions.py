"""captions.md, beside the pictures: what each shows, its data and seeds, and the command that drew it."""

from __future__ import annotations

import re
from pathlib import Path

import xarray as xr

from fisherdyn import analysis

FILE = "captions.md"
SHOWN = {
    "fig1": """Which task adapters are open at which step: a) standard training, b) gradual unfreezing, c) unfreezing by
        tr(F), where the frozen adapter with the largest tr(F) opens next. All else of the model is frozen; the classifier
        is open.""",
    "fig2": """Mean transfer of adapters minus full fine-tuning: the paper's Tables 7 to 10 (± as printed; LPFT is a picture
        only there). Right, where a sweep has them: its methods, paired over seeds, with 95 % intervals (filled: p < .05,
        corrected for their number), minus standard training where the sweep has no full fine-tuning.""",
    "fig3": """tr(F) per open adapter (moving average of three records; band: one standard error over seeds; circle: peak;
        bar: above half of it, with a triangle where it never comes down), and tr(F) of every layer, open or not, mean over
        seeds (white: where a layer opens; colours by the root). The paper reads from its own that GU's is much higher and
        shaped like a hill.""",
    "fig4": """tr(F) per open adapter and accuracy on the source's development set, in footnote 9's groups (band: one
        standard error over seeds), and what of tr(F) goes with transfer across the orders, with 95 % intervals. The
        arrows are the paper's claim, for which it has no number: a higher peak and a wider curve go with better
        transfer.""",
    "fig5": """The layer that opens first, second, ..., beside top-down. Left: the one schedule by FUN that the paper prints
        (footnote 11; its averages are a picture only). Right: means and standard errors over seeds, of fixed orders over
        the orders. Below: Kendall's tau distance from top-down (0; bottom-up has 1, random orders 0.5 on average), mean and
        95 % interval over the same.""",
    "fig6": "Where MAD-X has its adapters in a layer. Only the task adapter is trained.",
    "transfer": """Accuracy in each target language against its distance from the source (bars: one standard error over
        seeds).""",
    "forest": """Transfer of every schedule minus standard training's, paired over seeds, with 95 % intervals (filled:
        p < .05, corrected for their number).""",
    "table": """As printed (data/paper holds the transcription and what is odd about it); at the end, where a sweep has the
        methods, its own rows (± half of the 95 % interval).""",
}
"""Picture -> what it shows."""


def caption(name: str, data: Path | None, ds: xr.Dataset | None, command: str) -> str:
    """A picture's caption in Markdown.

    Args:
        name: of the figure or table.
        data, ds: the file and the record of the sweep that it was drawn from.
        command: that drew it.
    """
    text = " ".join(SHOWN["table" if name.startswith("table") else name].split())
    source = "" if data is None or ds is None else f" Data: {_description(data, ds)}."
    return f"{text}{source}\n\n    {command}"


def _description(path: Path, ds: xr.Dataset) -> str:
    seeds = sorted(set(ds["seed"].values.tolist()))
    span = f"seeds {seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else f"seed {seeds[0]}"
    settings = [f"{key} {ds.attrs[key]:g}" for key in ("steps", "interval", "lr") if key in ds.attrs]
    origin = [f"{key} {ds.attrs[key]}" for key in ("study", "task", "estimator", "revision") if key in ds.attrs]
    results = f"results: {analysis.result(ds).attrs['of']}"
    return ", ".join([path.name, f"{ds.sizes['run']} runs", span, *settings, *origin, results])


def write(folder: Path, texts: dict[str, str]) -> Path:
    """Adds captions to a folder's captions.md, replacing those of the same pictures.

    Args:
        texts: name of the picture -> its caption.

    Returns:
        The path of captions.md.
    """
    path = folder / FILE
    kept = dict(re.findall(r"^## (\S+)\n\n(.*?)\n(?=\n## |\Z)", path.read_text(), re.S | re.M)) if path.exists() else {}
    sections = sorted({**kept, **texts}.items())
    path.write_text("# Captions\n\n" + "\n".join(f"## {name}\n\n{text}\n" for name, text in sections))
    return path
