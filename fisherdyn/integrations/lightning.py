"""For Lightning's Trainer: tr(F) recorded while it trains, and schedules that unfreeze."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Unpack

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from ..policies import Policy
from ..probing import Loaders
from ..recording.recorder import Recorder, RecorderOptions
from .common import Recording, Scheduled, ScheduleOptions


class FisherCallback(Recording, Callback):
    """`Recorder` in a Lightning Trainer: `Trainer(callbacks=[callback])`, and after fit(), `callback.dataset`.

    The training loss is what training_step returns. Training that goes on from a checkpoint goes on at its step: give
    `resume=` the file of the run that was cut short.

    Args:
        loader: what tr(F) is measured on.
        module: name of the part of the LightningModule that turns a batch into logits, such as "net"; by default the
            LightningModule itself, by its forward().
        **options: those of `Recorder`.

    Raises:
        ValueError: as `Recorder`, when training begins; a LightningModule without forward(), where no part is named;
            several optimizers.
    """

    def __init__(self, loader: Loaders, *, module: str = "", **options: Unpack[RecorderOptions]) -> None:
        super().__init__(loader, **options)
        self.module = module

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
        self._logged_at = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if self.recorder is None:
            return
        if isinstance(loss, Tensor):
            self.keep_loss(loss * trainer.accumulate_grad_batches)  # which Lightning has divided it by
        if trainer.global_step > self._logged_at:
            self.log_losses()
            self._logged_at = trainer.global_step

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.recorder is not None:
            self.recorder.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self.recorder is not None:
            self.recorder.detach()


class UnfreezingCallback(Scheduled, Callback):
    """Algorithm 1 under Lightning: `Trainer(..., callbacks=[UnfreezingCallback(policies.fun(), interval=50)])`.

    `configure_optimizers` must hand over every layer's parameters; the callback freezes afterwards. With several devices,
    strategy="ddp_find_unused_parameters_true". The decisions are in Lightning's checkpoints and taken up from them.

    Args:
        policy, interval, seed: see `Unfreezing`.
        module: the path in the LightningModule of the model whose layers open, which returns logits; "": itself.
        layers: of that model; see `resolve_layers`.
        loader: what FUN is measured on; None: the training set, in an order of its own.
        labels, likelihood: see `fisher_trace`.

    Attributes:
        unfreezing: the schedule, with its decisions and selections, once training has begun.

    Raises:
        ValueError: when training begins: several optimizers, or one that lacks layers; a checkpoint without this schedule or
            with another; a strategy that does not look for unused parameters, or that flattens or splits them.
    """

    def __init__(
        self,
        policy: Policy,
        interval: int | Sequence[int],
        *,
        module: str = "",
        **options: Unpack[ScheduleOptions],
    ) -> None:
        super().__init__(policy, interval, **options)
        self.module = module
        self._saved: dict[str, Any] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
            raise ValueError(
                f"{type(trainer.strategy).__name__} flattens or splits parameters, so that layers cannot be frozen: use "
                'strategy="ddp_find_unused_parameters_true"'
            )
        if len(trainer.optimizers) != 1:
            raise ValueError(f"expected one optimizer, got {len(trainer.optimizers)}: a step is then not an update")
        unfreezing = self.begin(
            pl_module.get_submodule(self.module),
            trainer.optimizers[0],
            trainer.train_dataloader,
            None,
            together=trainer.world_size > 1,
        )
        if isinstance(trainer.model, DistributedDataParallel):
            unfreezing.check_reducer(trainer.model)
        if self._saved is not None:
            unfreezing.load_state_dict(self._saved)
        elif trainer.global_step:
            raise ValueError(
                f"training goes on at step {trainer.global_step} of a checkpoint that was not written with this callback: "
                "which layers are open cannot be known; start again, or from another checkpoint"
            )
        self.unfreezing = unfreezing

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        assert self.unfreezing is not None
        self.unfreezing.step(trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        return {} if self.unfreezing is None else self.unfreezing.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._saved = state_dict or None
