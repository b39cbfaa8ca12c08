"""The part of the callbacks that does not depend on the trainer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypedDict, Unpack

import xarray as xr
from torch import Tensor, nn
from torch.optim import Optimizer

from ..fisher.batches import Batch
from ..fisher.trace import LabelName
from ..labels import LabelMode
from ..layers import LayerChoice, resolve_layers
from ..likelihoods import Likelihood
from ..policies import Policy
from ..probing import Loaders
from ..recording.recorder import Recorder, RecorderOptions
from ..schedule import Unfreezing
from ..selection import reshuffled


class Recording:
    """A Recorder that is made when training begins."""

    def __init__(self, loader: Loaders, **options: Unpack[RecorderOptions]) -> None:
        self.loader, self.options = loader, options
        self.recorder: Recorder | None = None
        self._losses: list[Tensor] = []

    @property
    def dataset(self) -> xr.Dataset:
        """What was recorded so far; see `Recorder.dataset`."""
        if self.recorder is None:
            raise ValueError("nothing is recorded yet: training has not begun")
        return self.recorder.dataset

    def keep_loss(self, loss: Tensor) -> None:
        """Keeps the loss of a batch until its update is made."""
        self._losses.append(loss.detach())

    def log_losses(self) -> None:
        """Logs an update's losses after the update, as a hand-written loop does."""
        assert self.recorder is not None
        for loss in self._losses:
            self.recorder.log(train_loss=loss)
        self._losses.clear()


class ScheduleOptions(TypedDict, total=False):
    """Options of `UnfreezingCallback`: see `Unfreezing.attach`."""

    layers: LayerChoice
    loader: Iterable[Batch] | None
    labels: LabelName | LabelMode
    likelihood: Likelihood | str | None
    seed: int


class Scheduled:
    """An Unfreezing that is made when training begins."""

    def __init__(
        self,
        policy: Policy,
        interval: int | Sequence[int],
        *,
        layers: LayerChoice = None,
        loader: Iterable[Batch] | None = None,
        labels: LabelName | LabelMode = "rademacher",
        likelihood: Likelihood | str | None = None,
        seed: int = 0,
    ) -> None:
        self.policy, self.interval, self.seed = policy, interval, seed
        self.layers, self.loader, self.labels, self.likelihood = layers, loader, labels, likelihood
        self.unfreezing: Unfreezing | None = None

    def begin(
        self, model: nn.Module, optimizer: Optimizer, train_loader: Any, batch_size: int | None, *, together: bool
    ) -> Unfreezing:
        """Attaches the schedule. Without a loader, FUN measures on the training set, in an order of its own."""
        layers = resolve_layers(model, self.layers)
        unfreezing = Unfreezing(self.policy, layers, self.interval, seed=self.seed)
        loader = self.loader
        if loader is None and self.policy.scoring is not None:
            loader = reshuffled(train_loader, batch_size, self.seed)
        unfreezing.attach(model, optimizer, loader, labels=self.labels, likelihood=self.likelihood, together=together)
        return unfreezing
