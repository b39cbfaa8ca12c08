"""p(y|f): what a model's output says about labels, and the factors of its Fisher information in f.

A likelihood reads the tensor f from a model's output and gives the pieces that label modes (`labels`) are made of: the
columns of a factor of S = Cov[grad_f log p(y|f)], a sample, the mode, and the score grad_f log p(y|f).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid, one_hot

from .labels import widen
from .model_index import ModelIndex

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

    def logit_fisher_trace(self, f: Tensor, batch: Any = None) -> Tensor:
        """tr(S) of each example, (batch,), in float64: how undecided the model is."""
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

    def logit_fisher_trace(self, f: Tensor, batch: Any = None) -> Tensor:
        log_p = f.double().log_softmax(dim=-1)
        # p (1 - p), from logarithms: a confident softmax keeps its relative precision.
        each = -(log_p.exp() * torch.expm1(log_p)).sum(dim=-1, keepdim=True)
        return self._masked(each, f, batch).reshape(len(f), -1).sum(dim=1)

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
        known = y.clamp(min=0)
        return self._masked(one_hot(known, f.shape[-1]).to(f.dtype) - f.softmax(dim=-1), f, batch)

    def targets(self, f: Tensor, batch: Any) -> Tensor:
        y = super().targets(f, batch)
        if y.shape != f.shape[:-1]:
            raise ValueError(f"expected labels of shape {tuple(f.shape[:-1])}, got {tuple(y.shape)}")
        if y.is_floating_point():
            raise ValueError(f"expected labels that are class numbers, got {y.dtype}: pass them as integers")
        wrong = (y >= f.shape[-1]) | ((y < 0) & (y != IGNORED))
        if wrong.any():
            raise ValueError(f"label {int(y[wrong][0])} is out of range: the model has {f.shape[-1]} classes")
        if not isinstance(self, Token) and (y == IGNORED).any():
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

    Left out are positions whose label is -100, where there are labels, else those that attention_mask leaves out.
    """

    name = "token"
    shape = "(batch, positions, classes of at least 2)"

    def fits(self, f: Tensor) -> bool:
        return f.ndim == 3 and f.shape[2] >= 2

    def counts(self, f: Tensor, batch: Any) -> Tensor | None:
        y = labels_in(batch)
        if y is not None and y.shape == f.shape[:2]:
            return y != IGNORED
        mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
        return None if mask is None or mask.shape != f.shape[:2] else mask.bool()


class CausalLM(Token):
    """A language model: position t says the token at t + 1. Left out: the last position, padding, and what says padding.

    The Fisher is that of the next-token distributions given the text that is there, summed over the text.
    """

    name = "causal_lm"

    def counts(self, f: Tensor, batch: Any) -> Tensor | None:
        found = super().counts(f, batch)
        counts = torch.ones(f.shape[:2], dtype=torch.bool, device=f.device) if found is None else found.to(f.device)
        mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
        # With padding on the left, the last of it would say the first token from no text at all.
        here = mask.bool().to(f.device) if mask is not None and mask.shape == f.shape[:2] else torch.ones_like(counts)
        return torch.cat([counts[:, 1:] & here[:, :-1], torch.zeros_like(counts[:, :1])], dim=1)

    def targets(self, f: Tensor, batch: Any) -> Tensor:
        y = super().targets(f, batch)
        return torch.cat([y[:, 1:], torch.full_like(y[:, :1], IGNORED)], dim=1)


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

    def fits(self, f: Tensor) -> bool:
        return f.ndim >= 1

    def logit_fisher_trace(self, f: Tensor, batch: Any = None) -> Tensor:
        return torch.full((len(f),), f[0].numel() / self.sigma**2, dtype=torch.float64, device=f.device)

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

    def targets(self, f: Tensor, batch: Any) -> Tensor:
        y = super().targets(f, batch).to(f.dtype)
        if y.numel() != f.numel() or len(y) != len(f):
            raise ValueError(f"expected targets of shape {tuple(f.shape)}, got {tuple(y.shape)}")
        return y.reshape(f.shape)


class Bernoulli(Likelihood):
    """Independent yes/no labels: p = sigmoid(f), S = diag(p (1 - p))."""

    name = "bernoulli"
    shape = "(batch, labels)"

    def fits(self, f: Tensor) -> bool:
        return f.ndim <= 2

    def logit_fisher_trace(self, f: Tensor, batch: Any = None) -> Tensor:
        return self._root(f.double()).square().reshape(len(f), -1).sum(dim=1)

    def columns(self, f: Tensor, batch: Any) -> Iterator[Tensor]:
        yield from _unit_columns(f, self._root(f))

    def mixed(self, f: Tensor, signs: Tensor, batch: Any) -> Tensor:
        return signs * self._root(f)

    def sample(self, f: Tensor, generator: torch.Generator) -> Tensor:
        return torch.bernoulli(f.sigmoid().to(generator.device), generator=generator).to(f)

    def mode(self, f: Tensor) -> Tensor:
        return (f > 0).to(f.dtype)

    def score(self, f: Tensor, y: Tensor, batch: Any) -> Tensor:
        return y - f.sigmoid()

    def targets(self, f: Tensor, batch: Any) -> Tensor:
        y = super().targets(f, batch).to(f.dtype)
        if y.numel() != f.numel() or ((y != 0) & (y != 1)).any():
            raise ValueError(f"expected labels of 0 and 1 in shape {tuple(f.shape)}, got shape {tuple(y.shape)}")
        return y.reshape(f.shape)

    def _root(self, f: Tensor) -> Tensor:
        """sqrt(p (1 - p)), from logarithms: confident labels keep their relative precision."""
        return (0.5 * (logsigmoid(f) + logsigmoid(-f))).exp()


LIKELIHOODS: dict[str, type[Likelihood]] = {
    kind.name: kind for kind in (Categorical, Choice, Token, CausalLM, Span, Gaussian, Bernoulli)
}
_BY_TASK = {
    "ForTokenClassification": Token,
    "ForQuestionAnswering": Span,
    "ForMultipleChoice": Choice,
    "ForCausalLM": CausalLM,
    "LMHeadModel": CausalLM,
}
_BY_PROBLEM = {
    "regression": Gaussian,
    "single_label_classification": Categorical,
    "multi_label_classification": Bernoulli,
}


def likelihood_of(model: ModelIndex) -> Likelihood | None:
    """The likelihood of a Hugging Face model by its config.problem_type or its class; None where these do not say."""
    config = getattr(model.model, "config", None)
    problem = getattr(config, "problem_type", None)
    if problem in _BY_PROBLEM:
        return _BY_PROBLEM[problem]()
    # A wrapper (peft's) keeps the model that it wraps among its modules.
    classes = {type(module).__name__ for module in model.modules}
    for ending, kind in _BY_TASK.items():
        if any(name.endswith(ending) for name in classes):
            return kind()
    several = getattr(config, "num_labels", 0) > 1
    return Categorical() if several and any(name.endswith("ForSequenceClassification") for name in classes) else None


def likelihood_of_output(output: Any) -> Likelihood:
    """A span or one softmax, where the output can be nothing else.

    Raises:
        ValueError: the output could be several; the message names them.
    """
    if hasattr(output, "start_logits"):
        return Span()
    f = logits_of(output)
    if f.ndim == 2 and f.shape[1] >= 2:
        return Categorical()
    choices = '"gaussian" or "bernoulli"' if f.ndim <= 2 else '"token", "causal_lm" or "gaussian"'
    raise ValueError(
        f"logits of shape {tuple(f.shape)} do not say what they mean: pass likelihood={choices} (expected (batch, classes) "
        "of at least 2 classes otherwise)"
    )


class OutputReader:
    """A model's output -> the tensor f that its likelihood reads.

    Args:
        model: says what its logits mean, where no likelihood is given and its class is known; else its first output does.
        likelihood: a name, a `Likelihood`, or None.

    Attributes:
        likelihood: None until it is known.

    Raises:
        ValueError: an unknown likelihood.
    """

    def __init__(self, model: ModelIndex, likelihood: Any) -> None:
        if likelihood in list(LIKELIHOODS.values()):
            raise ValueError(f"expected a likelihood, got its class: pass likelihood={likelihood.__name__}()")
        if isinstance(likelihood, str) and likelihood in LIKELIHOODS:
            likelihood = LIKELIHOODS[likelihood]()
        if not (likelihood is None or isinstance(likelihood, Likelihood)):
            raise ValueError(f"unknown likelihood={likelihood!r}: choose one of {', '.join(LIKELIHOODS)}")
        self.likelihood = likelihood_of(model) if likelihood is None else likelihood

    def __call__(self, output: Any) -> Tensor:
        if self.likelihood is None:
            self.likelihood = likelihood_of_output(output)
        return self.likelihood.outputs(output)

    def validated(self, f: Tensor, examples: int) -> Likelihood:
        """The likelihood of an output that was read.

        Raises:
            ValueError: f is not real, finite and of the likelihood's shape.
        """
        assert self.likelihood is not None
        self.likelihood.check(f, examples)
        return self.likelihood

    @property
    def name(self) -> str:
        """Of the likelihood; "" while it is not known."""
        return self.likelihood.name if self.likelihood is not None else ""


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
