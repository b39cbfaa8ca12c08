"""Batches of a data set, in order or shuffled, padded no longer than their longest example."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

Batch = dict[str, Tensor]
Collate = Callable[[Tensor], Batch]
"""Rows of a data set, (n,) -> their batch."""


class Batches:
    """A loader that reads a data set in order. The last batch is short where the batch size does not divide the rows.

    Args:
        examples: rows of the data set.
        batch: examples a batch.
        collate: makes a batch of the rows that it is given.
    """

    def __init__(self, examples: int, batch: int, collate: Collate) -> None:
        self.examples, self.batch, self.collate = examples, batch, collate

    def __len__(self) -> int:
        """Batches an epoch."""
        return -(-self.examples // self.batch)

    def __iter__(self) -> Iterator[Batch]:
        for rows in self.order().split(self.batch):
            yield self.collate(rows)

    def order(self) -> Tensor:
        """The rows of an epoch, in the order in which they are read: (examples,)."""
        return torch.arange(self.examples)


class ShuffledBatches(Batches):
    """A loader that reads a data set in a new random order every epoch, drawn from a generator of its own.

    Args:
        examples, batch, collate: as in `Batches`.
        seed: of the orders.
    """

    def __init__(self, examples: int, batch: int, seed: int, collate: Collate) -> None:
        super().__init__(examples, batch, collate)
        self.generator = torch.Generator().manual_seed(seed)

    def order(self) -> Tensor:
        return torch.randperm(self.examples, generator=self.generator)


def subsample(available: int, size: int | None, seed: int, stream: int) -> np.ndarray:
    """Rows of a random subsample, drawn without replacement and sorted.

    Args:
        available: rows to draw from.
        size: rows to draw; None for all.
        seed, stream: of the draw. The same seed gives another sample in another stream.

    Raises:
        ValueError: a size below 1 or above what is available.
    """
    if size is None:
        return np.arange(available)
    if not 1 <= size <= available:
        raise ValueError(f"{size} examples: expected 1 to {available}, which is what there is")
    rows = np.random.default_rng([seed, stream]).choice(available, size=size, replace=False)
    return np.sort(rows)


def select(data: Mapping[str, Tensor], rows: Tensor) -> Batch:
    """Rows of a padded data set, trimmed to the longest of them."""
    batch = {name: x[rows] for name, x in data.items()}
    longest = int(batch["attention_mask"].sum(dim=-1).max())
    return {name: x[..., :longest] if x.ndim > 1 else x for name, x in batch.items()}


def pad(sequences: Sequence[np.ndarray], value: int) -> Tensor:
    """Sequences of different lengths as (n, longest), padded with `value` at the right."""
    tensors = [torch.from_numpy(sequence.astype(np.int64)) for sequence in sequences]
    return pad_sequence(tensors, batch_first=True, padding_value=value)
