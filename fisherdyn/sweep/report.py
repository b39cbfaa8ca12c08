"""What a permutation sweep says: a table, the figure, and in words what was found and what was not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import xarray as xr

from .. import analysis, plots
from . import studies
from .wording import against_standard, half

STANDARD, TOP_DOWN = studies.STANDARD.schedule, studies.TOP_DOWN.schedule


def table(ds: xr.Dataset) -> str:
    """One row a schedule, best transfer first, as Markdown; percentages, with 95 % intervals over seeds."""
    summary = analysis.summarise(ds)
    by = {name: analysis.by_schedule(summary[name]) for name in ("source", "transfer", "peak", "width", "censored")}
    targets = analysis.by_schedule(summary["target_result"]).mean("seed")
    seeds = by["transfer"].sizes["seed"]
    ranked = by["transfer"].mean("seed").sortby(by["transfer"].mean("seed"), ascending=False)["schedule"].values
    rows = [
        "| schedule | source % | transfer % (95 %) | best language % | worst language % | peak tr(F), nat | width, steps |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in ranked:
        transfer = analysis.mean_interval(100 * by["transfer"].sel(schedule=name).values)
        source = float(100 * by["source"].sel(schedule=name).mean())
        language = 100 * targets.sel(schedule=name)
        best, worst = language.idxmax("target").item(), language.idxmin("target").item()
        more = "≥ " if bool((by["censored"].sel(schedule=name) > 0).any()) else ""
        rows.append(
            f"| {name} | {source:.1f} | {transfer.estimate:.1f} {half(transfer)} "
            f"| {best} {float(language.max()):.1f} | {worst} {float(language.min()):.1f} "
            f"| {float(by['peak'].sel(schedule=name).mean()):.3g} "
            f"| {more}{float(by['width'].sel(schedule=name).mean()):.0f} |"
        )
    noun = "seed" if seeds == 1 else "seeds"
    rate = f", lr = {ds.attrs['lr']:g}" if "lr" in ds.attrs else ""  # full fine-tuning has one of its own
    rows.append("")
    rows.append(
        f"{ds.sizes['run']} runs, {seeds} {noun}, {ds.attrs['steps']} steps, k = {ds.attrs['interval']}{rate}. "
        f"Results: {summary['target_result'].attrs['of']}. Width: at half of the peak"
        + (", ≥ where the curve does not come down to it." if any("≥" in row for row in rows) else ".")
        + (f" {tuned}." if (tuned := analysis.tuned(ds)) else "")
    )
    return "\n".join(rows)


def findings(ds: xr.Dataset) -> str:
    """What the numbers support and what they do not, in words made from the numbers alone."""
    summary = analysis.summarise(ds)
    transfer = analysis.by_schedule(summary["transfer"])
    names = transfer["schedule"].values.tolist()
    said = []
    if STANDARD in names and TOP_DOWN in names:
        both = np.isin(summary["schedule"].values, [STANDARD, TOP_DOWN])
        said += against_standard({"": summary.isel(run=both)})
    orders = [name for name in names if name != STANDARD]
    if len(orders) > 1:
        said.append(_spread(transfer.sel(schedule=orders)))
    if len(orders) >= 4:
        said += [_correlated(summary, orders, name, what) for name, what in (("peak", "height"), ("width", "width"))]
    if STANDARD in names and TOP_DOWN in names:
        said.append(_hill(summary))
    said.append(_by_distance(ds))
    return "\n".join(f"- {sentence}" for sentence in said if sentence)


def _spread(transfer: xr.DataArray) -> str:
    """Between-schedule spread against what seeds alone would give."""
    if transfer.sizes["seed"] < 2:
        between = 100 * float(transfer.mean("seed").std(ddof=1))
        return f"Not answered with one seed: whether the order matters (sd over schedules {between:.1f} points)."
    between, noise, p = analysis.order_effect(transfer)
    verdict = "Found: the order matters for transfer" if p < 0.05 else "Not found: an effect of the order on transfer"
    return (
        f"{verdict} (sd over schedules {100 * between:.1f} points, of one run around schedule and seed "
        f"{100 * noise:.1f}; F test p = {p:.2g})."
    )


def _correlated(summary: xr.Dataset, orders: list[str], name: str, what: str) -> str:
    x, y = (analysis.by_schedule(summary[v]).sel(schedule=orders) for v in (name, "transfer"))
    if x.sizes["seed"] < 2:
        return f"Not answered with one seed: whether the {what} of tr(F)'s peak goes with transfer."
    rho = analysis.across_schedules(x, y)
    if np.isnan(rho.estimate):
        return f"Not answered: whether the {what} of tr(F)'s peak goes with transfer (it is the same in all orders)."
    if rho.p >= 0.05:
        verdict = f"Not found: that the {what} of tr(F)'s peak goes with transfer"
    else:
        verdict = f"Found: the {what} of tr(F)'s peak goes {'with' if rho.estimate > 0 else 'against'} transfer"
    runs = np.isin(summary["schedule"].values, orders)
    censored = int(summary["censored"].isel(run=runs).sum()) if name == "width" else 0
    note = f"; {censored} of {runs.sum()} widths are lower bounds" if censored else ""
    return (
        f"{verdict} across the {rho.n} orders, each from one half of the seeds: Spearman {rho.estimate:+.2f} "
        f"[{rho.low:+.2f}, {rho.high:+.2f}], permutation p = {rho.p:.2g}{note}."
    )


def _hill(summary: xr.Dataset) -> str:
    peak = analysis.by_schedule(summary["peak"])
    ratio = analysis.mean_interval(np.log((peak.sel(schedule=TOP_DOWN) / peak.sel(schedule=STANDARD)).values))
    estimate = f"ratio {np.exp(ratio.estimate):.2g}"
    if ratio.n < 2:
        return f"Not answered with one seed: whether tr(F) peaks higher under {TOP_DOWN} than under {STANDARD} ({estimate})."
    higher = "higher" if ratio.estimate > 0 else "lower"
    verdict = (
        "Found: tr(F) per open adapter peaks " + higher if ratio.excludes_zero else "Not found: a peak that differs"
    )
    interval = f"[{np.exp(ratio.low):.2g}, {np.exp(ratio.high):.2g}]"
    return f"{verdict} under {TOP_DOWN} than under {STANDARD}, paired over seeds: {estimate} {interval}."


def _by_distance(ds: xr.Dataset) -> str:
    if "distance" not in ds.coords:
        return ""
    accuracy = analysis.result(ds).mean("run")
    rho = analysis.correlation(ds["distance"].values, accuracy.values)
    if np.isnan(rho.estimate):
        return ""
    verdict = "Found: transfer falls" if rho.estimate < 0 and rho.p < 0.05 else "Not found: that transfer falls"
    return (
        f"{verdict} with a language's distance from the source: Spearman {rho.estimate:+.2f} over {rho.n} languages, "
        f"permutation p = {rho.p:.2g}."
    )


def write(ds: xr.Dataset, folder: Path) -> list[Path]:
    """Table and findings as Markdown, the figure as PNG and PDF; the paths."""
    report = folder / "report.md"
    report.write_text(f"{table(ds)}\n\n{findings(ds)}\n")
    figure = plots.figure_4(ds)
    paths = [folder / "figure-4.png", folder / "figure-4.pdf"]
    for path in paths:
        plots.save(figure, path)
    return [report, *paths]
