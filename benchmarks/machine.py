"""What a figure was measured on, and how much memory this process has."""

from __future__ import annotations

import platform
from pathlib import Path

from fisherdyn.record import provenance


def environment(processor: str = "", **more: object) -> dict[str, object]:
    """Versions, revision and processor (named by the kernel, unless it is given): what stands beside every figure."""
    return {**provenance(), "processor": processor or _processor(), **more}


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def status(key: str) -> int:
    """KiB, of this process: VmRSS, or its peak VmHWM."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key + ":")).split()[1])
