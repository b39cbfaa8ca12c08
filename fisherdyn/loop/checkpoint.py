"""Checkpoints: one folder a step, tensors in safetensors and the rest in JSON, there whole or not at all."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

TENSORS, REST = "tensors.safetensors", "state.json"
KEPT = 2
"""Checkpoints that are kept: the newest, and the one before, should a disk have lied."""
_NAME = re.compile(r"step-(\d{9})")


@dataclass
class Checkpoint:
    """A moment of a run.

    Attributes:
        step: updates done; nothing of this step's own (selection, record, evaluation) is in it yet.
        tensors: "kind/name" -> tensor.
        rest: what JSON has types for. Python writes floats so that they are read back to the bit.
    """

    step: int
    tensors: dict[str, Tensor] = field(default_factory=dict)
    rest: dict[str, Any] = field(default_factory=dict)

    def add(self, kind: str, tensors: dict[str, Tensor]) -> None:
        self.tensors |= {f"{kind}/{name}": tensor for name, tensor in tensors.items()}

    def get(self, kind: str) -> dict[str, Tensor]:
        found = ((name.partition("/"), tensor) for name, tensor in self.tensors.items())
        return {name: tensor for (of, _, name), tensor in found if of == kind}

    def write(self, folder: Path) -> Path:
        """Writes beside its place, to the disk, and then moves there; older ones than the last two are deleted."""
        place = folder / f"step-{self.step:09d}"
        beside = folder / f".{place.name}.{os.getpid()}"
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        try:
            save_file(
                {name: t.detach().cpu().contiguous().clone() for name, t in self.tensors.items()}, beside / TENSORS
            )
            (beside / REST).write_text(json.dumps({"step": self.step, **self.rest}))
            for path in (beside / TENSORS, beside / REST, beside):
                _to_disk(path)
            shutil.rmtree(place, ignore_errors=True)
            beside.rename(place)
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            raise
        _to_disk(folder)
        for old in checkpoints(folder)[:-KEPT]:
            shutil.rmtree(old)
        return place


def checkpoints(folder: Path) -> list[Path]:
    """Those in a folder, oldest first.

    Raises:
        ValueError: the path is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: expected a folder for checkpoints")
    return sorted(path for path in folder.glob("step-*") if _NAME.fullmatch(path.name))


def newest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint in a folder; None where there is none.

    Raises:
        ValueError: it is damaged.
    """
    found = checkpoints(folder)
    if not found:
        return None
    try:
        rest = json.loads((found[-1] / REST).read_text())
        return Checkpoint(rest.pop("step"), load_file(found[-1] / TENSORS), rest)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ValueError(f"{found[-1]} is damaged ({error}): delete it to go on from the one before") from error


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: dict[int, str]) -> dict[str, Tensor]:
    """The optimizer's state by parameter name; a layer that never opened has none. `names` is by the parameter's id."""
    state = optimizer.state.items()
    return {f"{names[id(p)]}/{key}": value for p, own in state for key, value in own.items()}


def set_optimizer_tensors(
    optimizer: torch.optim.Optimizer, parameters: dict[str, torch.nn.Parameter], tensors: dict[str, Tensor]
) -> None:
    for name, value in tensors.items():
        parameter, _, key = name.rpartition("/")
        optimizer.state[parameters[parameter]][key] = value.to(parameters[parameter].device)


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
