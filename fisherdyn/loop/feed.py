"""Feed: training batches without end, each process its share, and a place to go on from."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..fisher.batches import generators_of

State = dict[str, Tensor]
"""Random states by name, as bytes."""


class Feed:
    """Reads a loader again and again.

    Its place is the random states at the beginning of this reading and the number of batches read since: a resumed feed
    reads, and drops, as many.
    """

    def __init__(
        self, loader: Iterable[dict[str, Tensor]], device: torch.device, process: int = 0, processes: int = 1
    ) -> None:
        self.loader, self.device = loader, device
        self.process, self.processes = process, processes
        self.began = random_states(loader)
        self.read = 0
        self._reading: Iterator[dict[str, Tensor]] = iter(())

    def take(self, batches: int) -> Iterator[dict[str, Tensor]]:
        """This process's next batches: of P processes, each takes every P-th."""
        for i in range(batches * self.processes):
            batch = self._next()
            if i % self.processes == self.process:
                yield {name: value.to(self.device) for name, value in batch.items()}

    def _next(self) -> dict[str, Tensor]:
        batch = next(self._reading, None)
        if batch is None:
            self.began, self.read = random_states(self.loader), 0
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
        self.read += 1
        return dict(batch)

    def go_to(self, began: State, read: int) -> None:
        """Reads on from a place; the random states are those of the place's reading, and the caller's to set."""
        set_random_states(began, self.loader)
        self.began, self.read = began, read
        if read:
            self._reading = iter(self.loader)
            for _ in range(read):
                next(self._reading)


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
