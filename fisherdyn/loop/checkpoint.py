"""Checkpoints: everything that a run's future depends on, in one file a step, there whole or not at all."""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from ..settings import Checkpoints
from .executor import Executor

KEPT = 2
"""Checkpoints that are kept: the newest, and the one before in case the newest is corrupt."""
_NAME = re.compile(r"step-(\d{9})\.pt")


class Stateful(Protocol):
    """What a checkpoint saves and puts back."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Any, /) -> Any: ...


class Checkpointer:
    """Saves the parts of a run, and puts them back.

    Args:
        settings: where, and how often; None: nothing is saved.
        identity: what must be the same for a run to go on, by name.
        parts: what a run consists of, by name; put back in this order.
        executor: process 0 writes.
    """

    def __init__(
        self,
        settings: Checkpoints | None,
        identity: Mapping[str, str],
        parts: Mapping[str, Stateful],
        executor: Executor,
    ) -> None:
        self.settings, self.identity, self.parts, self.executor = settings, dict(identity), parts, executor
        self._started_at = 0

    def save(self, step: int) -> None:
        """Where it is due. Call it before anything of this step has happened."""
        if self.settings is None or step == self._started_at or step % self.settings.every:
            return
        states = {name: part.state_dict() for name, part in self.parts.items()}
        if self.executor.process == 0:
            write(self.settings.folder, step, {"step": step, "identity": self.identity, "parts": states})
        self.executor.wait()

    def resume(self) -> int:
        """Puts the newest checkpoint back, where there is one.

        Returns:
            The step to go on with.

        Raises:
            ValueError: the checkpoint is damaged, or of another run; the message says what differs.
        """
        saved = newest(self.settings.folder) if self.settings is not None else None
        if saved is None:
            return 0
        was = saved["identity"]
        differing = [
            f"{name} {was.get(name)}, not {now}" for name, now in self.identity.items() if was.get(name) != now
        ]
        if differing:
            raise self._another_run("; ".join(differing[:6]))
        for name, part in self.parts.items():
            try:
                part.load_state_dict(saved["parts"][name])
            except ValueError as error:
                raise self._another_run(str(error)) from error
        self._started_at = int(saved["step"])
        return self._started_at

    def _another_run(self, difference: str) -> ValueError:
        assert self.settings is not None
        return ValueError(
            f"{self.settings.folder} holds a checkpoint of another run: it has {difference}. Choose another folder, or "
            "delete it to start again"
        )


def write(folder: Path, step: int, content: dict[str, Any]) -> Path:
    """Writes beside its place, to the disk, and then renames; checkpoints older than the last two are deleted."""
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / f"step-{step:09d}.pt"
    beside = folder / f".{place.name}.{uuid.uuid4().hex}"
    try:
        with beside.open("xb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, place)
    finally:
        beside.unlink(missing_ok=True)
    _flush_folder(folder)
    for old in checkpoints(folder)[:-KEPT]:
        old.unlink()
    return place


def checkpoints(folder: Path) -> list[Path]:
    """Those in a folder, oldest first.

    Raises:
        ValueError: the path is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: expected a folder for checkpoints")
    return sorted(path for path in folder.glob("step-*.pt") if _NAME.fullmatch(path.name))


def newest(folder: Path) -> dict[str, Any] | None:
    """What the newest checkpoint in a folder holds, on the CPU; None where there is none.

    Raises:
        ValueError: it is damaged.
    """
    saved = checkpoints(folder)
    if not saved:
        return None
    try:
        content = torch.load(saved[-1], map_location="cpu", weights_only=True)
        return {key: content[key] for key in ("step", "identity", "parts")}
    except Exception as error:  # whatever torch.load makes of a broken file
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{saved[-1]} is damaged ({reason}): delete it to go on from the one before") from error


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
