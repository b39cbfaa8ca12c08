"""The record: one xarray schema for probes, training runs and sweeps, and the one place that stamps provenance.

Dimensions are run, step, eval_step, layer, loader, example and target; a dataset has those that apply. It opens with
plain xarray.
"""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

VARIABLES: dict[str, tuple[str, str]] = {
    "fisher_trace": ("trace of the Fisher information, tr(F)", "nat"),
    "fisher_trace_se": ("standard error of tr(F)", "nat"),
    "fisher_trace_skewness": ("skewness of what single examples (or batches) give to tr(F)", "1"),
    "fisher_values": ("what a single example gives to tr(F)", "nat"),
    "num_params": ("parameters in the layer", "1"),
    "trainable": ("whether the layer is open", "1"),
    "train_loss": ("training loss, mean since the last record", "nat"),
    "weight_norm": ("norm of the layer's weights", "1"),
    "learning_rate": ("learning rate of the update from here", "1"),
    "gradient_norm": ("norm of the batch's gradient in the update from here", "nat"),
    "total_gradient_norm": ("the same over all that the optimizer holds", "nat"),
    "update_norm": ("norm of the change in weights by the update from here", "1"),
    "empirical_trace": ("trace of the empirical Fisher, on the training batch", "nat"),
    "empirical_trace_se": ("standard error of the empirical Fisher's trace", "nat"),
    "source_metric": ("accuracy, or F1 of spans, on the source's development set", "1"),
    "metric": ("accuracy, or F1 of spans, on the target's test set", "1"),
    "exact_match": ("exact match of spans on the target's test set", "1"),
    "exact_match_at_best": ("exact match of spans on the target's test set, of the best checkpoint", "1"),
    "selected": ("step at which the layer opened (-1: never)", "step"),
    "best_step": ("step with the best source metric", "step"),
    "metric_at_best": ("accuracy, or F1 of spans, on the target's test set, of the best checkpoint", "1"),
    "selection_trace": ("tr(F) of the candidates, as SELECT saw it", "nat"),
    "selection_trace_se": ("standard error of the candidates' tr(F)", "nat"),
    "selection_layer": ("layer that SELECT chose", "1"),
    "selection_examples": ("examples measured for the choice", "1"),
    "selection_confidence": ("confidence that the best candidate's tr(F) is the largest", "1"),
    "selection_tie": ("whether the best candidate's lead is not established", "1"),
    "status": ("whether the run is done (1), waits (0), or failed when it was last tried (-1)", "1"),
    "reason": ("why the run failed", "1"),
}
"""Variable -> (long_name, units)."""

COORDINATES: dict[str, tuple[str, str]] = {
    "layer": ("layer, bottom first", "1"),
    "loader": ("what the layer was measured on", "1"),
    "target": ("target set", "1"),
    "distance": ("distance of the target from the source", "1"),
    "language": ("name of the target's language", "1"),
    "family": ("language family of the target", "1"),
    "script": ("script of the target, by ISO 15924", "1"),
    "cc100": ("share of the target's language in the text of CC-100", "1"),
    "step": ("optimizer steps taken", "step"),
    "eval_step": ("optimizer steps taken", "step"),
    "selection_step": ("optimizer steps taken", "step"),
    "run": ("run", "1"),
    "schedule": ("unfreezing schedule", "1"),
    "policy": ("id of the policy that unfreezes", "1"),
    "label": ("name of the schedule in figures", "1"),
    "seed": ("seed of initial weights and data order", "1"),
    "steps": ("optimizer steps of the run", "step"),
    "lr": ("learning rate", "1"),
    "interval": ("steps between openings", "step"),
    "train_examples": ("training examples", "1"),
    "tuning": ("what is trained", "1"),
}


def build(
    variables: Mapping[str, tuple[tuple[str, ...], Any]],
    coords: Mapping[str, Any],
    attrs: Mapping[str, Any],
    described: Mapping[str, tuple[str, str]] | None = None,
) -> xr.Dataset:
    """A dataset of known variables, each with its long_name and units, stamped with `provenance`.

    Args:
        variables: name -> (dimensions, values).
        coords: as for xr.Dataset.
        attrs: what made it (estimator, labels, seed, configuration); see `attributes`.
        described: variables beside the schema's: name -> (long_name, units).

    Raises:
        ValueError: a variable or coordinate that the schema does not know; an attribute that a file cannot hold.
    """
    unknown = [*(set(variables) - set(VARIABLES) - set(described or {})), *(set(coords) - set(COORDINATES))]
    if unknown:
        raise ValueError(f"not in the record's schema: {', '.join(sorted(unknown))}")
    ds = xr.Dataset(dict(variables), dict(coords), {**provenance(), **attributes(attrs)})
    return describe(ds, described)


def attributes(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes as NetCDF holds them: texts, numbers and lists of them. Truth values become 0 and 1; None is left out.

    Raises:
        ValueError: an attribute of another type.
    """
    plain = {key: int(value) if isinstance(value, bool) else value for key, value in attrs.items() if value is not None}
    for key, value in plain.items():
        items = value if isinstance(value, list | tuple | np.ndarray) else [value]
        if not all(isinstance(item, str | int | float | np.number) for item in items):
            raise ValueError(
                f"expected attributes that are texts, numbers or lists of them, got {key}={value!r}: use str()"
            )
    return plain


def describe(ds: xr.Dataset, described: Mapping[str, tuple[str, str]] | None = None) -> xr.Dataset:
    """Writes long_name and units on every variable and coordinate; in place, and returned."""
    known = {**(described or {}), **VARIABLES, **COORDINATES}
    for name in (*ds.variables,):
        long_name, units = known[str(name)]
        ds[name].attrs = {"long_name": long_name, "units": units}
    return ds


@cache
def provenance() -> dict[str, str]:
    """Versions, revision and machine: what a number depends on beside its configuration. Nothing that tells the time."""
    packages = ("torch", "transformers", "adapters", "numpy", "xarray")
    return {
        "fisherdyn": _version("fisherdyn"),
        "revision": _revision(),
        "python": platform.python_version(),
        "packages": ", ".join(f"{name} {_version(name)}" for name in packages),
        "machine": platform.machine(),
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _revision() -> str:
    """The git revision of a checkout, with "-dirty" where files were changed; "release" for an installed package."""
    here = Path(__file__).resolve().parent
    if not (here.parent / ".git").exists():
        return "release"
    try:
        command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12"]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def flags(values: Any) -> np.ndarray:
    """Booleans as int8, which every file format can hold."""
    return np.asarray(values, dtype=np.int8)
