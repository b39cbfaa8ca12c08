"""Several processes that train one model: who measures what, and who writes. One process is rank 0 of 1."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import torch.distributed as dist
from torch.utils.data import DistributedSampler

from ..fisher.forward import Batch
from ..fisher.sums import several


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
