"""The settings of `fit`: one definition of each field's type, bounds and help, for Python, files and the command line.

Each is a frozen dataclass with keyword arguments, checked when it is made:

    fit(model, loader, policy=policies.fun(), interval=50,
        optimization=Optimization(steps=1000, lr=1e-3), measurement=Measurement(loader=probe_loader))
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SkipValidation
from torch import Tensor, nn

from .validation import Count, Expected, Positive, Rate, settings

__all__ = ["Checkpoints", "Evaluation", "Execution", "Measurement", "Metric", "Optimization"]

Metric = Callable[[nn.Module], float]
"""A model to a number, such as accuracy on one set; it leaves the model as it found it."""

Batches = Iterable[dict[str, Tensor]]
"""A loader of batches that are dicts by argument name. It can be read again and again."""

LearningRateSchedule = Literal["constant", "linear"]
Precision = Literal["float32", "bf16"]
TrueFisherLabels = Annotated[
    Literal["exact", "rademacher", "mc"], Expected("one of exact, rademacher, mc (the labels of the true Fisher)")
]


@settings
class Optimization:
    """How the weights are updated: AdamW, no warm-up, clipped gradients."""

    steps: Count
    """Optimizer updates."""
    lr: Rate
    """AdamW's learning rate."""
    lr_schedule: LearningRateSchedule = "constant"
    """Whether the learning rate stays, or falls linearly to 0."""
    weight_decay: Rate = 0.01
    """AdamW's weight decay."""
    max_grad_norm: Positive = 1.0
    """The norm at which gradients are clipped."""
    accumulate: Count = 1
    """Batches in an update, of equal weight."""


@settings
class Measurement:
    """What tr(F) is measured on, for the record and for FUN. The record has every layer, open or frozen."""

    loader: SkipValidation[Batches]
    """What tr(F) is measured on, the same at every record."""
    every: Count = 25
    """Steps between records; step 0 and the last step are always recorded."""
    labels: TrueFisherLabels = "rademacher"
    """Labels of tr(F)."""
    selection_loader: SkipValidation[Batches | None] = None
    """What FUN measures on; None is the training set, as in the paper."""


@settings
class Evaluation:
    """Metrics, and what the source's decides. No target ever decides anything."""

    source: Metric | None = None
    """The source's development metric, taken at every record."""
    targets: Mapping[str, Metric] = Field(default_factory=dict)
    """Metrics of the targets, by name."""
    every: Count | None = None
    """Steps between evaluations of the targets; None evaluates them at the end only."""
    patience: Count | None = None
    """Stop after so many records without a better source metric; None never stops early."""
    keep_best: bool = False
    """Whether to end with the weights of the record with the best source metric."""

    def __post_init__(self) -> None:
        if self.source is None and (self.patience is not None or self.keep_best):
            raise ValueError("patience and keep_best go by the source's metric: pass Evaluation(source=...)")


@settings
class Execution:
    """On what, and in which precision, a step is computed. tr(F) is measured in the weights' own precision."""

    precision: Precision = "float32"
    """Precision of the forward pass: "bf16" runs it under autocast."""
    gradient_checkpointing: bool = False
    """Whether to recompute activations in the backward pass, to save memory (Hugging Face models)."""
    compile: bool | str | Callable[..., Any] = False
    """Whether to compile the training pass with torch.compile, or the name of the backend."""
    accelerator: Any = None
    """accelerate's Accelerator, for several processes; each reads its share of the batches."""

    def __post_init__(self) -> None:
        if self.accelerator is not None and self.accelerator.mixed_precision != "no":
            raise ValueError(
                f'expected an Accelerator with mixed_precision="no", got {self.accelerator.mixed_precision!r}: '
                'ask for Execution(precision="bf16") instead'
            )


@settings
class Checkpoints:
    """Where a run is saved. A run that was cut off goes on from its newest checkpoint, to the bit."""

    folder: Path
    """The folder of the checkpoints."""
    every: Count = 100
    """Steps between checkpoints."""
