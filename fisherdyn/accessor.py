"""ds.fisher: the common questions about a record, as methods. Each calls one function of analysis or plots."""

from __future__ import annotations

from typing import TYPE_CHECKING

import xarray as xr

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@xr.register_dataset_accessor("fisher")
class FisherAccessor:
    """Methods of any dataset from `fisherdyn.probe`, `Recorder`, `fit` or a sweep, once fisherdyn is imported."""

    def __init__(self, ds: xr.Dataset) -> None:
        if "fisher_trace" not in ds:
            raise ValueError(f"ds.fisher needs a record with fisher_trace, this dataset has {', '.join(map(str, ds))}")
        self._ds = ds

    def interval(self, level: float = 0.95) -> xr.DataArray:
        """`analysis.trace_interval`: tr(F) of every layer with an interval that holds its level where tails are heavy."""
        from . import analysis

        return analysis.trace_interval(self._ds, level)

    def learning_curve(self, window: int = 3) -> xr.DataArray:
        """`analysis.learning_curve`: tr(F) of the open layers over their number, smoothed."""
        from . import analysis

        return analysis.learning_curve(self._ds, window)

    def peak(self, window: int = 3) -> xr.Dataset:
        """`analysis.peak` of the learning curve: its height and step."""
        from . import analysis

        return analysis.peak(self.learning_curve(window))

    def width(self, level: float = 0.5, window: int = 3) -> xr.Dataset:
        """`analysis.width` of the learning curve: steps for which it stays above `level` times its peak."""
        from . import analysis

        return analysis.width(self.learning_curve(window), level)

    def learning_period(self, level: float = 0.5, window: int = 3) -> xr.Dataset:
        """`analysis.learning_period` of the learning curve: the steps between which it is above `level` times its peak."""
        from . import analysis

        return analysis.learning_period(self.learning_curve(window), level)

    def plot(self, ax: Axes | None = None) -> Axes:
        """`plots.by_layer`: tr(F) of every layer, with its standard error."""
        from matplotlib import pyplot

        from . import plots

        return plots.by_layer(ax or pyplot.gca(), self._ds)
