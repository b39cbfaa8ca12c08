"""probe(): measure a model once, as a dataset."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import xarray as xr
from torch import Tensor, nn

from . import record
from .fisher.forward import Batch, device_of
from .fisher.trace import FisherTrace, fisher_trace


def probe(model: nn.Module, loader: Iterable[Batch] | Mapping[str, Iterable[Batch]], **options: Any) -> xr.Dataset:
    """tr(F) of every layer of a model, now.

    Args:
        model: a classifier; left exactly as it was.
        loader: batches of inputs (labels are not used), or a dict of loaders, which adds the dimension `loader`: the
            true Fisher needs no labels, so unlabelled target languages can be probed too.
        **options: those of `fisherdyn.fisher_trace`.

    Returns:
        Dataset over layer: fisher_trace and fisher_trace_se (nat), num_params, trainable;
        attributes: estimator, likelihood, mode, batches, examples, imprecise (layers that missed target_se), versions,
        device.

    Raises:
        ValueError: as `fisher_trace`.
    """
    options.setdefault("progress", sys.stderr.isatty())
    if isinstance(loader, Mapping) and not any(isinstance(value, Tensor) for value in loader.values()):
        if not loader:
            raise ValueError("expected at least one loader in the dict, got none")
        traces = {name: fisher_trace(model, one, **options) for name, one in loader.items()}
        dims: tuple[str, ...] = ("loader", "layer")
    else:
        traces = {"": fisher_trace(model, loader, **options)}
        dims = ("layer",)
    one = next(iter(traces.values()))

    def stacked(values: list[np.ndarray]) -> np.ndarray:
        return np.stack(values) if len(dims) == 2 else values[0]

    return record.build(
        {
            "fisher_trace": (dims, stacked([t.trace.numpy() for t in traces.values()])),
            "fisher_trace_se": (dims, stacked([t.se.numpy() for t in traces.values()])),
            "num_params": (("layer",), np.array(one.num_params)),
            "trainable": (("layer",), record.flags(one.trainable)),
        },
        {"layer": list(one.layers), **({"loader": list(traces)} if len(dims) == 2 else {})},
        {**_what(list(traces.values())), "device": str(device_of(model))},
    )


def _what(traces: list[FisherTrace]) -> dict[str, Any]:
    one = traces[0]
    return {
        "estimator": one.estimator,
        "likelihood": one.likelihood,
        "mode": "eval",
        "batches": [t.batches for t in traces] if len(traces) > 1 else one.batches,
        "examples": [t.examples for t in traces] if len(traces) > 1 else one.examples,
        "imprecise": ", ".join(sorted({layer for t in traces for layer in t.imprecise})) or None,
    }
