"""Callbacks that record and unfreeze in the Trainer of transformers (and adapters) and in Lightning's."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def __getattr__(name: str) -> Any:
    """Imports each library only when it is used, so that neither is a dependency."""
    if name in ("transformers", "lightning"):
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has transformers and lightning")
