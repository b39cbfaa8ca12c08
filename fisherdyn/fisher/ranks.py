"""Several processes: which of them this is, what each of them found, and who measures what. One process is rank 0 of 1."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import DistributedSampler

from .forward import Batch


def several() -> bool:
    """Whether there are several processes."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def processes() -> int:
    return dist.get_world_size() if several() else 1


def rank() -> int:
    return dist.get_rank() if several() else 0


def gathered(value: Any) -> list[Any]:
    """Every process's value, in the order of ranks; all of them must call it. For small things: they are pickled."""
    if not several():
        return [value]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


def share(loader: Iterable[Batch], most: int | None = None) -> Iterable[Batch]:
    """This rank's of the first `most` batches (None: all) of a loader that every rank has whole.

    With one process, and where the loader is shared out already, it is the loader itself.
    """
    sharded = type(getattr(loader, "batch_sampler", None)).__name__ == "BatchSamplerShard"  # accelerate's
    if not several() or sharded or isinstance(getattr(loader, "sampler", None), DistributedSampler):
        return loader
    return _Share(loader, most)


class _Share:
    """Each world-th batch, from the rank's own on; in all else the loader itself."""

    def __init__(self, loader: Iterable[Batch], most: int | None) -> None:
        self._loader, self._most = loader, most

    def __iter__(self) -> Iterator[Batch]:
        return islice(iter(self._loader), dist.get_rank(), self._most, dist.get_world_size())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


def own_noise(generator: torch.Generator) -> torch.Generator:
    """A generator that every process has alike -> one of its own, apart from the others'; alone, itself."""
    if not several():
        return generator
    seed = int(torch.randint(2**62, (), generator=generator))
    return torch.Generator().manual_seed(seed + rank())
