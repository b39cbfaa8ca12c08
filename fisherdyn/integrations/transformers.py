"""For transformers.Trainer: what is measured while it trains."""

from __future__ import annotations

from typing import Any

import xarray as xr
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..probing import Loaders
from ..recorder import Recorder


class FisherCallback(TrainerCallback):
    """`Recorder` in a Trainer: `Trainer(..., callbacks=[callback])`, and after train(), `callback.dataset`.

    The training loss is that which the model itself returns for its batches. Training that goes on from a checkpoint
    goes on at its step: give `resume=` the store of the run that was cut short.

    Args:
        loader: what tr(F) is measured on.
        **options: those of `Recorder`.

    Raises:
        ValueError: as `Recorder`, when training begins.
    """

    def __init__(self, loader: Loaders, **options: Any) -> None:
        self.loader, self.options = loader, options
        self.recorder: Recorder | None = None
        self._listener: RemovableHandle | None = None

    @property
    def dataset(self) -> xr.Dataset:
        """What was recorded so far; see `Recorder.dataset`."""
        if self.recorder is None:
            raise ValueError("nothing is recorded yet: training has not begun")
        return self.recorder.dataset

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        model: nn.Module,
        optimizer: Optimizer,
        **_: Any,
    ) -> None:
        recorder = Recorder(model, self.loader, **self.options).attach(optimizer, step=state.global_step)
        self.recorder = recorder

        def listen(module: nn.Module, inputs: Any, kwargs: dict[str, Any], output: Any) -> None:
            loss = output.get("loss") if isinstance(output, dict) else None
            if module.training and isinstance(loss, Tensor):
                # A loss that was divided by the number of items of the whole update is a part of it, not a mean.
                parts = args.gradient_accumulation_steps if kwargs.get("num_items_in_batch") is not None else 1
                recorder.log(train_loss=loss.mean() * parts)

        self._listener = recorder.model.register_forward_hook(listen, with_kwargs=True)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._listener is not None:
            self._listener.remove()
        if self.recorder is not None:
            self.recorder.close()
