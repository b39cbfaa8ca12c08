"""p(y|f): what a model's output says about labels, and the cotangents through which its Fisher is measured.

For a cotangent c at the output f, one backward pass gives g = J^T c. With S the covariance of grad_f log p(y|f),

    tr(F) = E_x tr(J^T S J) = E_x E_c ||J^T c||^2    whenever    E[c c^T] = S.

Every choice of `labels` is a way of drawing such c.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

LABELS = ("exact", "class_mix", "sampled")


class Categorical:
    """One softmax over C classes: p = softmax(f), S = diag(p) - p p^T.

    S = L L^T with C-1 columns. With s = sqrt(p) and k the likeliest class, the Householder reflection
    H = I - u u^T / (1 + s_k), u = s + e_k, sends s to -e_k, so I - s s^T = H (I - e_k e_k^T) H and L is diag(s) H without
    its column k. The plus sign avoids the cancellation that s - e_k suffers when the model is confident. Factors of S:
    Tanabe & Sagae 1992; random signs over them: Sun 2025 (arXiv 2505.13614).
    """

    name = "categorical"

    def check(self, logits: Tensor, examples: int) -> None:
        """Raises ValueError unless the output is (examples, classes) and finite."""
        if logits.ndim != 2 or len(logits) != examples:
            raise ValueError(
                f"expected logits of shape (batch, classes) for a batch of {examples}, got {tuple(logits.shape)}: "
                "only one softmax per example is supported so far"
            )
        if logits.shape[1] < 2:
            raise ValueError(f"expected logits of at least 2 classes, got {tuple(logits.shape)}")
        if not torch.isfinite(logits).all():
            bad = (~torch.isfinite(logits)).any(dim=1).nonzero()[:, 0].tolist()
            raise ValueError(f"logits of example(s) {bad[:8]} of the batch are not finite: tr(F) is undefined there")

    def cotangents(
        self, logits: Float[Tensor, "b c"], labels: str, generator: torch.Generator
    ) -> Iterator[Float[Tensor, "b c"]]:
        """The cotangents c whose ||J^T c||^2 add up to the estimate of one batch.

        Args:
            logits: (batch, classes); not differentiated through.
            labels: "exact": the C-1 columns of L, no variance, C-1 backward passes. "class_mix": L v with random signs
                v, one pass, unbiased, relative variance at most 2 (0 for two classes). "sampled": e_y - p with
                y ~ p (Eqn. 1 of the paper), one pass, unbiased, variance unbounded as p becomes one-hot.
            generator: of the random numbers; "exact" draws none.
        """
        logits = logits.detach()
        if labels == "exact":
            yield from self._columns(logits)
        elif labels == "class_mix":
            yield self._class_mix(logits, generator)
        elif labels == "sampled":
            yield self._sampled(logits, generator)
        else:
            raise ValueError(f"unknown labels={labels!r}: choose one of {', '.join(LABELS)}")

    def _columns(self, logits: Tensor) -> Iterator[Tensor]:
        classes = logits.shape[1]
        for shift in range(1, classes):
            other = (logits.argmax(dim=1) + shift) % classes
            yield apply_factor(logits, torch.nn.functional.one_hot(other, classes).to(logits.dtype))

    def _class_mix(self, logits: Tensor, generator: torch.Generator) -> Tensor:
        bits = torch.randint(2, logits.shape, generator=generator, device=generator.device)
        return apply_factor(logits, (2 * bits - 1).to(logits))

    def _sampled(self, logits: Tensor, generator: torch.Generator) -> Tensor:
        p = logits.softmax(dim=1)
        y = torch.multinomial(p.to(generator.device), 1, generator=generator)[:, 0].to(logits.device)
        return torch.nn.functional.one_hot(y, logits.shape[1]).to(p.dtype) - p


def apply_factor(logits: Float[Tensor, "b c"], v: Float[Tensor, "b c"]) -> Float[Tensor, "b c"]:
    """L v for each example in O(C); the entry of v at the likeliest class, whose column L lacks, is ignored.

    Computed from log p, so that classes of probability 1e-30 keep their relative precision.
    """
    top = logits.argmax(dim=1, keepdim=True)
    s = (0.5 * logits.log_softmax(dim=1)).exp()
    v = v.scatter(1, top, 0.0)
    u = s.scatter_add(1, top, torch.ones_like(s[:, :1]))
    return s * (v - u * (u * v).sum(dim=1, keepdim=True) / u.gather(1, top))
