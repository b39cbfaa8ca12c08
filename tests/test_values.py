"""What single examples give: in the loader's order, for paired comparisons, in an interval that allows for their tails."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import xarray as xr
from oracle import per_example_trace
from scipy import stats
from torch import nn

import fisherdyn
from fisherdyn import analysis, fisher_trace, probe

LAYERS = {"body": ("0.weight",), "head": ("2.weight",)}


def made() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double(), torch.randn(50, 5).double()


@pytest.mark.parametrize("method", ["hooks", "vmap"])
def test_values_are_those_of_the_examples_in_the_loaders_order(method):
    """Though batches are joined, and are of several sizes and shapes."""
    model, x = made()
    x = x[:18]
    loader = [*x[:12].split(4), *x[12:].split(3)]
    ds = probe(model, loader, layers=LAYERS, labels="exact", method=method, values=True)
    assert ds["fisher_values"].dims == ("example", "layer")
    truth = per_example_trace(model, x, LAYERS).numpy()
    np.testing.assert_allclose(ds["fisher_values"], truth, rtol=1e-9)
    np.testing.assert_allclose(ds["fisher_trace"], truth.mean(axis=0), rtol=1e-9)
    np.testing.assert_allclose(ds["fisher_trace_skewness"], stats.skew(truth), rtol=1e-9)
    assert "fisher_values" not in probe(model, loader, layers=LAYERS)


def test_of_loaders_of_two_lengths_the_shorter_ends_in_nan(tmp_path):
    model, x = made()
    ds = probe(model, {"near": [x], "far": [2 * x[:20]]}, layers=LAYERS, labels="exact", values=True)
    assert ds["fisher_values"].dims == ("loader", "example", "layer")
    assert ds["fisher_values"].notnull().all("layer").sum("example").values.tolist() == [50, 20]
    np.testing.assert_allclose(ds["fisher_values"].mean("example"), ds["fisher_trace"], rtol=1e-9)
    ds.to_netcdf(tmp_path / "values.nc")
    xr.testing.assert_identical(xr.open_dataset(tmp_path / "values.nc").load(), ds)


def test_values_need_a_method_that_sees_examples():
    model, x = made()
    with pytest.raises(
        ValueError, match=r'single examples for values=True, "hooks" or "vmap", got \'batch/rademacher\''
    ):
        probe(model, [x], method="batch", values=True)


def test_a_loader_needs_a_name():
    """One of name "" would pass for a single loader, and the others would be lost."""
    model, x = made()
    for call in (probe, fisherdyn.Recorder):
        with pytest.raises(ValueError, match=r"expected a name for each loader in the dict, got \"\" among '', 'b'"):
            call(model, {"": [x], "b": [x]})


def test_a_paired_comparison_sees_what_two_intervals_do_not():
    model, x = made()
    later = copy.deepcopy(model)
    with torch.no_grad():
        later[2].weight.mul_(1.05)
    one, two = (probe(m, [x], layers=LAYERS, labels="exact", values=True) for m in (model, later))
    change = analysis.mean_interval((two["fisher_values"] - one["fisher_values"]).sel(layer="body").values)
    assert change.excludes_zero
    low, high = (
        two.fisher.interval().sel(bound="low", layer="body"),
        one.fisher.interval().sel(bound="high", layer="body"),
    )
    assert low < high


def record(values: np.ndarray) -> xr.Dataset:
    """Of (repeats, n) values, each repeat a layer, as `probe` writes it."""
    n = values.shape[1]
    columns = {
        "fisher_trace": values.mean(axis=1),
        "fisher_trace_se": values.std(axis=1, ddof=1) / n**0.5,
        "fisher_trace_skewness": stats.skew(values, axis=1),
    }
    return xr.Dataset(
        {k: ("layer", v) for k, v in columns.items()}, attrs={"examples": n, "estimator": "hooks/rademacher"}
    )


REPEATS = 4000


def coverage(interval: xr.DataArray, truth: float = 1.0) -> float:
    return float(((interval.sel(bound="low") <= truth) & (truth <= interval.sel(bound="high"))).mean())


@pytest.mark.parametrize(("n", "level"), [(32, 0.93), (128, 0.945)])
def test_the_interval_holds_where_tails_are_heavy_and_students_does_not(n, level):
    """Gamma values of excess kurtosis 22: within 3 binomial errors of 93 % and 94.5 %; Student's is below that by more."""
    values = np.random.default_rng(0).gamma(6 / 22, 22 / 6, (REPEATS, n))
    ds = record(values)
    error = (0.95 * 0.05 / REPEATS) ** 0.5
    assert coverage(ds.fisher.interval()) > level - 3 * error
    plain = ds.assign(fisher_trace_skewness=0 * ds["fisher_trace_skewness"])
    assert coverage(plain.fisher.interval()) < level - 3 * error


def test_without_skewness_it_is_students_interval():
    values = 1 + 0.3 * np.random.default_rng(0).standard_normal((REPEATS, 32))
    ds = record(values)
    assert abs(coverage(ds.fisher.interval()) - 0.95) < 3 * (0.95 * 0.05 / REPEATS) ** 0.5
    plain = ds.assign(fisher_trace_skewness=0 * ds["fisher_trace_skewness"]).fisher.interval(0.9)
    student = stats.t.interval(0.9, 31, ds["fisher_trace"], ds["fisher_trace_se"])
    np.testing.assert_allclose(plain.sel(bound=["low", "high"]), student)
    nearly = ds.assign(fisher_trace_skewness=1e-4 + 0 * ds["fisher_trace_skewness"]).fisher.interval(0.9)
    np.testing.assert_allclose(nearly, plain, rtol=1e-4)


def test_the_interval_of_a_probe_a_recorder_and_of_several_loaders():
    model, x = made()
    ds = probe(model, {"near": [x], "far": [2 * x[:20]]}, layers=LAYERS)
    found = ds.fisher.interval()
    assert found.dims == ("bound", "loader", "layer")
    alone = probe(model, [2 * x[:20]], layers=LAYERS).fisher.interval()
    np.testing.assert_allclose(found.sel(loader="far"), alone, rtol=1e-9)
    assert (alone.sel(bound="low") < alone.sel(bound="estimate")).all()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with fisherdyn.Recorder(model, [x], every=1, layers=LAYERS).attach(optimizer) as recorder:
        optimizer.step()
    assert recorder.dataset.fisher.interval().dims == ("bound", "step", "layer")
    batches = probe(model, x.split(5), layers=LAYERS, method="batch")
    wide = batches.assign(fisher_trace_skewness=0 * batches["fisher_trace_skewness"]).fisher.interval()
    half = stats.t.ppf(0.975, 9) * batches["fisher_trace_se"]  # ten batches
    np.testing.assert_allclose(wide.sel(bound="high") - wide.sel(bound="estimate"), half)


def test_the_interval_needs_what_the_record_keeps():
    model, x = made()
    ds = probe(model, [x], layers=LAYERS)
    with pytest.raises(ValueError, match="expected a record with fisher_trace_skewness and the attribute 'examples'"):
        ds.drop_vars("fisher_trace_skewness").fisher.interval()
    with pytest.raises(ValueError, match="expected a level between 0 and 1"):
        ds.fisher.interval(95)


def test_values_of_a_trace_are_the_same():
    model, x = made()
    found = fisher_trace(model, [x], layers=LAYERS)
    np.testing.assert_allclose(found.skewness, stats.skew(found.values.numpy()), rtol=1e-9)
