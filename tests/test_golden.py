"""The same study as ever: numbers of revision 7ad71ad, before the house was rebuilt.

`golden/float64.json` holds four short runs in double precision, `golden/permutations.nc` the study of the command line in
single precision, both made at that revision with the arguments below.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

from fisherdyn import fit, policies, tasks
from fisherdyn.settings import Evaluation, Measurement, Optimization
from fisherdyn.sweep.__main__ import main
from fisherdyn.sweep.studies import FIGURE_4

GOLDEN = Path(__file__).with_name("golden")
POLICIES = {
    "standard": policies.all_at_once(),
    "top-down": policies.permutation(FIGURE_4[0]),
    "figure-4/1": policies.permutation(FIGURE_4[1]),
    "FUN": policies.fun(),
}


@pytest.mark.parametrize("name", POLICIES)
def test_fit_gives_the_same_numbers_in_double_precision(name):
    task = tasks.load("world", train_examples=200, dev_examples=60, test_examples=20)
    model = task.build_model(seed=0).double()
    torch.manual_seed(0)
    ds = fit(
        model,
        task.train_loader(0),
        policy=POLICIES[name],
        interval=2,
        optimization=Optimization(steps=30, lr=8e-3),
        measurement=Measurement(loader=task.probe_loader(), every=6),
        evaluation=Evaluation(source=task.evaluate_source(), targets=task.evaluate(), every=15),
        layers=task.layers(model),
        seed=0,
    )
    expected = json.loads((GOLDEN / "float64.json").read_text())[name]
    assert set(expected) >= {"fisher_trace", "fisher_trace_se", "train_loss", "source_metric", "metric", "selected"}
    for variable, values in expected.items():
        if variable == "selection_layer":
            assert ds[variable].values.tolist() == values
            continue
        np.testing.assert_allclose(ds[variable].values, values, rtol=1e-6, atol=0, equal_nan=True, err_msg=variable)


def test_the_command_line_gives_the_same_study(tmp_path):
    """In single precision, whose last digits depend on the processor."""
    arguments = ["permutations", "--seeds", "1", "--schedules", "2", "--steps", "30", "--workers", "2"]
    assert main([*arguments, "--out", str(tmp_path / "runs")]) == 0
    with (
        xr.open_dataset(GOLDEN / "permutations.nc") as golden,
        xr.open_dataset(tmp_path / "runs/permutations.nc") as ds,
    ):
        assert ds["schedule"].values.tolist() == golden["schedule"].values.tolist()
        assert set(golden.data_vars) <= set(ds.data_vars)
        for name in ("metric", "source_metric"):
            np.testing.assert_allclose(ds[name], golden[name], atol=0.02, err_msg=name)
        for name in ("fisher_trace", "fisher_trace_se", "train_loss"):
            np.testing.assert_allclose(ds[name], golden[name], rtol=1e-2, atol=1e-6, err_msg=name)
        for name in ("selected", "trainable", "num_params"):
            np.testing.assert_array_equal(ds[name], golden[name], err_msg=name)
