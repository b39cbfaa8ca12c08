"""Resumable: everything that a run's future depends on, saved now and then, and put back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..schedule import Unfreezing
from .checkpoint import Checkpoint, newest, optimizer_tensors, set_optimizer_tensors
from .execution import Execution
from .feed import Feed, random_states, set_random_states
from .journal import Journal
from .stopping import Stopping


class Resumable:
    """Weights that train, buffers, optimizer, random states, the feed's place, decisions, journal.

    Weights that never train are not saved: they come with the model that fit() is given.

    Args:
        folder: of the checkpoints; None: nothing is saved.
        every: steps between two.
        configuration: what must be the same for a run to go on.
        parameters: what trains, by name.
        weights: the tensors of the model that are saved: these and the buffers.
    """

    def __init__(
        self,
        folder: str | Path | None,
        every: int,
        configuration: Mapping[str, Any],
        parameters: dict[str, nn.Parameter],
        weights: dict[str, Tensor],
        optimizer: torch.optim.Optimizer,
        unfreezing: Unfreezing,
        feed: Feed,
        journal: Journal,
        stopping: Stopping,
        execution: Execution,
    ) -> None:
        self.folder, self.every = Path(folder) if folder is not None else None, every
        self.configuration = json.loads(json.dumps(configuration))
        self.parameters, self.weights, self.optimizer = parameters, weights, optimizer
        self.unfreezing, self.feed, self.journal = unfreezing, feed, journal
        self.stopping, self.execution = stopping, execution
        self.started_at = 0

    def save(self, step: int) -> None:
        """Where it is due; called before anything of this step has happened."""
        if self.folder is None or step == self.started_at or step % self.every:
            return
        mine = {"now": random_states(self.feed.loader), "began": self.feed.began}
        all_states = self.execution.gather(mine)
        if self.execution.process == 0:
            self._checkpoint(step, all_states).write(self.folder)
        self.execution.wait()

    def _checkpoint(self, step: int, random: list[dict[str, dict[str, Tensor]]]) -> Checkpoint:
        checkpoint = Checkpoint(step)
        checkpoint.add("model", self.weights)
        checkpoint.add("best", self.stopping.kept)
        names = {id(parameter): name for name, parameter in self.parameters.items()}
        checkpoint.add("optimizer", optimizer_tensors(self.optimizer, names))
        for process, states in enumerate(random):
            for which, tensors in states.items():
                checkpoint.add(f"random.{process}.{which}", tensors)
        checkpoint.rest = {
            "configuration": self.configuration,
            "unfreezing": self.unfreezing.state_dict(),
            "journal": self.journal.state(),
            "stopping": self.stopping.state(),
            "read": self.feed.read,
        }
        return checkpoint

    def resume(self) -> int:
        """Puts the newest checkpoint back, where there is one; the step to go on with.

        Raises:
            ValueError: the checkpoint is of another run; the message says what differs.
        """
        saved = newest(self.folder) if self.folder is not None else None
        if saved is None:
            return 0
        self._check(saved)
        with torch.no_grad():
            for name, weight in saved.get("model").items():
                self.weights[name].copy_(weight)
        set_optimizer_tensors(self.optimizer, self.parameters, saved.get("optimizer"))
        self.unfreezing.load_state_dict(saved.rest["unfreezing"])
        self.journal.load(saved.rest["journal"])
        self.stopping.load(saved.rest["stopping"], saved.get("best"))
        process = f"random.{self.execution.process}"
        self.feed.go_to(saved.get(f"{process}.began"), saved.rest["read"])
        set_random_states(saved.get(f"{process}.now"), self.feed.loader)
        self.started_at = saved.step
        return saved.step

    def _check(self, saved: Checkpoint) -> None:
        was = saved.rest["configuration"]
        differing = [
            f"{key} {was.get(key)!r}, not {value!r}"
            for key, value in self.configuration.items()
            if was.get(key) != value
        ]
        shapes = {name: tuple(weight.shape) for name, weight in saved.get("model").items()}
        own = {name: tuple(weight.shape) for name, weight in self.weights.items()}
        differing += [
            f"weight {name} of shape {shapes.get(name)}, not {own.get(name)}"
            for name in sorted(shapes.keys() | own.keys())
            if shapes.get(name) != own.get(name)
        ]
        if differing:
            raise ValueError(
                f"{self.folder} holds a checkpoint of another run: it has {'; '.join(differing[:6])}. Choose another "
                "folder, or delete it to start again"
            )
