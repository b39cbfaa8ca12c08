"""p(y|f): what a model's output says about labels, and the factors of its Fisher information in f.

A likelihood reads the tensor f from a model's output and gives the pieces that label modes (`labels`) are made of: the
columns of a factor of S = Cov[grad_f log p(y|f)], a sample, the mode, and the score grad_f log p(y|f). Which likelihood a
model's output has is found in `outputs`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid, one_hot

from .labels import widen

IGNORED = -100
"""Label of a position that does not count, as torch's cross_entropy has it."""


class Likelihood:
    """One way of reading outputs as a distribution over labels.

    A subclass says how f is found in a model's output, what shape it must have, and how a cotangent is drawn.
    """

    name: str
    shape: str

    def outputs(self, output: Any) -> Tensor:
        """f: the tensor that the likelihood reads, batch dimension first."""
        return logits_of(output)

    def check(self, f: Tensor, examples: int) -> None:
        """Raises ValueError unless f is real and finite, and has the likelihood's shape."""
        if f.is_complex():
            raise ValueError("complex logits have no likelihood here: have the model return real ones")
        if len(f) != examples or not self.fits(f):
            raise ValueError(
                f"expected logits of shape {self.shape} for likelihood={self.name!r} and a batch of {examples}, got "
                f"{tuple(f.shape)}; pass likelihood= one of {', '.join(LIKELIHOODS)}"
            )
        if not torch.isfinite(f).all():
            bad = (~torch.isfinite(f)).flatten(1).any(dim=1).nonzero()[:, 0].tolist()
            raise ValueError(f"logits of example(s) {bad[:8]} of the batch are not finite: tr(F) is undefined there")

    def fits(self, f: Tensor) -> bool:
        raise NotImplementedError

    def columns(self, f: Tensor, batch: Any) -> Iterator[Tensor]:
        raise NotImplementedError

    def mixed(self, f: Tensor, signs: Tensor, batch: Any) -> Tensor:
        raise NotImplementedError

    def sample(self, f: Tensor, generator: torch.Generator) -> Tensor:
        raise NotImplementedError

    def mode(self, f: Tensor) -> Tensor:
        raise NotImplementedError

    def score(self, f: Tensor, y: Tensor, batch: Any) -> Tensor:
        """grad_f log p(y|f)."""
        raise NotImplementedError

    def sampled_score(self, f: Tensor, generator: torch.Generator, batch: Any) -> Tensor:
        """grad_f log p(y|f) of a label y drawn from p(y|f)."""
        return self.score(f, self.sample(f, generator), batch)

    def targets(self, f: Tensor, batch: Any) -> Tensor:
        """The batch's own labels, checked."""
        y = labels_in(batch)
        if y is None:
            raise ValueError(
                'labels="empirical" needs the data\'s labels: expected batch["labels"] or (inputs, labels)'
            )
        return y.to(f.device)


class Categorical(Likelihood):
    """One softmax over C classes: p = softmax(f), S = diag(p) - p p^T.

    S = L L^T with C-1 columns. With s = sqrt(p) and k the likeliest class, the Householder reflection
    H = I - u u^T / (1 + s_k), u = s + e_k, sends s to -e_k, so I - s s^T = H (I - e_k e_k^T) H and L is diag(s) H without
    its column k. The plus sign avoids the cancellation that s - e_k suffers when the model is confident. Factors of S:
    Tanabe & Sagae 1992; random signs over them: Sun 2025 (arXiv 2505.13614). For two classes "rademacher" is exact.
    """

    name = "categorical"
    shape = "(batch, classes of at least 2)"

    def check(self, f: Tensor, examples: int) -> None:
        super().check(f, examples)
        if _are_probabilities(f.detach()):
            raise ValueError(
                "expected logits, got probabilities (all at least 0, each row sums to 1): leave out the softmax at the "
                "model's end, or return log_softmax; if logits they are, add 1 to them, which changes nothing"
            )

    def fits(self, f: Tensor) -> bool:
        return f.ndim == 2 and f.shape[1] >= 2

    def counts(self, f: Tensor, batch: Any) -> Tensor | None:
        """Which softmaxes count, bool, f's shape without classes; None: all."""
        return None

    def columns(self, f: Tensor, batch: Any) -> Iterator[Tensor]:
        """C-1 columns for each softmax of an example, one softmax after the other."""
        classes = f.shape[-1]
        rows = f.reshape(len(f), -1, classes)
        for i in range(rows.shape[1]):
            for shift in range(1, classes):
                other = (rows[:, i].argmax(dim=1) + shift) % classes
                column = torch.zeros_like(rows)
                column[:, i] = apply_factor(rows[:, i], one_hot(other, classes).to(f.dtype))
                yield self._masked(column.reshape(f.shape), f, batch)

    def mixed(self, f: Tensor, signs: Tensor, batch: Any) -> Tensor:
        classes = f.shape[-1]
        c = apply_factor(f.reshape(-1, classes), signs.reshape(-1, classes)).reshape(f.shape)
        return self._masked(c, f, batch)

    def sample(self, f: Tensor, generator: torch.Generator) -> Tensor:
        p = f.softmax(dim=-1).reshape(-1, f.shape[-1])
        y = torch.multinomial(p.to(generator.device), 1, generator=generator)
        return y.reshape(f.shape[:-1]).to(f.device)

    def mode(self, f: Tensor) -> Tensor:
        return f.argmax(dim=-1)

    def score(self, f: Tensor, y: Tensor, batch: Any) -> Tensor:
        own = one_hot(y.clamp(min=0), f.shape[-1]).bool()
        others = torch.where(own, 0.0, f.softmax(dim=-1))
        # 1 - p of the own label as a sum: a confident model's would be lost in the rounding of p.
        return self._masked(torch.where(own, others.sum(dim=-1, keepdim=True), -others), f, batch)

    def targets(self, f: Tensor, batch: Any) -> Tensor:
        y = super().targets(f, batch)
        if y.shape != f.shape[:-1]:
            raise ValueError(f"expected labels of shape {tuple(f.shape[:-1])}, got {tuple(y.shape)}")
        if y.is_floating_point():
            raise ValueError(f"expected labels that are class numbers, got {y.dtype}: pass them as integers")
        wrong = (y >= f.shape[-1]) | ((y < 0) & (y != IGNORED))
        if wrong.any():
            raise ValueError(f"label {int(y[wrong][0])} is out of range: the model has {f.shape[-1]} classes")
        if self.counts(f, batch) is None and (y == IGNORED).any():
            raise ValueError(f"some examples have label {IGNORED}, that is none: leave them out of the loader")
        return y

    def _masked(self, c: Tensor, f: Tensor, batch: Any) -> Tensor:
        counts = self.counts(f, batch)
        return c if counts is None else torch.where(counts.to(c.device)[..., None], c, 0.0)


class Choice(Categorical):
    """Multiple choice: one softmax over the choices, whose logits are (batch, choices)."""

    name = "choice"
    shape = "(batch, choices of at least 2)"


class Token(Categorical):
    """One softmax a position; tr(F) is that of the whole sequence: the positions are summed, padding is left out.

    Positions count whose label is not -100, where the batch has a label for each. Without labels, those count that
    attention_mask has; in a decoder beside an encoder (a batch with decoder_input_ids), those of decoder_attention_mask.
    Without either, all count.

    Args:
        virtual_tokens: positions of the logits before those of the batch, as prompt tuning puts them there: they have no
            label and never count. peft's are found.

    Raises:
        ValueError: labels or a mask for other positions than those of the logits.
    """

    name = "token"
    shape = "(batch, positions, classes of at least 2)"

    def __init__(self, virtual_tokens: int = 0) -> None:
        self.virtual_tokens = virtual_tokens

    def fits(self, f: Tensor) -> bool:
        return f.ndim == 3 and f.shape[2] >= 2

    def counts(self, f: Tensor, batch: Any) -> Tensor | None:
        labels = self._labels(f, batch)
        if labels is not None:
            return labels != IGNORED
        mask = _mask_in(batch)
        if mask is None and not self.virtual_tokens:
            return None
        if mask is None:
            mask = f.new_ones(len(f), f.shape[1] - self.virtual_tokens)
        return self._at_logits(mask.bool(), f, virtual=False)

    def targets(self, f: Tensor, batch: Any) -> Tensor:
        labels = self._labels(f, batch)
        return super().targets(f, batch if labels is None else {"labels": labels})

    def _labels(self, f: Tensor, batch: Any) -> Tensor | None:
        """The batch's label of each position; None where its labels are of something else, such as whole texts."""
        y = labels_in(batch)
        if y is None or y.ndim != 2 or y.is_floating_point():
            return None
        return self._at_logits(y, f, virtual=IGNORED)

    def _fit(self, x: Tensor, f: Tensor) -> bool:
        """Whether x has a value for each position, or for each but the virtual ones."""
        return x.ndim == 2 and len(x) == len(f) and f.shape[1] - x.shape[1] in (0, self.virtual_tokens)

    def _at_logits(self, x: Tensor, f: Tensor, virtual: int) -> Tensor:
        """x at the positions of the logits, with a value for virtual ones."""
        if not self._fit(x, f):
            positions = tuple(f.shape[:2])
            raise ValueError(
                f"the batch's {'mask' if x.dtype == torch.bool else 'labels'} of shape {tuple(x.shape)} do not say which of "
                f"the logits' {positions} positions count: give it labels of shape {positions}, with {IGNORED} where none "
                "is predicted"
            )
        return torch.nn.functional.pad(x, (f.shape[1] - x.shape[1], 0), value=virtual)


class CausalLM(Token):
    """A language model: position t says the token at t + 1. Left out: the last position, padding, and what says padding.

    The Fisher is that of the next-token distributions given the text that is there, summed over the text. The last virtual
    token says the first of the text, as in peft's loss.
    """

    name = "causal_lm"

    def counts(self, f: Tensor, batch: Any) -> Tensor | None:
        if _decodes(batch):
            raise ValueError(
                'in a decoder beside an encoder, position t says label t, not label t + 1: pass likelihood="token"'
            )
        found, mask = super().counts(f, batch), _mask_in(batch)
        counts = torch.ones(f.shape[:2], dtype=torch.bool, device=f.device) if found is None else found.to(f.device)
        if mask is None or not self._fit(mask, f):  # then there are labels that fit
            here = torch.ones_like(counts)
        else:  # with padding on the left, the last of it would say the first token from no text at all
            here = self._at_logits(mask.bool(), f, virtual=True).to(f.device)
        return torch.cat([counts[:, 1:] & here[:, :-1], torch.zeros_like(counts[:, :1])], dim=1)

    def targets(self, f: Tensor, batch: Any) -> Tensor:
        y = super().targets(f, batch)
        return torch.cat([y[:, 1:], torch.full_like(y[:, :1], IGNORED)], dim=1)


class Pixel(Categorical):
    """Segmentation: one softmax for each pixel of the logits; tr(F) is that of the whole image, the sum over its pixels.

    Where the labels have the logits' resolution, pixels whose label is -100, or 255 beyond the classes, do not count.
    """

    name = "pixel"
    shape = "(batch, height, width, classes of at least 2), in a model's output (batch, classes, height, width)"

    def outputs(self, output: Any) -> Tensor:
        f = logits_of(output)
        return f.movedim(1, -1) if f.ndim == 4 else f

    def fits(self, f: Tensor) -> bool:
        return f.ndim == 4 and f.shape[3] >= 2

    def counts(self, f: Tensor, batch: Any) -> Tensor | None:
        y = labels_in(batch)
        return None if y is None or y.shape != f.shape[:3] else _known(y, f.shape[3]) != IGNORED

    def targets(self, f: Tensor, batch: Any) -> Tensor:
        y = labels_in(batch)
        return super().targets(f, batch if y is None else {"labels": _known(y, f.shape[3])})


def _known(y: Tensor, classes: int) -> Tensor:
    """Labels of pixels, 255 taken for none as data sets of 8-bit labels have it."""
    return torch.where((y == 255) & (classes <= 255), IGNORED, y)


class Span(Categorical):
    """Extraction: log p = log p_start + log p_end, two softmaxes over the positions (HF's loss is half of the sum)."""

    name = "span"
    shape = "(batch, 2, positions): .start_logits and .end_logits"

    def outputs(self, output: Any) -> Tensor:
        if not hasattr(output, "start_logits"):
            raise ValueError('likelihood="span" expected an output with .start_logits and .end_logits')
        return torch.stack([output.start_logits, output.end_logits], dim=1)

    def fits(self, f: Tensor) -> bool:
        return f.ndim == 3 and f.shape[1] == 2 and f.shape[2] >= 2

    def targets(self, f: Tensor, batch: Any) -> Tensor:
        ends = (
            [batch.get(key) for key in ("start_positions", "end_positions")] if isinstance(batch, Mapping) else [None]
        )
        if any(end is None for end in ends):
            raise ValueError('labels="empirical" of spans needs batch["start_positions"] and batch["end_positions"]')
        return super().targets(f, {"labels": torch.stack(ends, dim=1)})  # type: ignore[arg-type]


class Gaussian(Likelihood):
    """Regression: y ~ N(f, sigma^2 I), S = I / sigma^2. "rademacher" has random signs, "mc" normal ones."""

    name = "gaussian"
    shape = "(batch, ...)"

    def __init__(self, sigma: float = 1.0) -> None:
        if not sigma > 0:
            raise ValueError(f"expected sigma above 0, got {sigma}")
        self.sigma = sigma

    def outputs(self, output: Any) -> Tensor:
        return _as_rows(logits_of(output))

    def fits(self, f: Tensor) -> bool:
        return f.ndim >= 1

    def columns(self, f: Tensor, batch: Any) -> Iterator[Tensor]:
        yield from _unit_columns(f, torch.full_like(f, 1 / self.sigma))

    def mixed(self, f: Tensor, signs: Tensor, batch: Any) -> Tensor:
        return signs / self.sigma

    def sample(self, f: Tensor, generator: torch.Generator) -> Tensor:
        noise = torch.randn(f.shape, generator=generator, device=generator.device)
        return f + self.sigma * noise.to(f)

    def mode(self, f: Tensor) -> Tensor:
        raise ValueError(
            'labels="argmax" makes no sense for likelihood="gaussian": its mode is f itself, where the score is 0'
        )

    def score(self, f: Tensor, y: Tensor, batch: Any) -> Tensor:
        return (y - f) / self.sigma**2

    def sampled_score(self, f: Tensor, generator: torch.Generator, batch: Any) -> Tensor:
        """Of the noise itself: y - f would lose it to the rounding of a large f."""
        return torch.randn(f.shape, generator=generator, device=generator.device).to(f) / self.sigma

    def targets(self, f: Tensor, batch: Any) -> Tensor:
        return _as_shaped(super().targets(f, batch).to(f.dtype), f, "targets")


class Bernoulli(Likelihood):
    """Independent yes/no labels: p = sigmoid(f), S = diag(p (1 - p))."""

    name = "bernoulli"
    shape = "(batch, labels)"

    def outputs(self, output: Any) -> Tensor:
        return _as_rows(logits_of(output))

    def fits(self, f: Tensor) -> bool:
        return f.ndim == 2

    def columns(self, f: Tensor, batch: Any) -> Iterator[Tensor]:
        yield from _unit_columns(f, self._root(f))

    def mixed(self, f: Tensor, signs: Tensor, batch: Any) -> Tensor:
        return signs * self._root(f)

    def sample(self, f: Tensor, generator: torch.Generator) -> Tensor:
        return torch.bernoulli(f.sigmoid().to(generator.device), generator=generator).to(f)

    def mode(self, f: Tensor) -> Tensor:
        return (f > 0).to(f.dtype)

    def score(self, f: Tensor, y: Tensor, batch: Any) -> Tensor:
        return y * (-f).sigmoid() - (1 - y) * f.sigmoid()  # y - p, without the rounding of 1 - p

    def targets(self, f: Tensor, batch: Any) -> Tensor:
        y = _as_shaped(super().targets(f, batch).to(f.dtype), f, "labels of 0 and 1")
        if (other := y[(y != 0) & (y != 1)]).numel():
            raise ValueError(f"expected labels of 0 and 1, got {float(other[0]):g}")
        return y

    def _root(self, f: Tensor) -> Tensor:
        """sqrt(p (1 - p)), from logarithms: confident labels keep their relative precision."""
        return (0.5 * (logsigmoid(f) + logsigmoid(-f))).exp()


LIKELIHOODS: dict[str, type[Likelihood]] = {
    kind.name: kind for kind in (Categorical, Choice, Token, CausalLM, Pixel, Span, Gaussian, Bernoulli)
}


def logits_of(output: Any) -> Tensor:
    """The logits in a model's output: a tensor, a HF ModelOutput, or a tuple whose first entry they are."""
    found = getattr(output, "logits", None)
    if found is None and isinstance(output, tuple | list) and output:
        found = output[0]
    found = output if found is None else found
    if not isinstance(found, Tensor):
        raise TypeError(
            f"expected a model that returns logits (a tensor, or an output with .logits), got {type(output)}"
        )
    return found


def labels_in(batch: Any) -> Tensor | None:
    """The data's labels in a batch that is a dict or (inputs, labels), where there are any."""
    if isinstance(batch, Mapping):
        return batch.get("labels", batch.get("label"))
    return batch[1] if isinstance(batch, tuple | list) and len(batch) > 1 and isinstance(batch[1], Tensor) else None


def _decodes(batch: Any) -> bool:
    """Whether the positions are those of a decoder beside an encoder."""
    return isinstance(batch, Mapping) and "decoder_input_ids" in batch


def _mask_in(batch: Any) -> Tensor | None:
    """The batch's mask of the positions that its logits are for, where it has one."""
    name = "decoder_attention_mask" if _decodes(batch) else "attention_mask"
    return batch.get(name) if isinstance(batch, Mapping) else None


def _as_rows(f: Tensor) -> Tensor:
    """One number an example as a row of one."""
    return f[:, None] if f.ndim == 1 else f


def _as_shaped(y: Tensor, f: Tensor, what: str) -> Tensor:
    """Targets in the shape of the outputs; only a last dimension of 1 may be missing."""
    if y.shape not in (f.shape, f.shape[:-1] if f.shape[-1] == 1 else f.shape):
        raise ValueError(f"expected {what} in shape {tuple(f.shape)}, got shape {tuple(y.shape)}")
    return y.reshape(f.shape)


def to_unit_size(cotangent: Tensor) -> tuple[Tensor, Tensor]:
    """Each example's cotangent divided by a power of two that brings its largest entry to 0.5 to 1, and that power.

    Nothing is rounded by it, and where a model is confident the squares of its small gradients do not vanish.
    """
    exponent = torch.frexp(cotangent.flatten(1).abs().amax(dim=1)).exponent
    shape = (-1,) + (1,) * (cotangent.ndim - 1)
    unit = torch.ldexp(cotangent, -exponent.reshape(shape))
    return unit, torch.ldexp(torch.ones_like(exponent, dtype=torch.float64), exponent)


def _are_probabilities(f: Tensor) -> bool:
    """Whether f is what a softmax returns: two rows of logits or more do not all sum to 1 by chance.

    Rows of zeros and ones alone may be logits: a softmax hardly returns these and nothing else.
    """
    # Logits nearly always end here, for the price of two examples.
    if f.shape[:-1].numel() < 2 or (f[:2] < 0).any() or (f < 0).any() or not ((f > 0) & (f < 1)).any():
        return False
    # A row's error is at most that of rounding each of its entries; 1e-4 is for what long float32 sums lose.
    tolerance = 1e-4 + torch.finfo(f.dtype).eps / 2
    return bool(((widen(f).sum(dim=-1) - 1).abs() <= tolerance).all())


def _unit_columns(f: Tensor, scale: Tensor) -> Iterator[Tensor]:
    """diag(scale), a column at a time, over the outputs of an example."""
    flat = scale.reshape(len(f), -1)
    for i in range(flat.shape[1]):
        column = torch.zeros_like(flat)
        column[:, i] = flat[:, i]
        yield column.reshape(f.shape)


def apply_factor(logits: Float[Tensor, "b c"], v: Float[Tensor, "b c"]) -> Float[Tensor, "b c"]:
    """L v for each example in O(C); the entry of v at the likeliest class, whose column L lacks, is ignored.

    Computed from log p, so that classes of probability 1e-30 keep their relative precision.
    """
    top = logits.argmax(dim=1, keepdim=True)
    s = (0.5 * logits.log_softmax(dim=1)).exp()
    v = v.scatter(1, top, 0.0)
    u = s.scatter_add(1, top, torch.ones_like(s[:, :1]))
    return s * (v - u * (u * v).sum(dim=1, keepdim=True) / u.gather(1, top))
