"""A sweep's folder: what is in it, whose it is, and files that appear whole or not at all."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import TextIO

PLAN, RUNS, LOCK, FAILURES = "sweep.json", "runs.zarr", ".lock", "failures.log"


def write_whole(folder: Path, name: str, content: str | bytes) -> None:
    """A reader sees the old file or the new one; so does who comes back after a SIGKILL.

    Args:
        folder: of the sweep; what is not finished lies there, where no reader of a store looks.
        name: of the file, from there.
    """
    part = folder / ".part"
    with open(part, "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
    os.replace(part, folder / name)


class Lock:
    """A folder for one sweep alone, until `release` or the end of the process, however it ends.

    Raises:
        ValueError: the folder is a file, cannot be written, or belongs to another sweep, which is named.
    """

    def __init__(self, folder: Path) -> None:
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"--out {folder}: expected a folder, found a file")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = (folder / LOCK).open("a+")
        except OSError as error:
            raise ValueError(f"--out {folder}: cannot be written ({error.strerror})") from error
        if not _take(self._file):
            who = holder(folder)
            self._file.close()
            raise ValueError(f"--out {folder}: another sweep ({who}) is writing here; wait or stop it")
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {os.uname().nodename}")
        self._file.flush()

    def release(self) -> None:
        self._file.close()


def _take(file: TextIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def holder(folder: Path) -> str:
    """Who writes there now; "" if nobody does."""
    try:
        with (folder / LOCK).open() as file:
            return "" if _take(file) else file.read().strip() or "unknown"
    except OSError:
        return ""
