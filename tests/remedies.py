"""Measures a model, and follows what the refusals advise until there is a number, or no advice left."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from oracle import snapshot
from torch import Tensor, nn

from fisherdyn import fisher_trace

Layers = Mapping[str, Sequence[str]]
REMEDY = re.compile(r"pass |use |load |have |set |turn |measure |method=|check=")


ONE_BY_ONE = "Measure it in batches of one example"


@dataclass(frozen=True)
class Outcome:
    """What became of a measurement.

    Well: "right", or "refused" with a remedy that is right. "mixing": refused for good, because the model mixes examples.
    "circle": all remedies are refused too. Failures: "silent" (another number), "raw" (an exception that is no refusal),
    "vague" (a refusal without name or remedy), "changed" (the model is not what it was).
    """

    kind: str
    path: str

    @property
    def failed(self) -> bool:
        return self.kind in ("silent", "raw", "vague", "changed")


def follow(
    model: nn.Module,
    loader: list[Any],
    layers: Layers,
    expected: Tensor,
    *,
    likelihood: str | None = None,
    method: str = "hooks",
    rtol: float = 1e-8,
) -> Outcome:
    """`expected` (examples, layers) is what labels="exact" must give, in float64."""
    unchanged, refusals = snapshot(model), {}
    while True:
        kind, text = _measure(model, loader, layers, likelihood, method, expected, rtol)
        path = " -> ".join([*(f"{m}: {t}" for m, t in refusals.items()), f"{method}: {text}" if text else method])
        try:
            unchanged()
        except AssertionError:
            return Outcome("changed", path)
        if kind != "refused":
            return Outcome("refused" if refusals and kind == "right" else kind, path)
        if method in ("loop", "vmap") and "it mixes examples" in text:
            return Outcome("mixing", path)
        if ONE_BY_ONE in text and ONE_BY_ONE not in refusals:
            refusals[ONE_BY_ONE] = text
            loader = [_row(batch, i) for batch in loader for i in range(_examples(batch))]
            continue
        if not REMEDY.search(text) or (method == "hooks" and not _names_something(text, model, layers)):
            return Outcome("vague", path)
        refusals[method + " less layers" * (method in refusals)] = text
        if "pass layers= without it" in text:
            kept = _without_named(text, layers)
            if not 0 < len(kept) < len(layers):
                return Outcome("circle", path)
            expected = expected[:, [list(layers).index(layer) for layer in kept]]
            layers = kept
            continue
        following = [m for m in ("loop", "vmap", "hooks", "batch") if f'method="{m}"' in text and m not in refusals]
        if not following:
            return Outcome("circle", path)
        method = following[0]
        if method == "batch":
            loader = [_row(batch, i) for batch in loader for i in range(_examples(batch))]


def _measure(
    model: nn.Module,
    loader: list[Any],
    layers: Layers,
    likelihood: str | None,
    method: Any,
    expected: Tensor,
    rtol: float,
) -> tuple[str, str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = fisher_trace(
                model, loader, layers=layers, likelihood=likelihood, labels="exact", method=method
            ).values
    except ValueError as error:
        return "refused", str(error)
    except Exception as error:
        return "raw", f"{type(error).__name__}: {error}"
    if torch.allclose(found, expected, rtol=rtol, atol=1e-13 * float(expected.max()) + 1e-25):
        return "right", ""
    off = ((found - expected).abs() / (expected + 1e-13 * expected.max())).amax(dim=0)
    worst = int(off.argmax())
    return "silent", f"{list(layers)[worst]} is off by {off[worst]:.3g}"


def _without_named(text: str, layers: Layers) -> Layers:
    modules = [name for name in re.split(r"[\s:;,\"']+", text.split("pass layers=")[0]) if name]

    def silent(name: str) -> bool:
        return any(name.startswith(f"{module}.") for module in modules)

    return {layer: names for layer, names in layers.items() if not any(map(silent, names))}


def _names_something(text: str, model: nn.Module, layers: Layers) -> bool:
    names = {name for name, _ in model.named_modules()} | set(layers) | {name for name, _ in model.named_parameters()}
    return "module ''" in text or any(name in text for name in names if name)


def _examples(batch: Any) -> int:
    return len(
        next(iter(batch.values())) if isinstance(batch, dict) else batch[0] if isinstance(batch, tuple) else batch
    )


def _row(batch: Any, i: int) -> Any:
    if isinstance(batch, dict):
        return {name: x[i : i + 1] for name, x in batch.items()}
    return tuple(x[i : i + 1] for x in batch) if isinstance(batch, tuple) else batch[i : i + 1]
