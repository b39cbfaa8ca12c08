# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Does tr(F) tell which schedule will transfer?
#
# "FUN with Fisher" says that schedules with a higher peak and a wider curve of tr(F) transfer better. Here is how to
# test such a claim, two ways to fool oneself with it, and what two sweeps of 88 runs have to say.
#
# **Needs** `pip install 'fisherdyn[tasks,sweep]'` in a checkout of the repository, whose `data/` holds the sweeps. No
# training, no download. **Takes** about a minute on one core, most of it simulated studies.

# %%
import os
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import xarray as xr

import paper_figures
from fisherdyn import analysis, plots
from paper_figures import stores

QUICK = "FISHERDYN_QUICK" in os.environ  # tests run this on small inputs
STUDIES = 8 if QUICK else 400

DATA = Path(paper_figures.__file__).parents[1] / "data"
plt.rcParams.update(
    plots.STYLE | {"figure.figsize": (5.2, 2.6), "figure.dpi": 110, "figure.constrained_layout.use": True}
)

# %%
sweeps = {rate: stores.read(DATA / f"permutations-lr{rate}.nc") for rate in ("8e-3", "2e-3")}
sweeps = {rate: ds.isel(run=np.flatnonzero(ds["schedule"].values != "standard")) for rate, ds in sweeps.items()}
for rate, ds in sweeps.items():
    print(
        f"lr {rate}: {ds.sizes['run']} runs, {len(set(ds['schedule'].values))} orders in which layers open, one at a time"
    )

# %% [markdown]
# ## What peak and width are
#
# The paper's curve is tr(F) of the open adapters over their number, a moving average of three records. Its peak is
# its maximum; its width the steps for which it stays above half of that. Where it never comes down to half, the run
# ended too early, and the width is a lower bound (the triangles).

# %%
figure, axes = plt.subplots(1, 2, figsize=(6.3, 2.6))
for ax, (rate, ds) in zip(axes, sweeps.items(), strict=True):
    curves = analysis.by_schedule(analysis.learning_curve(ds)).mean("seed")
    for i, name in enumerate(("top-down", "figure-4/1", "figure-4/8")):
        one = curves.sel(schedule=name)
        ax.plot(one["step"], one, label=plots.labels(ds)[name], **plots.look(i))
        plots.learning_period(ax, one, colour=plots.COLOURS[i])
    ax.set(title=f"lr {rate}, mean over 8 seeds", xlabel="step", ylabel="tr(F) per open adapter (nat)", ylim=(0, None))
axes[1].legend(loc="upper left")
plt.show()

# %% [markdown]
# That is the mean over seeds. Single runs are less tidy, and it is their peak and width that are used below. What
# does the measurement alone, 64 probe inputs a record, leave unknown? For three runs of top-down, intervals from the
# standard errors of tr(F):

# %%
three = sweeps["8e-3"].isel(run=np.flatnonzero(sweeps["8e-3"]["schedule"].values == "top-down")[:3])
measured = analysis.shape_from_errors(three, draws=99 if QUICK else 399)
names = ["peak", "peak_step", "width", "area"]
measured[names].swap_dims(run="seed").to_dataframe()[names].unstack("bound").T.rename_axis(["", ""]).round(1)

# %% [markdown]
# A single run's peak is hardly known: a confident model has few inputs that hold most of tr(F), and 64 are few. (No
# interval stands where the curve, or one in forty drawn from its errors, has no end.)
#
# ## The tempting analysis
#
# Eighty runs, eighty points: does transfer go with peak, width and area?

# %%
summaries = {rate: analysis.summarise(ds) for rate, ds in sweeps.items()}
figure, axes = plt.subplots(1, 3, figsize=(6.3, 2.4), sharey=True)
low = summaries["2e-3"]
for ax, name in zip(axes, ("peak", "width", "area"), strict=True):
    x, y = low[name].values, low["transfer"].values
    found = analysis.correlation(x, y)
    ax.plot(x, 100 * y, "o", markersize=3, alpha=0.6, color=plots.COLOURS[0])
    ax.set(xlabel=f"{name} ({low[name].attrs['units']})", title=f"Spearman {found.estimate:.2f}, p = {found.p:.2g}")
axes[0].set_ylabel("transfer (%), lr 2e-3")
plt.show()

# %% [markdown]
# Two of three are significant. It would make a fine figure, and it is wrong in three ways:
#
# 1. There are ten orders, not eighty. Runs of one order are no independent evidence about orders. 2. A run's tr(F)
# and its transfer come from the same weights. A seed that happens to learn faster can have both higher: a correlation
# that says nothing about schedules. 3. Three shapes, two learning rates: six tests, of which some come out by chance.
#
# ## How bad is it? A simulation where we know the truth
#
# Ten orders, eight seeds. Each order has a shape and a transfer of its own, and **the two are unrelated**. Runs
# scatter around their order, and the scatter of shape and of transfer is shared to some degree. Then we count the
# studies that "find" a correlation at p < .05. How much orders differ beyond their runs' noise is said by the
# reliability: the share of an order's mean over four seeds that is its own.


# %%
def study(rng, between, shared, reliable, schedules=10, seeds=8):
    """Two (schedule, seed) tables: orders correlate by `between`, the noise of their runs by `shared`."""
    own = rng.multivariate_normal([0, 0], [[1, between], [between, 1]], size=(schedules, 1))
    run = rng.multivariate_normal([0, 0], [[1, shared], [shared, 1]], size=(schedules, seeds))
    values = own + 2 * np.sqrt(1 / np.array(reliable) - 1) * run
    return [xr.DataArray(values[..., i], dims=("schedule", "seed")) for i in (0, 1)]


ANALYSES = {
    "80 runs as 80 points": lambda x, y: analysis.correlation(x.values.ravel(), y.values.ravel(), resamples=99),
    "means over seeds": lambda x, y: analysis.correlation(x.mean("seed").values, y.mean("seed").values, resamples=99),
    "each from half of the seeds": lambda x, y: analysis.across_schedules(x, y, resamples=99),
}


def find(how, studies):
    """Share of studies that find a correlation, in %, and its standard error."""
    share = np.mean([ANALYSES[how](*one).p <= 0.05 for one in studies])
    return 100 * share, 100 * (share * (1 - share) / len(studies)) ** 0.5


# %%
rng = np.random.default_rng(0)
degrees = (0.0, 0.3, 0.6, 0.9)
cases = {"orders differ as ours do": (0.56, 0.9), "orders differ little": (0.1, 0.1)}
figure, axes = plt.subplots(1, 2, figsize=(6.3, 2.9), sharey=True)
for ax, (title, reliable) in zip(axes, cases.items(), strict=True):
    nothing = [[study(rng, 0.0, shared, reliable) for _ in range(STUDIES)] for shared in degrees]
    for i, how in enumerate(ANALYSES):
        share, error = np.array([find(how, studies) for studies in nothing]).T
        ax.errorbar(degrees, share, yerr=error, label=how, **plots.marks(i))
    ax.axhline(5, color="0.6", linewidth=0.8, linestyle=":")
    ax.set(title=f"{title} (reliability {reliable[0]}, {reliable[1]})", xlabel="correlation of runs' noise")
axes[0].set_ylabel(f"of {STUDIES} studies find one (%)")
handles, labels = axes[0].get_legend_handles_labels()
figure.legend(handles, labels, loc="outside lower center", ncols=3)
plt.show()

# %% [markdown]
# There is nothing to be found, and the dotted line is what a test at p < .05 may find.
#
# - Runs taken for points invent findings: where orders differ (left), even if runs share no noise at all; with shared
#   noise, everywhere.
# - Means over seeds are right as long as runs share no noise, or orders differ so much that it does not matter. Where
#   orders differ little (right), they go wrong as well.
# - Shape from one half of the seeds, transfer from the other (and the other way round) is never fooled. It pays with
#   power: it finds less than it may.
#
# Do our runs share noise? What is left of peak and of transfer when the means of order and of seed are taken out:


# %%
def residuals(table):
    return (table - table.mean("seed") - table.mean("schedule") + table.mean()).values.ravel()


rows = {}
for rate, summary in summaries.items():
    for name in ("peak", "width", "area"):
        x, y = (residuals(analysis.by_schedule(summary[v])) for v in (name, "transfer"))
        noise = analysis.correlation(x, y)
        rows[f"lr {rate}", name] = f"{noise.estimate:+.2f} [{noise.low:+.2f}, {noise.high:+.2f}]"
pd.Series(rows).unstack()[["peak", "width", "area"]]

# %% [markdown]
# Little, in this world: of the two traps only the first is open here. One cannot know that beforehand.
#
# ## The analysis
#
# Ten orders are ten points; peak from one half of the seeds, transfer from the other. All the ways to correlate that
# we would have taken seriously are shown, and p is corrected for all of them, at both rates together.

# %%
found_in = {rate: analysis.transfer_correlations(summary) for rate, summary in summaries.items()}
together = xr.concat(found_in.values(), pd.Index([f"lr {rate}" for rate in found_in], name="rate"))
together["p_adjusted"] = (together["p"].dims, analysis.adjusted(together["p"].values))
columns = ["correlation", "low", "high", "p", "p_adjusted"]
tests = together[columns].to_dataframe()[columns].dropna()
print(f"{len(tests)} tests; the lowest p is {tests['p'].min():.2f}, corrected {tests['p_adjusted'].min():.2f}")
tests.round(2)

# %%
figure, axes = plt.subplots(1, 2, figsize=(6.3, 2.3))
for ax, (rate, result) in zip(axes, found_in.items(), strict=True):
    plots.correlations(ax, result).set_title(f"lr {rate}")
handles, labels = axes[0].get_legend_handles_labels()
figure.legend(handles, labels, loc="outside lower center", ncols=2)
plt.show()

# %% [markdown]
# Nothing is found, with or without the correction. The mixed model, which asks for the correlation of the orders' own
# values, mostly cannot be had: the orders' shapes do not differ by more than their runs' noise.
#
# ## No effect, or no power?
#
# "Not found" is worth as much as the study's chance to find. Reliability is the share of an order's mean (over half
# of the seeds) that is the order's own and not noise:

# %%
reliability = together[["reliability", "censored"]].to_dataframe().unstack("rate").swaplevel(axis=1).sort_index(axis=1)
reliability.round(2)

# %%
for rate, summary in summaries.items():
    share = analysis.reliability(analysis.by_schedule(summary["transfer"]), seeds=4)
    print(f"lr {rate}: transfer itself has a reliability of {share:.2f}")
    print(f"   too few: {found_in[rate].attrs['underpowered']}")

# %% [markdown]
# Transfer is known well. Shape is not: at the higher rate, nothing of what distinguishes the orders' peaks is more
# than noise. So what would such a study find if shape did go with transfer, among the orders, by as much as .6 or .9?

# %%
rng = np.random.default_rng(1)
shares = (0.1, 0.3, 0.56, 0.8, 0.95)
how = "each from half of the seeds"
for i, rho in enumerate((0.6, 0.9)):
    share, error = np.array(
        [find(how, [study(rng, rho, 0.0, (reliable, 0.9)) for _ in range(STUDIES)]) for reliable in shares]
    ).T
    plt.errorbar(shares, share, yerr=error, label=f"orders correlate by {rho}", **plots.marks(i))
for name, x in (("peak", 0.30), ("area", 0.56)):
    plt.axvline(x, color="0.6", linewidth=0.8, linestyle=":")
    plt.annotate(f"{name},\nlr 2e-3", (x + 0.01, 75), color="0.4", fontsize=7)
plt.xlabel("reliability of the shape (of transfer: 0.9)")
plt.ylabel("studies that find it (%)")
plt.ylim(0, 100)
plt.legend(loc="center left", bbox_to_anchor=(0.0, 0.45))
plt.title("Power of ten orders and eight seeds")
plt.show()

# %% [markdown]
# Hardly ever, for a correlation of .6: ten orders are too few even if their shapes were known exactly. More orders,
# then:

# %%
counts = (10, 20, 40)
power = {
    f"reliability {reliable}": {
        n: find(how, [study(rng, 0.6, 0.0, (reliable, 0.9), schedules=n) for _ in range(STUDIES)])[0] for n in counts
    }
    for reliable in (0.56, 0.95)
}
pd.DataFrame(power).T.rename_axis("studies that find .6 (%), by orders", axis=1).round(0)

# %% [markdown]
# ## Would another definition have found it?
#
# Half of the peak is an arbitrary level. Lower ones are censored even more often; higher ones are a few noisy records
# wide.

# %%
rows = {}
for rate, ds in sweeps.items():
    transfer = analysis.by_schedule(analysis.transfer(ds))
    for level in (0.25, 0.5, 0.75, 0.9):
        width = analysis.width(analysis.learning_curve(ds), level)
        rho = analysis.across_schedules(analysis.by_schedule(width["width"]), transfer)
        said = f"{rho.estimate:+.2f} [{rho.low:+.2f}, {rho.high:+.2f}]"
        rows[f"lr {rate}", level] = {
            "Spearman": said,
            "p": rho.p,
            "lower bounds": f"{float(width['censored'].mean()):.0%}",
        }
levels = pd.DataFrame(rows).T.rename_axis(["", "width at"])
levels["p, corrected"] = analysis.adjusted(levels["p"].astype(float).values).round(2)
levels

# %% [markdown]
# ## What these numbers support, and what they do not
#
# - Not supported: that orders with a higher peak, a wider curve or more area under it transfer better. Nothing at
#   either learning rate comes near significance, and at the higher rate every estimate has the other sign.
# - Not refuted either. Ten orders of eight seeds seldom find a correlation of .6 even where shapes are known exactly,
#   and here they are not. At the lower rate most widths are lower bounds, so that width is hardly tested at all.
# - Supported: the usual analysis (each run a point) would have reported two findings at the lower rate. In
#   simulations without any relation it finds one more than twice as often as it may, and six times as often with the
#   little shared noise (.3) that our intervals still allow.
# - What it would take: some 40 orders, drawn at random; more probe inputs and more seeds, so that an order's shape is
#   known; runs long enough for tr(F) to come down. A run of this sweep takes about half a minute of one core, so that
#   is a night on a laptop, not a cluster.

# %%
print(f"{time.process_time():.0f} seconds of one core")
