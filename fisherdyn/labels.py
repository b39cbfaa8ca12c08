"""Label modes: over which labels y the squared gradients of log p(y|x) are averaged, as cotangents at the logits.

For a cotangent c at the logits f, one backward pass gives g = J^T c. With S the covariance of grad_f log p(y|f),

    tr(F) = E_x tr(J^T S J) = E_x E_c ||J^T c||^2    whenever    E[c c^T] = S.

An unbiased label mode draws such c. "empirical" and "argmax" do not: they are here to be compared with.

A label mode of your own is a subclass with a name and `draw`; pass an instance as `labels=`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .likelihoods import Likelihood


class LabelMode:
    """One way of choosing labels.

    Attributes:
        name: as in `labels="..."` and in a record's `estimator`.
        one_label: whether its cotangent is the score of one label an example, as a loss's gradient is.
    """

    name: str
    one_label: bool = False

    def cotangents(
        self, likelihood: Likelihood, logits: Tensor, generator: torch.Generator, batch: Any = None
    ) -> list[Tensor]:
        """The cotangents c, shaped as the logits, whose ||J^T c||^2 add up to the estimate of one batch.

        Args:
            likelihood: what the logits mean.
            logits: not differentiated through; half precision is widened to float32.
            generator: of the label noise.
            batch: as the loader gave it: its labels ("empirical"), and its labels or mask where some positions do not count.
        """
        return list(self.draw(likelihood, widen(logits.detach()), generator, batch))

    def draw(self, likelihood: Likelihood, f: Tensor, generator: torch.Generator, batch: Any) -> Iterator[Tensor]:
        raise NotImplementedError


class Exact(LabelMode):
    """All columns of a factor of S. No variance; a backward pass each."""

    name = "exact"

    def draw(self, likelihood: Likelihood, f: Tensor, generator: torch.Generator, batch: Any) -> Iterator[Tensor]:
        yield from likelihood.columns(f, batch)


class Rademacher(LabelMode):
    """The same columns, added up with random signs. One pass, unbiased, relative variance at most 2 (Sun 2025)."""

    name = "rademacher"

    def draw(self, likelihood: Likelihood, f: Tensor, generator: torch.Generator, batch: Any) -> Iterator[Tensor]:
        yield likelihood.mixed(f, random_signs(f, generator), batch)


class MonteCarlo(LabelMode):
    """The score of one label y ~ p(y|f): Eqn. 1 of the paper. Unbiased; relative variance unbounded as p becomes one-hot."""

    name = "mc"
    one_label = True

    def draw(self, likelihood: Likelihood, f: Tensor, generator: torch.Generator, batch: Any) -> Iterator[Tensor]:
        yield likelihood.sampled_score(f, generator, batch)


class Empirical(LabelMode):
    """The score of the data's own label: the empirical Fisher, which is not the Fisher (Kunstner et al. 2019)."""

    name = "empirical"
    one_label = True

    def draw(self, likelihood: Likelihood, f: Tensor, generator: torch.Generator, batch: Any) -> Iterator[Tensor]:
        yield likelihood.score(f, likelihood.targets(f, batch), batch)


class Argmax(LabelMode):
    """The score of the likeliest label, as the paper's code takes it. Biased."""

    name = "argmax"
    one_label = True

    def draw(self, likelihood: Likelihood, f: Tensor, generator: torch.Generator, batch: Any) -> Iterator[Tensor]:
        yield likelihood.score(f, likelihood.mode(f), batch)


LABELS: dict[str, LabelMode] = {
    mode.name: mode for mode in (Exact(), Rademacher(), MonteCarlo(), Empirical(), Argmax())
}


def find_labels(labels: str | LabelMode) -> LabelMode:
    """A label mode by its name; an instance as it is.

    Raises:
        ValueError: there is none of that name.
    """
    if isinstance(labels, LabelMode):
        return labels
    if not isinstance(labels, str) or labels not in LABELS:
        raise ValueError(f"unknown labels={labels!r}: choose one of {', '.join(LABELS)}, or pass a LabelMode")
    return LABELS[labels]


def random_signs(like: Tensor, generator: torch.Generator) -> Tensor:
    """+1 and -1, in the shape, dtype and device of a tensor."""
    bits = torch.randint(2, like.shape, generator=generator, device=generator.device)
    return (2 * bits - 1).to(like)


def widen(x: Tensor) -> Tensor:
    """Half precision as float32: what is squared, exponentiated or summed must not be done in it."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
