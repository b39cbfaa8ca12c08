"""Batches: an order of one's own, and tensors that are no longer than their longest example."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

Batch = dict[str, Tensor]
Collate = Callable[[Tensor], Batch]
"""Rows of a data set, (n,) -> their batch."""


class ShuffledBatches:
    """A loader with an order of its own: each reading is a new shuffle, drawn from its own generator.

    The last batch of a reading is short where the batch size does not divide the examples.

    Args:
        examples: how many there are.
        batch: examples a batch.
        seed: of the order.
        collate: makes a batch of the rows that are asked for.
    """

    def __init__(self, examples: int, batch: int, seed: int, collate: Collate) -> None:
        self.examples, self.batch, self.collate = examples, batch, collate
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        """Batches a reading."""
        return -(-self.examples // self.batch)

    def __iter__(self) -> Iterator[Batch]:
        return in_order(torch.randperm(self.examples, generator=self.generator), self.batch, self.collate)


def in_order(rows: Tensor, batch: int, collate: Collate) -> Iterator[Batch]:
    """The rows, `batch` at a time."""
    for some in rows.split(batch):
        yield collate(some)


def subsample(available: int, wanted: int | None, seed: int, stream: int) -> np.ndarray:
    """`wanted` of the rows, drawn without replacement and sorted; all of them for None.

    Args:
        seed, stream: of the draw; another stream is another sample of the same seed.

    Raises:
        ValueError: there are not so many.
    """
    if wanted is None:
        return np.arange(available)
    if not 1 <= wanted <= available:
        raise ValueError(f"{wanted} examples: expected 1 to {available}, which is what there is")
    drawn = np.random.default_rng([seed, stream]).choice(available, size=wanted, replace=False)
    return np.sort(drawn)


def select(split: Mapping[str, Tensor], rows: Tensor) -> Batch:
    """Rows of a padded split, trimmed to the longest of them."""
    chosen = {name: x[rows] for name, x in split.items()}
    longest = int(chosen["attention_mask"].sum(dim=-1).max())
    return {name: x[..., :longest] if x.ndim > 1 else x for name, x in chosen.items()}


def pad(sequences: Sequence[np.ndarray], value: int) -> Tensor:
    """(n, longest), filled up with `value` at the right."""
    return pad_sequence(
        [torch.from_numpy(one.astype(np.int64)) for one in sequences], batch_first=True, padding_value=value
    )
