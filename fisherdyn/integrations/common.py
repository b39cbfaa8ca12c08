"""What the callbacks of all trainers have in common; each adds when it is called."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import xarray as xr
from torch import nn
from torch.optim import Optimizer

from ..fisher.batches import Batch
from ..layers import LayerChoice, resolve_layers
from ..likelihoods import Likelihood
from ..policies import Policy
from ..probing import Loaders
from ..recording.recorder import Recorder
from ..schedule import Unfreezing
from ..selection import reshuffled


class Recording:
    """A Recorder that is made when training begins."""

    def __init__(self, loader: Loaders, **options: Any) -> None:
        self.loader, self.options = loader, options
        self.recorder: Recorder | None = None

    @property
    def dataset(self) -> xr.Dataset:
        """What was recorded so far; see `Recorder.dataset`."""
        if self.recorder is None:
            raise ValueError("nothing is recorded yet: training has not begun")
        return self.recorder.dataset


class Scheduled:
    """An Unfreezing that is made when training begins."""

    def __init__(
        self,
        policy: Policy,
        interval: int | Sequence[int],
        *,
        layers: LayerChoice = None,
        loader: Iterable[Batch] | None = None,
        timing: str = "prose",
        labels: str = "rademacher",
        likelihood: Likelihood | str | None = None,
        seed: int = 0,
    ) -> None:
        self.policy, self.interval, self.timing, self.seed = policy, interval, timing, seed
        self.layers, self.loader, self.labels, self.likelihood = layers, loader, labels, likelihood
        self.unfreezing: Unfreezing | None = None

    def begin(
        self, model: nn.Module, optimizer: Optimizer, train_loader: Any, batch_size: int | None, *, together: bool
    ) -> Unfreezing:
        """The schedule, attached; FUN is measured on the training set, in an order of its own, where no loader is named."""
        layers = resolve_layers(model, self.layers)
        unfreezing = Unfreezing(self.policy, layers, self.interval, timing=self.timing, seed=self.seed)
        loader = self.loader
        if loader is None and self.policy.scoring is not None:
            loader = reshuffled(train_loader, batch_size, self.seed)
        unfreezing.attach(model, optimizer, loader, labels=self.labels, likelihood=self.likelihood, together=together)
        return unfreezing
