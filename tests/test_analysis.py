"""Analysis against closed forms and simulated truths."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import xarray as xr

from fisherdyn import analysis, plots


def _bump(centre, sigma, height=2.0):
    steps = np.arange(0, 201, 4)
    return xr.DataArray(height * np.exp(-((steps - centre) ** 2) / (2 * sigma**2)), {"step": steps}, ["step"])


@pytest.mark.parametrize(("centre", "sigma"), [(100, 20), (80, 12), (120, 25)])
def test_peak_and_width_of_a_gaussian(centre, sigma):
    curve = _bump(centre, sigma)
    found = {**analysis.peak(curve), **analysis.width(curve)}
    assert found["peak"].item() == pytest.approx(2.0)
    assert found["peak_step"].item() == centre
    assert found["width"].item() == pytest.approx(2 * np.sqrt(2 * np.log(2)) * sigma, rel=0.01)
    assert found["censored"].item() == 0
    quarter = analysis.width(curve, level=0.25)["width"].item()
    assert quarter == pytest.approx(2 * np.sqrt(2 * np.log(4)) * sigma, rel=0.01)


@pytest.mark.parametrize("centre", [0, 190])
def test_a_curve_that_leaves_the_record_is_censored(centre):
    found = analysis.width(_bump(centre, 30))
    assert found["censored"].item() == 1


def test_width_ends_where_nothing_is_open():
    curve = _bump(60, 40)
    curve[:10] = np.nan
    found = analysis.width(curve)
    assert found["censored"].item() == 1
    assert found["width"].item() < 100


def _record(runs=2):
    rng = np.random.default_rng(0)
    trace = rng.uniform(1, 2, (runs, 5, 3))
    is_open = np.zeros((runs, 5, 3), dtype=np.int8)
    is_open[:, :, 2], is_open[:, 2:, 1], is_open[:, 4:, 0] = 1, 1, 1
    return xr.Dataset(
        {
            "fisher_trace": (("run", "step", "layer"), trace),
            "trainable": (("run", "step", "layer"), is_open),
            "source_metric": (("run", "step"), rng.uniform(size=(runs, 5))),
            "metric": (("run", "eval_step", "target"), rng.uniform(size=(runs, 4, 2))),
        },
        {
            "step": [0, 10, 20, 30, 40],
            "eval_step": [10, 20, 30, 40],
            "layer": list("012"),
            "target": ["a", "b"],
            "schedule": ("run", [f"s{i // 2}" for i in range(runs)]),
            "seed": ("run", [i % 2 for i in range(runs)]),
        },
    )


def test_learning_curve_counts_open_layers_only():
    ds = _record()
    curve = analysis.learning_curve(ds, window=1)
    t = ds["fisher_trace"].values
    np.testing.assert_allclose(curve.values[:, 0], t[:, 0, 2])
    np.testing.assert_allclose(curve.values[:, 2], t[:, 2, 1:].mean(axis=1))
    np.testing.assert_allclose(curve.values[:, 4], t[:, 4].mean(axis=1))
    smooth = analysis.learning_curve(ds, window=3).values
    np.testing.assert_allclose(smooth[:, 1], curve.values[:, :3].mean(axis=1))


def test_results_are_of_the_last_quarter():
    ds = _record()
    np.testing.assert_allclose(analysis.transfer(ds).values, ds["metric"].values[:, 2:].mean(axis=(1, 2)))
    found = analysis.summarise(ds)
    np.testing.assert_allclose(found["source"].values, ds["source_metric"].values[:, 3:].mean(axis=1))


def test_groups_of_footnote_9():
    """From the best down: all within a point of the group's best, not of its last member."""
    transfer = {"a": 0.700, "b": 0.690, "c": 0.689, "d": 0.680, "e": 0.650}
    assert analysis.groups(transfer) == [["a", "b"], ["c", "d"], ["e"]]
    assert analysis.groups({}) == []


def test_paired_difference_is_paired():
    """Seeds that move both schedules alike do not widen the interval."""
    rng = np.random.default_rng(1)
    seeds = rng.normal(0, 1, 8)
    values = np.concatenate([seeds + 0.1 + 0.01 * rng.normal(size=8), seeds])
    coords = {"schedule": ("run", ["x"] * 8 + ["y"] * 8), "seed": ("run", [*range(8)] * 2)}
    found = analysis.paired_difference(xr.DataArray(values, coords, ["run"]), "x", "y")
    assert found.estimate == pytest.approx(0.1, abs=0.02)
    assert found.excludes_zero
    assert found.half < 0.02
    assert found.n == 8


def test_mean_intervals_cover():
    rng = np.random.default_rng(0)
    inside = sum((i := analysis.mean_interval(rng.normal(3, 2, 6))).low < 3 < i.high for _ in range(2000))
    assert 0.935 < inside / 2000 < 0.965
    assert analysis.mean_interval(np.array([1.0])).half == np.inf


def test_rank_correlation_finds_and_does_not_invent():
    rng = np.random.default_rng(0)
    x = rng.normal(size=12)
    assert analysis.rank_correlation(x, x**3, resamples=499).estimate == pytest.approx(1)
    false = sum(analysis.rank_correlation(*rng.normal(size=(2, 10)), resamples=199).p < 0.05 for _ in range(400))
    assert false / 400 <= 0.08
    assert np.isnan(analysis.rank_correlation(np.ones(5), x[:5]).estimate)
    assert np.isnan(analysis.rank_correlation(x, np.where(x > 1, np.nan, x)).p)


def _tables(rng, effect, noise):
    """Two (schedule, seed) tables whose runs share noise; schedules move both by `effect`."""
    moved, shared = rng.normal(size=(10, 1)), rng.normal(size=(10, 8))
    dims = ("schedule", "seed")
    return (xr.DataArray(effect * moved + noise * shared + 0.5 * rng.normal(size=(10, 8)), dims=dims) for _ in range(2))


def test_noise_that_runs_share_is_not_an_effect_of_the_order():
    rng = np.random.default_rng(0)
    tables = [tuple(_tables(rng, 0.0, 1.0)) for _ in range(150)]
    assert np.mean([_correlates(analysis.across_schedules(x, y, resamples=199)) for x, y in tables]) <= 0.1
    naive = [analysis.rank_correlation(x.mean("seed").values, y.mean("seed").values, resamples=199) for x, y in tables]
    assert np.mean([_correlates(found) for found in naive]) > 0.5  # negative control: the same runs on both sides
    assert _correlates(analysis.across_schedules(*_tables(rng, 2.0, 1.0)))


def _correlates(found):
    return found.p < 0.05


def test_order_effect_at_its_level():
    rng = np.random.default_rng(0)
    tables = [xr.DataArray(rng.normal(size=(6, 5)), dims=("schedule", "seed")) for _ in range(400)]
    assert 0.02 < np.mean([analysis.order_effect(table)[2] < 0.05 for table in tables]) < 0.09
    table = tables[0] + xr.DataArray(np.arange(6.0), dims="schedule")
    assert analysis.order_effect(table)[2] < 0.01
    assert analysis.order_effect(0.5 * xr.ones_like(table))[2] == 1


def test_only_complete_seeds_are_compared():
    values = xr.DataArray(
        [1.0, 2.0, 3.0, 10.0], {"schedule": ("run", ["x", "x", "y", "y"]), "seed": ("run", [0, 1, 0, 2])}, ["run"]
    )
    table = analysis.by_schedule(values)
    assert table["seed"].values.tolist() == [0]
    assert analysis.paired_difference(values, "y", "x").n == 1
    with pytest.raises(ValueError, match="no seed has a run of every schedule"):
        analysis.by_schedule(values.isel(run=[1, 2]))
    with pytest.raises(ValueError, match="got NaN for b"):
        analysis.groups({"a": 0.5, "b": np.nan})
    assert np.isnan(analysis.mean_interval(np.array([1.0, np.nan])).p)


def test_a_curve_is_nan_where_nothing_is_open():
    ds = _record()
    ds["trainable"][:, :2] = 0
    curve = analysis.learning_curve(ds)
    assert curve.isnull().values.tolist() == [[True, True, False, False, False]] * 2
    ds["trainable"][0] = 0
    assert np.isnan(analysis.peak(analysis.learning_curve(ds))["peak_step"].values).tolist() == [True, False]


def test_rank_correlation_is_scipys():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 6, (2, 15))
    found = analysis.rank_correlation(x, y, resamples=99)
    assert found.estimate == pytest.approx(analysis.stats.spearmanr(x, y).statistic)


def test_figure_shows_every_group():
    ds = _record(6)
    ds["metric"] += xr.DataArray([0, 0, 0.5, 0.5, 2, 2], dims="run")
    figure = plots.figure_4(ds)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(labels) == 3
    assert all("(1)" in label for label in labels)
    left, right = figure.axes
    assert all(axes.get_xlabel() == "step" for axes in (left, right))


def test_figures_need_no_torch():
    code = "import sys; import fisherdyn.analysis, fisherdyn.plots; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
