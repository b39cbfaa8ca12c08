"""For transformers' Trainer and adapters' AdapterTrainer: tr(F) recorded while they train, and schedules that unfreeze."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState
from transformers.training_args import ParallelMode

from ..recording.recorder import Recorder
from .common import Recording, Scheduled


class FisherCallback(Recording, TrainerCallback):
    """`Recorder` in a Trainer: `Trainer(..., callbacks=[callback])`, and after train(), `callback.dataset`.

    The training loss is that which the model itself returns for its batches. Training that goes on from a checkpoint
    goes on at its step: give `resume=` the file of the run that was cut short.

    Args:
        loader: what tr(F) is measured on.
        **options: those of `Recorder`.

    Raises:
        ValueError: as `Recorder`, when training begins.
    """

    _listener: RemovableHandle | None = None

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
                self.keep_loss(loss.mean() * parts)

        self._listener = recorder.model.register_forward_hook(listen, with_kwargs=True)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.log_losses()

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._listener is not None:
            self._listener.remove()
        if self.recorder is not None:
            self.recorder.close()


class UnfreezingCallback(Scheduled, TrainerCallback, ExportableState):
    """Algorithm 1 under a Trainer: `Trainer(..., callbacks=[UnfreezingCallback(policies.fun(), interval=50)])`.

    Give the Trainer a model in which every layer still trains: its optimizer is made from what has requires_grad, and the
    callback freezes afterwards. The decisions are saved in each checkpoint's trainer_state.json and taken up by
    `train(resume_from_checkpoint=...)`.

    Args:
        policy, interval, seed: see `Unfreezing`.
        layers: see `resolve_layers`.
        loader: what FUN is measured on; None: the training set, in an order of its own.
        labels, likelihood: see `fisher_trace`.

    Attributes:
        unfreezing: the schedule, with its decisions and selections, once training has begun.

    Raises:
        ValueError: when training begins: an optimizer that lacks layers; a checkpoint without this schedule or with another;
            several processes that do not look for unused parameters; FSDP or DeepSpeed, which flatten parameters.
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        _refuse(args)
        unfreezing = self.begin(
            kwargs["model"],
            kwargs["optimizer"],
            kwargs["train_dataloader"],
            args.per_device_train_batch_size,
            together=args.parallel_mode == ParallelMode.DISTRIBUTED,
        )
        if state.global_step:
            saved = state.stateful_callbacks.get(type(self).__name__, {})
            if "attributes" not in saved or not saved["attributes"]:
                raise ValueError(
                    f"training goes on at step {state.global_step} of a checkpoint that was not written with this "
                    "callback (or with two of it): which layers are open cannot be known; start again, or from "
                    "another checkpoint"
                )
            unfreezing.load_state_dict(saved["attributes"]["schedule"])
        self.unfreezing = unfreezing

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        assert self.unfreezing is not None
        self.unfreezing.step(state.global_step)

    def state(self) -> dict[str, Any]:
        """What transformers writes to trainer_state.json."""
        saved = {} if self.unfreezing is None else {"schedule": self.unfreezing.state_dict()}
        return {"args": {}, "attributes": saved}


def _refuse(args: Any) -> None:
    if args.restore_callback_states_from_checkpoint:
        raise ValueError(
            "restore_callback_states_from_checkpoint makes callbacks anew without their policy: leave it off, this "
            "callback takes up its state by itself"
        )
    if args.fsdp or args.deepspeed:
        raise ValueError("FSDP and DeepSpeed flatten or split parameters, so that layers cannot be frozen: use DDP")
    finds = args.ddp_find_unused_parameters
    if args.parallel_mode == ParallelMode.DISTRIBUTED and (
        finds is False or (not finds and args.gradient_checkpointing)
    ):
        raise ValueError(
            "frozen layers have no gradient: set ddp_find_unused_parameters=True (and, with gradient checkpointing, "
            'gradient_checkpointing_kwargs={"use_reentrant": False})'
        )
