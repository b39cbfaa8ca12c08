"""Intervals, tests and power against simulated truths, and what shared noise does to correlations."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from fisherdyn import analysis


def test_paired_difference_is_paired():
    """Seeds that move both schedules alike do not widen the interval."""
    rng = np.random.default_rng(1)
    seeds = rng.normal(0, 1, 8)
    values = np.concatenate([seeds + 0.1 + 0.01 * rng.normal(size=8), seeds])
    coords = {"schedule": ("run", ["x"] * 8 + ["y"] * 8), "seed": ("run", [*range(8)] * 2)}
    table = analysis.by_schedule(xr.DataArray(values, coords, ["run"]))
    found = analysis.paired_difference(table, "x", "y")
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
    assert analysis.correlation(x, x**3, resamples=499).estimate == pytest.approx(1)
    false = sum(analysis.correlation(*rng.normal(size=(2, 10)), resamples=199).p < 0.05 for _ in range(400))
    assert false / 400 <= 0.08
    assert np.isnan(analysis.correlation(np.ones(5), x[:5]).estimate)
    assert np.isnan(analysis.correlation(x, np.where(x > 1, np.nan, x)).p)


def _tables(rng, effect, noise, own=0.0):
    """Two (schedule, seed) tables: runs share noise, schedules move both by `effect` and each for itself by `own`."""
    moved, shared = rng.normal(size=(10, 1)), rng.normal(size=(10, 8))
    return [
        xr.DataArray(
            effect * moved + own * rng.normal(size=(10, 1)) + noise * shared + 0.5 * rng.normal(size=(10, 8)),
            dims=("schedule", "seed"),
        )
        for _ in range(2)
    ]


@pytest.mark.parametrize(("noise", "own"), [(3.0, 0.0), (2.0, 1.0)])
def test_noise_that_runs_share_is_not_an_effect_of_the_order(noise, own):
    """1,000 studies without an effect, with shared noise; schedules with or without an x and y of their own."""
    rng = np.random.default_rng(0)
    studies = [_tables(rng, 0.0, noise, own) for _ in range(1000)]
    found = [analysis.across_schedules(*study, resamples=39) for study in studies]
    assert np.mean([i.p <= 0.05 for i in found]) <= 0.06
    # Negative controls: both from the same runs; and halves, whose shuffled means do not know what halves share.
    naive = [analysis.correlation(*(t.mean("seed").values for t in study), resamples=99) for study in studies[:200]]
    assert np.mean([i.p <= 0.05 for i in naive]) > (0.5 if own == 0 else 0.1)
    if own == 0:
        assert np.mean([_p_of_shuffled_means(*study, rng) <= 0.05 for study in studies[:400]]) > 0.07


def _p_of_shuffled_means(x, y, rng, resamples=39):
    a, b = x.values, y.values
    ranks = [stats.zscore(stats.rankdata(t.mean(1))) / 10 for t in (a[:, ::2], b[:, 1::2], a[:, 1::2], b[:, ::2])]
    orders = [np.arange(10), *(rng.permutation(10) for _ in range(resamples))]
    rho = np.array([abs(ranks[0] @ ranks[1][order] + ranks[2] @ ranks[3][order]) for order in orders])
    return np.mean(rho >= rho[0] - 1e-12)


def test_an_effect_of_the_order_is_found():
    rng = np.random.default_rng(0)
    assert (
        np.mean([_correlates(analysis.across_schedules(*_tables(rng, 2.0, 1.0), resamples=99)) for _ in range(50)])
        > 0.9
    )


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
    assert analysis.paired_difference(table, "y", "x").n == 1
    with pytest.raises(ValueError, match="no seed has a run of every schedule"):
        analysis.by_schedule(values.isel(run=[1, 2]))
    with pytest.raises(ValueError, match="got NaN for b"):
        analysis.groups({"a": 0.5, "b": np.nan})
    assert np.isnan(analysis.mean_interval(np.array([1.0, np.nan])).p)


def test_rank_correlation_is_scipys():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 6, (2, 15))
    found = analysis.correlation(x, y, resamples=99)
    assert found.estimate == pytest.approx(stats.spearmanr(x, y).statistic)


METHODS = {
    "pearson": (stats.pearsonr, lambda rho: rho),
    "spearman": (stats.spearmanr, lambda rho: 6 / np.pi * np.arcsin(rho / 2)),
    "kendall": (stats.kendalltau, lambda rho: 2 / np.pi * np.arcsin(rho)),
}


def _normal_pair(rng, rho, n=11):
    x = rng.normal(size=n)
    return x, rho * x + np.sqrt(1 - rho**2) * rng.normal(size=n)


@pytest.mark.parametrize("method", METHODS)
def test_correlations_are_scipys(method):
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 6, (2, 15))
    reference, _ = METHODS[method]
    assert analysis.correlation(x, y, method, resamples=99).estimate == pytest.approx(reference(x, y).statistic)
    few = rng.normal(size=(2, 6))  # every order is tried, so p is exact
    orders = stats.permutation_test(
        (few[1],), lambda y: abs(reference(few[0], y).statistic), permutation_type="pairings", vectorized=False,
        alternative="greater",
    )  # fmt: skip
    assert analysis.correlation(*few, method).p == pytest.approx(orders.pvalue)


@pytest.mark.parametrize("method", METHODS)
def test_intervals_of_correlations_cover(method):
    """1,000 studies of 11 schedules whose correlation is known, and as many without one."""
    rng = np.random.default_rng(0)
    truth = METHODS[method][1](0.6)
    found = [analysis.correlation(*_normal_pair(rng, 0.6), method, resamples=199) for _ in range(1000)]
    assert 0.92 <= np.mean([i.low <= truth <= i.high for i in found]) <= 0.98
    nothing = [analysis.correlation(*_normal_pair(rng, 0.0), method, resamples=39) for _ in range(1000)]
    assert np.mean([i.p <= 0.05 for i in nothing]) <= 0.06
    assert np.mean([_correlates(i) for i in found]) > 0.3


def test_partial_correlation():
    """Two that go together only through a third: the plain correlation finds it, the partial one does not."""
    rng = np.random.default_rng(0)
    plain = partial = 0
    for _ in range(1500):
        z = rng.normal(size=11)
        x, y = 0.7 * z + rng.normal(size=(2, 11))
        plain += stats.spearmanr(x, y).pvalue <= 0.05
        partial += analysis.partial_correlation(x, y, z, resamples=9).p <= 0.05
    assert partial / 1500 <= 0.06
    assert plain / 1500 > 0.1
    r = [stats.spearmanr(*pair).statistic for pair in ((x, y), (x, z), (y, z))]
    expected = (r[0] - r[1] * r[2]) / np.sqrt((1 - r[1] ** 2) * (1 - r[2] ** 2))
    assert analysis.partial_correlation(x, y, z, resamples=99).estimate == pytest.approx(expected)


def test_wrong_correlations_are_refused():
    x = np.arange(6.0)
    with pytest.raises(ValueError, match="unknown method 'cosine': choose among pearson, spearman, kendall"):
        analysis.correlation(x, x, "cosine")
    with pytest.raises(ValueError, match=r"expected x, y of one shape, got \(1, 6\), \(1, 5\)"):
        analysis.correlation(x, x[1:])
    with pytest.raises(ValueError, match="expected x, y, given of one shape"):
        analysis.partial_correlation(x, x, x[1:])


@pytest.mark.parametrize("rho", [0.0, 0.7])
def test_mixed_correlation_is_of_the_schedules_own(rho):
    """1,000 studies: the schedules' own correlation is within the interval, whatever noise runs share."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(1000):
        own = np.stack(_normal_pair(rng, rho, 12))[:, :, None]
        shared = rng.normal(size=(12, 8))
        x, y = (xr.DataArray(o + shared + 0.5 * rng.normal(size=(12, 8)), dims=("schedule", "seed")) for o in own)
        found.append(analysis.mixed_correlation(x, y, resamples=99))
    assert 0.93 <= np.mean([i.low <= rho <= i.high for i in found]) <= 0.99
    assert np.nanmean([i.estimate for i in found]) == pytest.approx(rho, abs=0.05)


def test_mixed_correlation_where_there_is_nothing_to_correlate():
    x = xr.DataArray(np.random.default_rng(3).normal(size=(5, 3)), dims=("schedule", "seed"))
    same = x - x.mean("seed")
    assert np.isnan(analysis.mixed_correlation(same, x).estimate)
    assert np.isnan(analysis.mixed_correlation(x.isel(seed=[0]), x.isel(seed=[0])).estimate)


def test_reliability_grows_as_spearman_and_brown_say():
    rng = np.random.default_rng(0)
    table = xr.DataArray(rng.normal(size=(400, 1)) + 2 * rng.normal(size=(400, 8)), dims=("schedule", "seed"))
    assert analysis.reliability(table, 8) == pytest.approx(1 / (1 + 4 / 8), abs=0.04)
    assert analysis.reliability(table, 4) == pytest.approx(1 / (1 + 4 / 4), abs=0.05)
    assert analysis.reliability(table - table.mean("seed"), 8) == 0


def _summary(rng, effect, seeds=8):
    peak, transfer = _tables(rng, effect, 0.5)
    width = xr.DataArray(rng.normal(size=(10, 8)) + 3 * rng.normal(size=(10, 1)), dims=("schedule", "seed"))
    tables = xr.Dataset({"peak": peak, "width": width, "area": peak + width, "transfer": transfer})
    names = {"schedule": [f"s{i}" for i in range(10)], "seed": range(8)}
    runs = tables.assign_coords(names).isel(seed=range(seeds)).stack(run=("schedule", "seed")).reset_index("run")
    return runs.assign(censored=xr.zeros_like(runs["peak"]))


def test_all_correlations_with_transfer_at_once():
    found = analysis.transfer_correlations(_summary(np.random.default_rng(0), 2.0), resamples=999)
    assert dict(found.sizes) == {"quantity": 3, "measure": 5}
    for measure in ("pearson", "spearman", "kendall", "mixed"):
        assert found["correlation"].sel(quantity="peak", measure=measure) > 0.6
        assert abs(found["correlation"].sel(quantity="width", measure=measure)) < 0.6
    assert (found["p_adjusted"] >= found["p"]).where(found["p"].notnull(), True).all()
    assert found["p_adjusted"].sel(quantity="peak", measure="spearman") < 0.05
    assert found["correlation"].sel(quantity="area", measure="partial").isnull()
    assert found.attrs["schedules_needed"] == analysis.points_needed(0.6)
    assert "10 schedules, 20 needed to find a correlation of 0.6" in found.attrs["underpowered"]


def test_an_underpowered_study_says_so():
    rng = np.random.default_rng(0)
    said = analysis.transfer_correlations(_summary(rng, 0.0), resamples=99).attrs["underpowered"]
    assert "peak: " in said
    values = xr.DataArray(
        np.concatenate([0.7 + 0.03 * rng.normal(size=5), 0.6 + 0.03 * rng.normal(size=5), np.full(5, 0.65)]),
        {"schedule": ("run", ["good"] * 5 + ["standard"] * 5 + ["flat"] * 5), "seed": ("run", [*range(5)] * 3)},
        ["run"],
    )
    table = analysis.by_schedule(values)
    found = analysis.compare(table)
    assert found["schedule"].values.tolist() == ["good", "flat"]
    assert found["difference"].sel(schedule="good") == pytest.approx(0.1, abs=0.04)
    assert (found["seeds_needed"] > 5).all()
    assert found.attrs["underpowered"].startswith("5 seeds; to find a difference of 0.02 it takes good ")
    assert analysis.compare(table, smallest_effect=0.5).attrs["underpowered"] == ""
    one = analysis.compare(table.isel(seed=[0]))
    assert one.attrs["underpowered"] == "one seed: nothing can be told from it"
    assert one["p_adjusted"].isnull().all()
    with pytest.raises(ValueError, match="expected runs of 'gu' and of others"):
        analysis.compare(table, "gu")


def test_power_is_what_simulation_gives():
    rng = np.random.default_rng(0)
    n = analysis.seeds_needed(1.0, 1.2)
    found = stats.ttest_1samp(1.0 + 1.2 * rng.normal(size=(20_000, n)), 0, axis=1).pvalue < 0.05
    fewer = stats.ttest_1samp(1.0 + 1.2 * rng.normal(size=(20_000, n - 1)), 0, axis=1).pvalue < 0.05
    assert found.mean() > 0.79 > fewer.mean() - 0.02
    assert found.mean() == pytest.approx(analysis.power(1.0, 1.2, n), abs=0.01)
    assert analysis.detectable(1.2, n) == pytest.approx(1.0, rel=0.1)
    assert analysis.power(analysis.detectable(1.2, 9), 1.2, 9) == pytest.approx(0.8)
    assert analysis.seeds_needed(-1.0, 1.2) == n
    assert analysis.seeds_needed(1.0, 0.0) == 2
    with pytest.raises(ValueError, match="needs more than 100,000 seeds"):
        analysis.seeds_needed(1e-6, 1.0)
    with pytest.raises(ValueError, match="a difference other than 0"):
        analysis.seeds_needed(0.0, 1.0)
    rho = analysis.points_needed(0.6)
    pairs = [_normal_pair(rng, 0.6, rho) for _ in range(4000)]
    assert np.mean([stats.pearsonr(*pair).pvalue < 0.05 for pair in pairs]) == pytest.approx(0.8, abs=0.05)
    with pytest.raises(ValueError, match="between -1 and 1 other than 0"):
        analysis.points_needed(0.0)


def test_corrected_p_values():
    np.testing.assert_allclose(analysis.adjusted(np.array([0.01, np.nan, 0.04, 0.03])), [0.03, np.nan, 0.04, 0.04])
    assert np.isnan(analysis.adjusted(np.array([np.nan]))).all()
    rng = np.random.default_rng(0)
    false = [(analysis.adjusted(rng.uniform(size=10)) <= 0.05).any() for _ in range(2000)]
    assert np.mean(false) <= 0.06


def test_intervals_over_seeds_are_students():
    values = xr.DataArray(np.random.default_rng(0).normal(size=(3, 6)), dims=("schedule", "seed"))
    found = analysis.over_seeds(values)
    for i in range(3):
        one = analysis.mean_interval(values.values[i])
        np.testing.assert_allclose(found.values[:, i], [one.estimate, one.low, one.high])
    single = analysis.over_seeds(values.isel(seed=[0]))
    assert np.isinf(single.sel(bound=["low", "high"])).all()


def _gaps(*gaps, seeds=5):
    """Transfer of a baseline and of schedules that are better by so much, on average, over runs."""
    rng = np.random.default_rng(0)
    names = ["standard", *(f"s{i}" for i in range(len(gaps)))]
    values = 0.5 + 0.01 * rng.standard_normal((len(names), seeds)) + np.array([0.0, *gaps])[:, None]
    coords = {"schedule": ("run", np.repeat(names, seeds)), "seed": ("run", np.tile(np.arange(seeds), len(names)))}
    return xr.DataArray(values.ravel(), coords, ["run"])


def test_comparisons_say_what_cannot_be_said():
    values = _gaps(0.1, 0.0)
    values[7] = np.nan
    table = analysis.by_schedule(values)
    found = analysis.compare(table)
    assert np.isnan(found["difference"].values).tolist() == [True, False]
    assert np.isnan(found["seeds_needed"].values).tolist() == [True, False]
    assert found["p_adjusted"].values[1] == found["p"].values[1]  # one comparison is left
    assert np.isinf(analysis.compare(1e4 * analysis.by_schedule(_gaps(0.1)))["seeds_needed"]).all()
    assert all(map(np.isnan, analysis.order_effect(table)))
    for statistic in (analysis.order_effect, analysis.compare, lambda x: analysis.paired_difference(x, "s0", "s1")):
        with pytest.raises(ValueError, match=r"expected a table \(schedule, seed\), .* by_schedule .*, got \(run\)"):
            statistic(values)
    with pytest.raises(ValueError, match="no runs of nope, only of standard, s0"):
        analysis.paired_difference(analysis.by_schedule(_gaps(0.1)), "nope", "standard")


def test_power_where_nothing_varies():
    assert (analysis.power(0.1, 0.0, 8), analysis.power(0.0, 0.0, 8)) == (1.0, 0.0)
    with pytest.raises(ValueError, match="expected an sd of at least 0, got -1"):
        analysis.detectable(-1, 8)


def test_correlations_across_one_schedule_or_with_one_seed_are_refused_or_said():
    runs = [(f"s{i}", seed) for i in range(6) for seed in range(2)]
    rng = np.random.default_rng(0)
    coords = {"schedule": ("run", [name for name, _ in runs]), "seed": ("run", [seed for _, seed in runs])}
    names = ("transfer", "peak", "width", "area", "censored")
    summary = xr.Dataset({name: ("run", rng.uniform(size=12)) for name in names}, coords)
    with pytest.raises(ValueError, match="one schedule, s0: a correlation across schedules needs several"):
        analysis.transfer_correlations(summary.isel(run=[0, 1]), resamples=50)
    one_seed = analysis.transfer_correlations(summary.isel(run=slice(0, None, 2)), resamples=50)
    assert "one seed: what schedules differ by cannot be told from noise" in one_seed.attrs["underpowered"]
    assert "do not differ" not in one_seed.attrs["underpowered"]
