"""For Lightning's Trainer: what is measured while it trains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import xarray as xr
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from ..probing import Loaders
from ..recorder import Recorder


class FisherCallback(Callback):
    """`Recorder` in a Lightning Trainer: `Trainer(callbacks=[callback])`, and after fit(), `callback.dataset`.

    The training loss is what training_step returns. Training that goes on from a checkpoint goes on at its step: give
    `resume=` the store of the run that was cut short.

    Args:
        loader: what tr(F) is measured on.
        module: name of the part of the LightningModule that turns a batch into logits, such as "net"; by default the
            LightningModule itself, by its forward().
        **options: those of `Recorder`.

    Raises:
        ValueError: as `Recorder`, when training begins; a LightningModule without forward(), where no part is named;
            several optimizers.
    """

    def __init__(self, loader: Loaders, *, module: str = "", **options: Any) -> None:
        self.loader, self.module, self.options = loader, module, options
        self.recorder: Recorder | None = None

    @property
    def dataset(self) -> xr.Dataset:
        """What was recorded so far; see `Recorder.dataset`."""
        if self.recorder is None:
            raise ValueError("nothing is recorded yet: training has not begun")
        return self.recorder.dataset

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.module and type(pl_module).forward is LightningModule.forward:
            raise ValueError(
                f"{type(pl_module).__name__} has no forward() that gives logits: name the part that does, FisherCallback("
                'loader, module="net")'
            )
        if len(trainer.optimizers) != 1:
            raise ValueError(
                f"expected one optimizer, got {len(trainer.optimizers)}: make a Recorder and attach it to one of them"
            )
        part = pl_module.get_submodule(self.module)
        recorder = Recorder(part, self.loader, **self.options)
        self.recorder = recorder.attach(trainer.optimizers[0], step=trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if self.recorder is not None and isinstance(loss, Tensor):
            self.recorder.log(train_loss=loss)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.recorder is not None:
            self.recorder.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self.recorder is not None:
            self.recorder.detach()
