"""fisherdyn: how much Fisher information each layer of a model holds while it trains, and which layer to train next."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import accessor as _accessor  # registers ds.fisher

if TYPE_CHECKING:
    from . import analysis, integrations, layers, plots, policies, schedule, settings, tasks
    from .fisher.trace import FisherTrace, fisher_trace
    from .fisher.verify import Verification, verify
    from .probing import probe
    from .recording.cadence import log_spaced
    from .recording.recorder import Recorder
    from .schedule import Unfreezing
    from .train import fit

_HOME = {
    "FisherTrace": ".fisher.trace",
    "fisher_trace": ".fisher.trace",
    "verify": ".fisher.verify",
    "Verification": ".fisher.verify",
    "probe": ".probing",
    "Recorder": ".recording.recorder",
    "log_spaced": ".recording.cadence",
    "fit": ".train",
    "Unfreezing": ".schedule",
}
_ROOMS = ("analysis", "integrations", "layers", "plots", "policies", "schedule", "settings", "tasks")

__all__ = [*_HOME, *_ROOMS]


def __getattr__(name: str) -> Any:
    """Loads public names when they are first used, so that analysis and plots need no torch."""
    if name in _HOME:
        value = getattr(import_module(_HOME[name], __name__), name)
        globals()[name] = value
        return value
    if name in _ROOMS:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module 'fisherdyn' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted(__all__)
