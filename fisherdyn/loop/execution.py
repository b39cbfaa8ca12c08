"""Execution: on what, in which precision, and with what recomputed or compiled a step is computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

PRECISIONS = ("float32", "bf16")


class Execution:
    """Forward and backward passes, and the average of gradients over processes.

    A model that several processes train is not wrapped in DistributedDataParallel, whose reducer would have to be told of
    every layer that opens: after the backward pass the gradients that there are, adapters' as a rule, are averaged in one
    message.

    Args:
        precision: "bf16" runs the forward pass under autocast; weights, gradients and tr(F) stay as they are.
        gradient_checkpointing: recompute activations (non-reentrant; a Hugging Face model).
        compile: torch.compile the training pass, once more each time a layer opens; True, or the name of a backend.
        accelerator: accelerate's, for several processes. Each reads its share of the batches.

    Raises:
        ValueError: an unknown precision; a model that cannot checkpoint; fp16.
    """

    def __init__(
        self,
        model: nn.Module,
        precision: str = "float32",
        gradient_checkpointing: bool = False,
        compile: bool | str = False,
        accelerator: Any = None,
    ) -> None:
        if precision not in PRECISIONS:
            raise ValueError(f"unknown precision={precision!r}: choose one of {', '.join(PRECISIONS)}")
        if gradient_checkpointing and not hasattr(model, "gradient_checkpointing_enable"):
            raise ValueError(
                f"gradient_checkpointing needs a model with gradient_checkpointing_enable, as transformers' have; "
                f"{type(model).__name__} has none"
            )
        if accelerator is not None and accelerator.mixed_precision != "no":
            raise ValueError(
                f'expected an Accelerator with mixed_precision="no", got {accelerator.mixed_precision!r}: '
                'ask fit for precision="bf16" instead'
            )
        self.model, self.accelerator = model, accelerator
        self.precision, self.checkpointing = precision, gradient_checkpointing
        self.process = accelerator.process_index if accelerator is not None else 0
        self.processes = accelerator.num_processes if accelerator is not None else 1
        if accelerator is not None:
            model.to(accelerator.device)
        self.forward: Callable[..., Any] = model
        if compile:
            self.forward = torch.compile(model, backend="inductor" if compile is True else compile)
        self.compiled = bool(compile)

    @contextmanager
    def set_up(self, layers: int) -> Iterator[None]:
        """What holds during the run: checkpointing on, and as many compilations allowed as layers can open."""
        limit = (
            {"recompile_limit": max(torch._dynamo.config.recompile_limit, 4 * (layers + 1))} if self.compiled else {}
        )
        if self.checkpointing:
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})  # type: ignore[operator]
        try:
            with torch._dynamo.config.patch(limit):
                yield
        finally:
            if self.checkpointing:
                self.model.gradient_checkpointing_disable()  # type: ignore[operator]

    def backward(self, batch: dict[str, Tensor], of: int) -> Tensor:
        """Adds one of `of` batches' share to the gradients, and returns its share of the loss."""
        device = next(iter(batch.values())).device.type
        with torch.autocast(device, torch.bfloat16, enabled=self.precision == "bf16"):
            loss = getattr(self.forward(**batch), "loss", None)
        if loss is None:
            raise ValueError(f"expected an output with .loss: the batch has {', '.join(batch)}; add labels to it")
        if not loss.requires_grad:
            raise ValueError(
                "nothing is open: no layer, and no trainable parameter outside of the layers (a classifier)"
            )
        loss = loss / of
        loss.backward()
        return loss.detach()

    def average(self, parameters: Sequence[nn.Parameter], loss: Tensor) -> Tensor:
        """The mean over processes, of gradients in place and of the loss."""
        if self.processes == 1:
            return loss
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = self.accelerator.reduce(
            torch.cat([g.flatten() for g in gradients] + [loss.reshape(1)]), reduction="mean"
        )
        for gradient, mean in zip(gradients, flat[:-1].split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))
        return flat[-1]

    def gather(self, mine: Any) -> list[Any]:
        """One object of each process."""
        if self.processes == 1:
            return [mine]
        found: list[Any] = [None] * self.processes
        torch.distributed.all_gather_object(found, mine)
        return found

    def wait(self) -> None:
        if self.processes > 1:
            self.accelerator.wait_for_everyone()
