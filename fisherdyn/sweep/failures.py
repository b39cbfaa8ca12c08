"""Why a run failed, in one line, and whether another try can help."""

from __future__ import annotations

import errno
import traceback
from dataclasses import dataclass

import torch

RETRIES = 2
"""How often a run is tried again within one sweep, if that can help."""


@dataclass(frozen=True)
class Failure:
    """Why a run has no result.

    Attributes:
        reason: one line.
        again: whether another try can help, because the cause is the machine and not the run.
        details: the traceback.
    """

    reason: str
    again: bool = False
    details: str = ""


def lost_worker(what: str = "") -> Failure:
    return Failure(f"the worker process was killed, perhaps for lack of memory: try fewer --workers{what}", again=True)


def of(error: Exception) -> Failure:
    """The failure that an error stands for. Another try can help only if memory or disk ran out: a run is deterministic."""
    details = "".join(traceback.format_exception(error))
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return Failure(f"out of memory: {_line(error)}", again=True, details=details)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Failure(f"the disk is full: {_line(error)}", again=True, details=details)
    return Failure(f"{type(error).__name__}: {_line(error)}", details=details)


def _line(error: Exception) -> str:
    return (" ".join(str(error).split()) or "no message")[:400]
