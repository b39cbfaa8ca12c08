"""A sweep's folder: what lies in it, whose it is, and files that appear whole or not at all."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

PLAN, RUNS, LOCK, FAILURES = "sweep.json", "runs.zarr", ".lock", "failures.log"
UNFINISHED_FILE = ".sweep.part"
REPORTS = ("report.md", "figure-4.png", "figure-4.pdf")
"""What `report` and `tables` write there."""


def unfinished(path: Path) -> Path:
    """Where a folder is made before it is renamed to `path`."""
    return path.with_name(f".{path.name}.making")


def dataset(folder: Path, study: str) -> Path:
    """The published NetCDF file."""
    return folder / f"{study}.nc"


def write_atomically(folder: Path, name: str, content: str | bytes) -> None:
    """Writes a file so that a reader sees the old one or the new one, also after a SIGKILL.

    Args:
        folder: the sweep's folder. The unfinished file lies there, where no reader of a store looks.
        name: the file's path inside the folder.
        content: all that the file shall hold.
    """
    part = folder / UNFINISHED_FILE
    part.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(part, folder / name)


def claim(folder: Path, study: str, plan: Mapping[str, Any]) -> None:
    """Writes the plan of a new sweep, or checks that the folder holds the same one.

    Raises:
        ValueError: the folder holds another plan, a damaged one, or files that the sweep would write but did not make.
    """
    path = folder / PLAN
    if not path.exists():
        _require_room(folder, study)
        write_atomically(folder, PLAN, json.dumps(plan) + "\n")
        return
    try:
        stored = json.loads(path.read_text())
        differing = [
            _difference(key, stored.get(key), value) for key, value in plan.items() if stored.get(key) != value
        ]
    except (ValueError, AttributeError):
        raise ValueError(f"--out {folder}: {PLAN} is damaged; choose another folder or delete this one") from None
    if differing:
        raise ValueError(
            f"--out {folder}: holds a sweep with other {' and '.join(differing)} (see {PLAN}); repeat that "
            "command, with the versions that it was begun with, or choose another folder"
        )


def _difference(name: str, stored: Any, given: Any) -> str:
    """The part of a plan that differs; of settings by name, those that do."""
    if not (isinstance(stored, Mapping) and isinstance(given, Mapping)):
        return name
    return f"{name} ({', '.join(key for key in {**stored, **given} if stored.get(key) != given.get(key))})"


def _require_room(folder: Path, study: str) -> None:
    """A new sweep replaces nothing: every file that it would write must be free."""
    runs, nc = folder / RUNS, dataset(folder, study)
    written = [runs, unfinished(runs), nc, part_of(nc), *(folder / name for name in REPORTS)]
    taken = [path.name for path in written if path.exists()]
    if taken:
        raise ValueError(f"--out {folder}: holds {', '.join(taken)} but no {PLAN}; choose another folder")


def part_of(path: Path) -> Path:
    """Where a large file is written before it is renamed to `path`."""
    return path.with_name(f"{path.name}.part")


class Lock:
    """Keeps other sweeps out of a folder until `release`, or until the process ends, however it ends.

    Raises:
        ValueError: the folder is a file, cannot be written, or is locked by another sweep, which is named.
    """

    def __init__(self, folder: Path) -> None:
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"--out {folder}: expected a folder, found a file")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = (folder / LOCK).open("a+")
        except OSError as error:
            raise ValueError(f"--out {folder}: cannot be written ({error.strerror})") from error
        if not _lock(self._file):
            self._file.close()
            raise ValueError(f"--out {folder}: another sweep ({holder(folder)}) is writing here; wait or stop it")
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {os.uname().nodename}")
        self._file.flush()

    def release(self) -> None:
        self._file.close()


def _lock(file: TextIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def holder(folder: Path) -> str:
    """Who writes to the folder now; "" if nobody does."""
    try:
        with (folder / LOCK).open() as file:
            return "" if _lock(file) else file.read().strip() or "unknown"
    except OSError:
        return ""
