"""Executor: computes the forward and backward passes of an update, as `Execution` says."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..fisher.model_state import device_of
from ..settings import Execution


class Executor:
    """Forward and backward passes, and the average of gradients over processes.

    A model that several processes train is not wrapped in DistributedDataParallel, whose reducer would have to be told of
    every layer that opens. Instead the gradients that there are, as a rule those of adapters, are averaged in one message
    after the backward pass.

    Raises:
        ValueError: a model that cannot checkpoint its activations.
    """

    def __init__(self, model: nn.Module, settings: Execution) -> None:
        if settings.gradient_checkpointing and not hasattr(model, "gradient_checkpointing_enable"):
            raise ValueError(
                f"gradient_checkpointing needs a model with gradient_checkpointing_enable, as transformers' have; "
                f"{type(model).__name__} has none"
            )
        self.model, self.settings, self.accelerator = model, settings, settings.accelerator
        self.process, self.processes = 0, 1
        if self.accelerator is not None:
            self.process, self.processes = self.accelerator.process_index, self.accelerator.num_processes
            model.to(self.accelerator.device)
        self.device = device_of(model)
        self.forward: Callable[..., Any] = model
        if settings.compile:
            self.forward = torch.compile(model, backend="inductor" if settings.compile is True else settings.compile)

    @contextmanager
    def running(self, layers: int) -> Iterator[None]:
        """What holds during the run: checkpointing on, and as many compilations allowed as layers can open."""
        limit = {}
        if self.settings.compile:
            limit = {"recompile_limit": max(torch._dynamo.config.recompile_limit, 4 * (layers + 1))}
        if self.settings.gradient_checkpointing:
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})  # type: ignore[operator]
        try:
            with torch._dynamo.config.patch(limit):
                yield
        finally:
            if self.settings.gradient_checkpointing:
                self.model.gradient_checkpointing_disable()  # type: ignore[operator]

    def backward(self, batch: dict[str, Tensor], of: int) -> Tensor:
        """Adds one of `of` batches' share to the gradients, and returns its share of the loss."""
        device = next(iter(batch.values())).device.type
        with torch.autocast(device, torch.bfloat16, enabled=self.settings.precision == "bf16"):
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
        gathered: list[Any] = [None] * self.processes
        torch.distributed.all_gather_object(gathered, mine)
        return gathered

    def wait(self) -> None:
        """Until all processes are here."""
        if self.processes > 1:
            self.accelerator.wait_for_everyone()
