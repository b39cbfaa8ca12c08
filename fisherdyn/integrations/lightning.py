"""A schedule for Lightning's Trainer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch.nn.parallel import DistributedDataParallel

from ..fisher.forward import Batch
from ..layers import LayerChoice, resolve_layers
from ..likelihoods import Likelihood
from ..policies import Policy
from ..schedule import Unfreezing
from ..selection import in_another_order


class UnfreezingCallback(Callback):
    """Algorithm 1 under Lightning: `Trainer(..., callbacks=[UnfreezingCallback(policies.fun(), interval=50)])`.

    `configure_optimizers` must hand over every layer's parameters; the callback freezes afterwards. With several devices,
    strategy="ddp_find_unused_parameters_true". The decisions are in Lightning's checkpoints and taken up from them.

    Args:
        policy, interval, timing, seed: see `Unfreezing`.
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
        layers: LayerChoice = None,
        loader: Iterable[Batch] | None = None,
        timing: str = "prose",
        labels: str = "class_mix",
        likelihood: Likelihood | str | None = None,
        seed: int = 0,
    ) -> None:
        self.policy, self.interval, self.timing, self.seed = policy, interval, timing, seed
        self.module, self.layers, self.loader = module, layers, loader
        self.labels, self.likelihood = labels, likelihood
        self.unfreezing: Unfreezing | None = None
        self._saved: dict[str, Any] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
            raise ValueError(
                f"{type(trainer.strategy).__name__} flattens or splits parameters, so that layers cannot be frozen: use "
                'strategy="ddp_find_unused_parameters_true"'
            )
        if len(trainer.optimizers) != 1:
            raise ValueError(f"expected one optimizer, got {len(trainer.optimizers)}: a step is then not an update")
        model = pl_module.get_submodule(self.module)
        layers = resolve_layers(model, self.layers)
        unfreezing = Unfreezing(self.policy, layers, self.interval, timing=self.timing, seed=self.seed)
        loader = self.loader
        if loader is None and self.policy.sampling is not None:
            loader = in_another_order(trainer.train_dataloader, None, self.seed)
        together = trainer.world_size > 1
        unfreezing.attach(
            model, trainer.optimizers[0], loader, labels=self.labels, likelihood=self.likelihood, together=together
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
