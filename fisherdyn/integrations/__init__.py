"""The same measurements and schedules in other people's loops: transformers' (and adapters') and Lightning's."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def __getattr__(name: str) -> Any:
    """Each is imported only where it is used: neither library is needed otherwise."""
    if name in ("transformers", "lightning"):
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has transformers and lightning")
