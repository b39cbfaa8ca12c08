"""python -m paper_figures, on a made-up sweep."""

from __future__ import annotations

import pytest
import xarray as xr
from test_sweep import sweep_record

from fisherdyn import record
from paper_figures.__main__ import FIGURES, main


@pytest.fixture
def sweep(tmp_path):
    path = tmp_path / "mine.nc"
    record.describe(sweep_record(0.05, seeds=2)).to_netcdf(path)
    return path


def test_draws_every_figure_twice_the_same(sweep, tmp_path):
    files = [f"{name}-mine.{ending}" for name in FIGURES for ending in ("png", "pdf", "svg")]
    for folder in ("a", "b"):
        assert main(["--runs", str(sweep), "--format", "png,pdf,svg", "--out", str(tmp_path / folder)]) == 0
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == sorted(files)
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_a_sweep_of_standard_training_alone(sweep, tmp_path):
    with xr.open_dataset(sweep) as ds:
        ds.isel(run=ds["schedule"] == "standard").to_netcdf(tmp_path / "standard.nc")
    assert main(["--runs", str(tmp_path / "standard.nc"), "--out", str(tmp_path / "out")]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fig9"], "unknown figure fig9: choose among fig4, transfer"),
        (["--format", "bmp"], "unknown format bmp"),
        (["--runs", "OTHER"], "not the record of a permutation sweep: it has no fisher_trace"),
        (["--runs", "TEXT"], "not a record that can be read"),
        (["--runs", "SWEEP", "--out", "TEXT"], "expected a folder, found a file"),
    ],
)
def test_wrong_arguments(arguments, message, sweep, tmp_path, capsys):
    places = {"OTHER": tmp_path / "other.nc", "TEXT": tmp_path / "text.nc", "SWEEP": sweep}
    xr.Dataset({"x": 1}).to_netcdf(places["OTHER"])
    places["TEXT"].write_text("not a record")
    with pytest.raises(SystemExit) as stop:
        main([str(places.get(argument, argument)) for argument in arguments])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
