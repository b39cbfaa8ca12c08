"""Several processes: which of them this is, what each of them found, and who measures what. One process is rank 0 of 1."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import DistributedSampler

from .batches import Batch, generators_of


def several() -> bool:
    """Whether there are several processes."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def processes() -> int:
    return dist.get_world_size() if several() else 1


def rank() -> int:
    return dist.get_rank() if several() else 0


def all_gather(value: Any) -> list[Any]:
    """Every process's value, in the order of ranks; all of them must call it. For small things: they are pickled."""
    if not several():
        return [value]
    gathered: list[Any] = [None] * processes()
    dist.all_gather_object(gathered, value)
    return gathered


def shard(loader: Iterable[Batch], most: int | None = None) -> Iterable[Batch]:
    """This rank's of the first `most` batches (None: all) of a loader that every rank has whole.

    With one process, and where the loader is shared out already, it is the loader itself.

    Raises:
        ValueError: accelerate's dispatcher, which one process reads for all.
    """
    if not several() or _is_sharded(loader):
        return loader
    if type(loader).__name__ == "DataLoaderDispatcher":
        raise ValueError(
            "accelerate's DataLoaderDispatcher is read by one process for all: prepare the loader with "
            "dispatch_batches=False, or pass one that is not prepared"
        )
    return _Shard(loader, most)


def _is_sharded(loader: Any) -> bool:
    """By torch's DistributedSampler, at any depth, or by accelerate."""
    if type(getattr(loader, "dataset", None)).__name__ == "IterableDatasetShard":
        return True
    reads = loader
    while reads is not None:
        if isinstance(getattr(reads, "sampler", None), DistributedSampler):
            return True
        reads = getattr(reads, "batch_sampler", None)
        if type(reads).__name__ == "BatchSamplerShard":
            return True
    return False


class _Shard:
    """Each world-th batch, from the rank's own on; in all else the loader itself. Read inside `preserve_state`."""

    def __init__(self, loader: Iterable[Batch], most: int | None) -> None:
        self._loader, self._most = loader, most

    def __iter__(self) -> Iterator[Batch]:
        # Every rank must read the same order, whatever its random state is: that of rank 0.
        generators = generators_of(self._loader)
        states = all_gather([torch.get_rng_state(), *(g.get_state() for g in generators)])[0]
        torch.set_rng_state(states[0])
        for generator, state in zip(generators, states[1:], strict=True):
            generator.set_state(state)
        return islice(iter(self._loader), rank(), self._most, processes())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


def rank_generator(generator: torch.Generator) -> torch.Generator:
    """A generator that every process has alike -> one of its own, apart from the others'; alone, itself."""
    if not several():
        return generator
    seed = int(torch.randint(2**62, (), generator=generator))
    return torch.Generator().manual_seed(seed + rank())
