"""Analysis against closed forms and simulated truths."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from fisherdyn import analysis


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


def test_results_are_of_each_runs_own_last_quarter():
    """A run that ended earlier, and one whose last evaluation lacks a target: what is missing is not averaged over."""
    ds = _record(4)
    ds["metric"][1, 2:] = np.nan
    ds["metric"][2, 3, 0] = np.nan
    ds["source_metric"][1, 2:] = np.nan
    metric = ds["metric"].values
    found = analysis.results(ds)
    np.testing.assert_allclose(found["transfer"].values[1], metric[1, 1].mean())
    np.testing.assert_allclose(found["source"].values[1], ds["source_metric"].values[1, 1])
    np.testing.assert_allclose(found["target_result"].values[2], [metric[2, 2, 0], metric[2, 2:, 1].mean()])
    ds["metric"][2, :, 0] = np.nan
    assert np.isnan(analysis.transfer(ds).values).tolist() == [False, False, True, False]


def test_a_table_of_schedules_and_seeds_keeps_their_order_and_refuses_what_is_none():
    values = analysis.transfer(_record(4)).assign_coords(schedule=("run", ["z", "z", "a", "a"]))
    assert analysis.by_schedule(values)["schedule"].values.tolist() == ["z", "a"]
    several = analysis.by_schedule(xr.Dataset({"transfer": values, "twice": 2 * values}))
    xr.testing.assert_identical(several["transfer"], analysis.by_schedule(values).rename("transfer"))
    with pytest.raises(ValueError, match="no run is left"):
        analysis.by_schedule(values.isel(run=[]))
    twice = xr.concat([values, values], "run").assign_coords(train_examples=("run", [200] * 4 + [1000] * 4))
    with pytest.raises(ValueError, match=r"2 runs of 'z' with seed 0, .* they differ in \(train_examples\)"):
        analysis.by_schedule(twice)


def test_groups_of_footnote_9():
    """From the best down: all within a point of the group's best, not of its last member."""
    transfer = {"a": 0.700, "b": 0.690, "c": 0.689, "d": 0.680, "e": 0.650}
    assert analysis.groups(transfer) == [["a", "b"], ["c", "d"], ["e"]]
    assert analysis.groups({}) == []


def test_a_curve_is_nan_where_nothing_is_open():
    ds = _record()
    ds["trainable"][:, :2] = 0
    curve = analysis.learning_curve(ds)
    assert curve.isnull().values.tolist() == [[True, True, False, False, False]] * 2
    ds["trainable"][0] = 0
    assert np.isnan(analysis.peak(analysis.learning_curve(ds))["peak_step"].values).tolist() == [True, False]


def test_learning_period_of_a_gaussian():
    """onset and end are the two crossings, width is between them, the area is the integral."""
    found = analysis.shape(_bump(100, 20), level=0.5)
    half = np.sqrt(2 * np.log(2)) * 20
    assert found["onset"].item() == pytest.approx(100 - half, abs=0.2)
    assert found["end"].item() == pytest.approx(100 + half, abs=0.2)
    assert found["width"].item() == pytest.approx(found["end"].item() - found["onset"].item())
    assert found["area"].item() == pytest.approx(2 * 20 * np.sqrt(2 * np.pi), rel=1e-4)
    assert (found["onset_censored"].item(), found["end_censored"].item()) == (0, 0)
    with pytest.raises(ValueError, match="expected a level between 0 and 1"):
        analysis.width(_bump(100, 20), level=1.5)


def test_each_side_is_censored_for_itself():
    left, right = analysis.learning_period(_bump(10, 30)), analysis.learning_period(_bump(190, 30))
    assert (left["onset_censored"].item(), left["end_censored"].item()) == (1, 0)
    assert left["onset"].item() == 0
    assert (right["onset_censored"].item(), right["end_censored"].item()) == (0, 1)
    assert right["end"].item() == 200


def test_shapes_of_many_curves_are_those_of_each():
    rng = np.random.default_rng(0)
    many = xr.concat([_bump(c, s) for c, s in rng.uniform(20, 150, (12, 2))], "run").copy()
    many[3, :] = np.nan
    many[5, 20] = np.nan
    together = analysis.shape(many)
    for i in range(12):
        xr.testing.assert_allclose(together.isel(run=i), analysis.shape(many.isel(run=i)))
    assert np.isnan(together["area"].values[3])
    assert np.isnan(together["width"].values[3])


def test_smoothing_and_scaling():
    curve = _bump(100, 20)
    np.testing.assert_allclose(analysis.smooth(curve, 1), curve)
    np.testing.assert_allclose(analysis.smooth(curve, 3).values[1:-1], np.convolve(curve, np.ones(3) / 3, "valid"))
    assert analysis.to_unit(curve).max() == 1
    both = xr.concat([curve, 2 * curve], "run")
    np.testing.assert_allclose(analysis.to_unit(both).max("step"), [1, 1])
    np.testing.assert_allclose(analysis.to_unit(both, ("run", "step")).max("step"), [0.5, 1])
    assert analysis.to_unit(0 * curve).isnull().all()
    with pytest.raises(ValueError, match="a window of at least 1 record, got 0"):
        analysis.smooth(curve, 0)


def _measured(curves, se, rng):
    """A record of one open layer: curves (run, step) seen with errors of a known size."""
    trace = (curves + se * rng.normal(size=curves.shape)).expand_dims(layer=["0"], axis=-1)
    return xr.Dataset(
        {
            "fisher_trace": trace,
            "fisher_trace_se": se * xr.ones_like(trace),
            "trainable": xr.ones_like(trace, dtype="i1"),
        }
    )


def test_intervals_from_standard_errors_cover():
    """1,000 measurements of one bump: 95 % of the intervals hold what the curve has without noise."""
    rng = np.random.default_rng(0)
    true = _bump(100, 30)
    truth = analysis.shape(analysis.smooth(true))
    ds = _measured(xr.concat([true] * 1000, "run"), 0.06, rng)
    found = analysis.shape_from_errors(ds, draws=99)
    assert found["bound"].values.tolist() == ["estimate", "low", "high"]
    for name in ("peak", "width", "area", "onset", "end"):
        low, high = found[name].sel(bound="low"), found[name].sel(bound="high")
        inside = float(((low <= truth[name]) & (truth[name] <= high)).mean())
        assert 0.9 < inside < 0.98, (name, inside)
    narrow = analysis.shape_from_errors(ds.assign(fisher_trace_se=ds["fisher_trace_se"] / 3), draws=99)
    low, high = narrow["area"].sel(bound="low"), narrow["area"].sel(bound="high")
    assert float(((low <= truth["area"]) & (truth["area"] <= high)).mean()) < 0.8  # control: errors said too small


def test_a_censored_width_has_no_interval():
    ds = _measured(_bump(180, 30).expand_dims(run=1), 0.05, np.random.default_rng(0))
    found = analysis.shape_from_errors(ds, draws=99).isel(run=0)
    assert found["width"].isnull().values.tolist() == [False, True, True]
    assert found["onset"].notnull().all()
    assert found["peak"].notnull().all()


FUN = (10, 9, 8, 7, 6, 1, 5, 4, 2, 0, 3)  # footnote 11's example


def _selected(*orders, interval=5, layers=12):
    steps = np.zeros((len(orders), layers), dtype=int)
    for row, order in zip(steps, orders, strict=True):
        row[list(order)] = interval * np.arange(1, len(order) + 1)
    coords = {"schedule": ("run", [f"s{i}" for i in range(len(orders))]), "seed": ("run", [0] * len(orders))}
    return xr.DataArray(steps, coords, ["run", "layer"])


def test_distance_from_top_down():
    down, up = tuple(range(10, -1, -1)), tuple(range(11))
    found = analysis.distance_from_top_down(_selected(down, up, FUN, ())).values
    np.testing.assert_allclose(found[:3], [0, 1, 6 / 55])  # 1 before 5, 4, 3, 2; 2 and 0 before 3
    assert np.isnan(found[3])
    tau = stats.kendalltau(-np.arange(11), [FUN.index(layer) for layer in range(11)]).statistic
    assert found[2] == pytest.approx((1 - tau) / 2)
    together = _selected(down)
    together[:, :6] = 100
    assert analysis.distance_from_top_down(together).item() == 0


def test_orders_and_their_average():
    selected = _selected(FUN, tuple(range(10, -1, -1)), ())
    order = analysis.opening_order(selected)
    assert order.sizes["opening"] == 11
    assert order.values[0].tolist() == list(FUN)
    assert np.isnan(order.values[2]).all()
    selected = selected.assign_coords(schedule=("run", ["fun", "fun", "standard"]), seed=("run", [0, 1, 0]))
    found = analysis.averaged_schedule(selected)
    assert found["schedule"].values.tolist() == ["fun"]
    np.testing.assert_allclose(found["layer"].sel(schedule="fun"), (np.array(FUN) + np.arange(10, -1, -1)) / 2)
    one = analysis.averaged_schedule(selected.isel(run=[0]))
    assert one["se"].isnull().all()
    linear_probing = _selected(())
    linear_probing[:] = 5
    with pytest.raises(ValueError, match="runs that open layers one at a time, got none"):
        analysis.averaged_schedule(linear_probing)


def test_analysis_needs_no_torch():
    code = "import sys; import fisherdyn.analysis; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
