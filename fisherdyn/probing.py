"""probe(): measure a model once, as a dataset."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Unpack

import numpy as np
import xarray as xr
from torch import Tensor, nn

from . import record
from .fisher.batches import Batch, batches_of
from .fisher.model_state import device_of, unwrap
from .fisher.trace import FisherTrace, TraceOptions, fisher_trace
from .outputs import different_likelihoods

Loaders = Iterable[Batch] | Mapping[str, Iterable[Batch]]
"""A loader, or several by name."""

UNNAMED = ""
"""The name of a loader that has none."""


class ProbeOptions(TraceOptions, total=False):
    """Options of `probe`: those of `fisher_trace`, but for `enough`."""

    target_se: float | None
    progress: bool


def probe(model: nn.Module, loader: Loaders, *, values: bool = False, **options: Unpack[ProbeOptions]) -> xr.Dataset:
    """tr(F) of every layer of a model, now.

    Args:
        model: a classifier; left exactly as it was. Batches are moved to its device. A model inside
            DistributedDataParallel or torch.compile is measured without the wrapper.
        loader: batches of inputs (what labels are used for, `fisher_trace` says), or a dict of loaders, which adds the
            dimension `loader`: the true Fisher needs no labels, so unlabelled target languages can be probed too.
        values: also keep what each example gave: fisher_values over (example, layer), in the loader's order (NaN after the
            end of the shorter of two loaders).
        **options: see `fisher_trace`: layers, likelihood, labels, method, num_batches, target_se, check, generator,
            progress. A progress bar is shown in terminals and notebooks.

    Returns:
        Dataset over layer: fisher_trace and fisher_trace_se (nat), fisher_trace_skewness, num_params, trainable;
        attributes: estimator, likelihood, mode, batches, examples, imprecise (layers that missed target_se), versions,
        device.

    Raises:
        ValueError: as `fisher_trace`; loaders whose logits are read differently; a model in DataParallel or
            FullyShardedDataParallel; values=True and a method that sees no single example.

    Example:
        >>> ds = fisherdyn.probe(model, loader, labels="exact")
        >>> ds["fisher_trace"].to_series()
    """
    options.setdefault("progress", _progress_is_visible())
    model = unwrap(model)
    traces = measure(model, loaders_by_name(loader), **options)
    dims, variables = as_variables(traces)
    first = next(iter(traces.values()))
    return record.build(
        {
            **{name: (dims, array) for name, array in variables.items()},
            **(example_values(traces) if values else {}),
            "num_params": (("layer",), np.array(first.num_params)),
            "trainable": (("layer",), record.flags(first.trainable)),
        },
        coordinates(traces),
        {**provenance(traces), "device": str(device_of(model))},
    )


def loaders_by_name(loader: Loaders) -> dict[str, Iterable[Batch]]:
    """Loaders by name; a single one has the name `UNNAMED`."""
    if not isinstance(loader, Mapping) or any(isinstance(value, Tensor) for value in loader.values()):
        return {UNNAMED: batches_of(loader)}
    if not loader:
        raise ValueError("expected at least one loader in the dict, got none")
    if UNNAMED in loader:
        raise ValueError(f'expected a name for each loader in the dict, got "" among {", ".join(map(repr, loader))}')
    return dict(loader)


def require_reiterable(loader: Iterable[Batch]) -> None:
    """Raises ValueError for an iterator in the place of a loader: reading takes its batches from whoever else has it."""
    for source, what in ((loader, "a loader that"), (getattr(loader, "dataset", None), "a loader whose dataset")):
        if isinstance(source, Iterator):
            raise ValueError(
                f"expected {what} can be read anew at every record, got {type(source).__name__}, which is used up by "
                "reading: if it is training's own, training would lose its batches. Pass the loader that it comes from, or "
                "a list"
            )


def refuse_loader_in_use(loader: Iterable[Batch]) -> None:
    """Raises ValueError for a loader with persistent workers that training reads: they serve one reader at a time."""
    if getattr(loader, "persistent_workers", False) and getattr(loader, "_iterator", None) is not None:
        raise ValueError(
            "this loader has persistent workers and is being read: measuring on it would start training's epoch again. "
            "Give the recorder a loader of its own"
        )


def measure(
    model: nn.Module, loaders: Mapping[str, Iterable[Batch]], **options: Unpack[ProbeOptions]
) -> dict[str, FisherTrace]:
    """`fisher_trace` on each loader; an error on one of several names the loader."""
    traces = {}
    for name, loader in loaders.items():
        try:
            traces[name] = fisher_trace(model, loader, **options)
        except ValueError as error:
            if name == UNNAMED:
                raise
            raise ValueError(f"loader {name!r}: {error}") from error
        except Exception as error:  # the model's own, such as torch's for shapes that do not fit: kept as it is
            if name != UNNAMED:
                error.add_note(f"while tr(F) was measured on loader {name!r}")
            raise
    return traces


def as_variables(traces: Mapping[str, FisherTrace]) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """Dimensions, (loader, layer) or (layer,), and fisher_trace, its standard error and skewness over them."""
    values = {
        "fisher_trace": np.stack([t.trace.numpy() for t in traces.values()]),
        "fisher_trace_se": np.stack([t.se.numpy() for t in traces.values()]),
        "fisher_trace_skewness": np.stack([t.skewness.numpy() for t in traces.values()]),
    }
    if UNNAMED in traces:
        return ("layer",), {name: array[0] for name, array in values.items()}
    return ("loader", "layer"), values


def example_values(traces: Mapping[str, FisherTrace]) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
    """fisher_values over (loader, example, layer) or (example, layer)."""
    every = [t.values.numpy() for t in traces.values()]
    if any(len(rows) != t.examples for rows, t in zip(every, traces.values(), strict=True)):
        raise ValueError(
            'expected a method that sees single examples for values=True, "hooks" or "vmap", got '
            f"{next(iter(traces.values())).estimator!r}, which sees whole batches"
        )
    most = max(map(len, every))
    rows = np.stack([np.pad(rows, ((0, most - len(rows)), (0, 0)), constant_values=np.nan) for rows in every])
    if UNNAMED in traces:
        return {"fisher_values": (("example", "layer"), rows[0])}
    return {"fisher_values": (("loader", "example", "layer"), rows)}


def coordinates(traces: Mapping[str, FisherTrace]) -> dict[str, list[str]]:
    """Layers, and loaders where they have names."""
    layers = list(next(iter(traces.values())).layers)
    return {"layer": layers} if UNNAMED in traces else {"layer": layers, "loader": list(traces)}


def provenance(traces: Mapping[str, FisherTrace]) -> dict[str, Any]:
    """What the numbers rest on, as a record's attributes say it.

    Raises:
        ValueError: loaders were measured with different likelihoods.
    """
    every, first = list(traces.values()), next(iter(traces.values()))
    for trace in every:
        if trace.likelihood != first.likelihood:
            raise different_likelihoods(first.likelihood, trace.likelihood)
    return {
        "estimator": first.estimator,
        "likelihood": first.likelihood,
        "mode": "eval",
        "batches": [t.batches for t in every] if len(every) > 1 else first.batches,
        "examples": [t.examples for t in every] if len(every) > 1 else first.examples,
        "imprecise": ", ".join(sorted({layer for t in every for layer in t.imprecise})) or None,
    }


def _progress_is_visible() -> bool:
    """In a terminal or a notebook, not in a log file."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules
