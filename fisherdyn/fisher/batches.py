"""A batch of any usual shape: its inputs, its examples, its length."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

Batch = Any
"""A dict (HF), a tuple (inputs, targets), or a tensor of inputs."""

TARGETS = ("labels", "label", "start_positions", "end_positions")
"""What a dict batch holds beside the inputs; the true Fisher needs none of it."""


def inputs_of(batch: Batch, device: torch.device | None = None) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
    """Positional and keyword arguments of the model, targets left out, on a device (None: where they are)."""
    if isinstance(batch, Mapping):
        kept = {key: value for key, value in batch.items() if key not in TARGETS}
        return (), {key: _moved(v, device) if isinstance(v, Tensor) else v for key, v in kept.items()}
    x = batch[0] if isinstance(batch, tuple | list) and len(batch) in (1, 2) else batch
    if not isinstance(x, Tensor):
        several = f" of {len(batch)}" if isinstance(batch, tuple | list) else ""
        raise TypeError(
            "expected a batch that is a tensor, (inputs, targets) or a dict of tensors by argument name, got "
            f"{type(batch).__name__}{several}"
        )
    return (_moved(x, device),), {}


def _moved(x: Tensor, device: torch.device | None) -> Tensor:
    if x.is_meta:
        raise ValueError(
            f"a tensor of the batch, of shape {tuple(x.shape)}, is on device 'meta', which holds no numbers"
        )
    return x.to(device)


def count_in(batch: Batch) -> int:
    """The number of examples in a batch."""
    return count_examples(*inputs_of(batch))


def rows_of(batch: Batch, rows: range | Tensor) -> Batch:
    """Some of a batch's examples, targets and all."""
    index = slice(rows.start, rows.stop, rows.step) if isinstance(rows, range) else rows

    def cut(x: Any) -> Any:
        return x[index] if isinstance(x, Tensor) and x.ndim > 0 else x

    if isinstance(batch, Mapping):
        return {key: cut(value) for key, value in batch.items()}
    return type(batch)(map(cut, batch)) if isinstance(batch, tuple | list) else cut(batch)


def one_example(x: Any, i: int) -> Any:
    """Example i, still with a batch dimension; anything but a tensor that has one as it is."""
    return x[i : i + 1] if isinstance(x, Tensor) and x.ndim > 0 else x


def count_examples(args: tuple[Tensor, ...], kwargs: Mapping[str, Any]) -> int:
    """The length of the batch dimension that all tensors share."""
    if not any(isinstance(v, Tensor) for v in (*args, *kwargs.values())):
        raise ValueError("expected a batch with at least one tensor, got none")
    sizes = {len(v) for v in (*args, *kwargs.values()) if isinstance(v, Tensor) and v.ndim > 0}
    if len(sizes) != 1 or 0 in sizes:
        raise ValueError(f"expected tensors that share one batch dimension of at least 1, got lengths {sorted(sizes)}")
    return sizes.pop()


def length_of(loader: Iterable[Any]) -> int | None:
    """Batches of one reading; None where that is not known before (a DataLoader over a stream has a len that raises)."""
    try:
        return len(loader)  # type: ignore[arg-type]
    except (TypeError, NotImplementedError):
        return None


def generators_of(loader: Iterable) -> list[torch.Generator]:
    """Those that the order of a loader is drawn from; a loader without any draws from the global random state."""
    batches = getattr(loader, "batch_sampler", None)
    owners = [loader, getattr(loader, "sampler", None), batches, getattr(batches, "sampler", None)]
    found = [getattr(owner, "generator", None) for owner in owners]
    return list({id(g): g for g in found if isinstance(g, torch.Generator)}.values())
