"""Feed: training batches without end, each process its share, and a place to go on from."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..fisher.batches import generators_of
from .executor import Executor

State = dict[str, Tensor]
"""Random states by name, as bytes."""


class Feed:
    """Reads a loader again and again.

    Its place is the random states at the beginning of this reading and the number of batches read since: a resumed feed
    reads, and drops, as many.
    """

    def __init__(self, loader: Iterable[dict[str, Tensor]], executor: Executor) -> None:
        self.loader, self.executor = loader, executor
        self._began = random_states(loader)
        self._read = 0
        self._reading: Iterator[dict[str, Tensor]] = iter(())

    def take(self, batches: int) -> Iterator[dict[str, Tensor]]:
        """This process's next batches: of P processes, each takes every P-th."""
        process, processes = self.executor.process, self.executor.processes
        for i in range(batches * processes):
            batch = self._next()
            if i % processes == process:
                yield {name: value.to(self.executor.device) for name, value in batch.items()}

    def _next(self) -> dict[str, Tensor]:
        batch = next(self._reading, None)
        if batch is None:
            self._began, self._read = random_states(self.loader), 0
            self._reading = iter(self.loader)
            batch = next(self._reading, None)
            if batch is None:
                raise ValueError(
                    "train_loader gave no batch: expected one that can be read again and again (not a generator)"
                )
        if not isinstance(batch, Mapping):
            raise ValueError(
                f"expected batches that are dicts by argument name, got {type(batch).__name__}: for other loops there is "
                "fisherdyn.Unfreezing"
            )
        self._read += 1
        return dict(batch)

    def state_dict(self) -> dict[str, Any]:
        """The place of every process, and its random states now."""
        mine = {"began": self._began, "read": self._read, "now": random_states(self.loader)}
        return {"processes": self.executor.gather(mine)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Reads on from this process's place, with its random states."""
        mine = state["processes"][self.executor.process]
        set_random_states(mine["began"], self.loader)
        self._began, self._read = mine["began"], mine["read"]
        if self._read:
            self._reading = iter(self.loader)
            for _ in range(self._read):
                next(self._reading)
        set_random_states(mine["now"], self.loader)


def random_states(loader: Iterable[Any]) -> State:
    """Every random state that a step may draw from: torch's, CUDA's, Python's, numpy's, and the loader's generators."""
    states = {"torch": torch.get_rng_state()}
    states |= {f"cuda.{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    states |= {f"loader.{i}": g.get_state() for i, g in enumerate(generators_of(loader))}
    _, words, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state()
    floats = torch.tensor([float("nan") if gauss is None else gauss, cached], dtype=torch.float64)
    integers = torch.tensor([*words, *np.asarray(keys).tolist(), position, has_gauss], dtype=torch.int64)
    return states | {"integers": integers, "floats": floats}


def set_random_states(states: State, loader: Iterable[Any]) -> None:
    """The inverse of `random_states`."""
    torch.set_rng_state(states["torch"])
    for i in range(torch.cuda.device_count()):
        torch.cuda.set_rng_state(states[f"cuda.{i}"], i)
    for i, generator in enumerate(generators_of(loader)):
        generator.set_state(states[f"loader.{i}"])
    integers, (gauss, cached) = states["integers"].tolist(), states["floats"].tolist()
    words, keys, (position, has_gauss) = integers[:625], integers[625:-2], integers[-2:]
    random.setstate((3, tuple(words), None if gauss != gauss else gauss))
    np.random.set_state(("MT19937", np.array(keys, dtype=np.uint32), position, has_gauss, cached))
