"""What a model returns: where its logits are, and which likelihood they have if none is given.

The likelihood is found from the model where it says it (its class, an adapters head, `config.problem_type`), from the type
of the labels where Hugging Face's own loss goes by it, and else from the shape of the logits. Each batch is asked, so that
no measurement goes from one likelihood to another unnoticed.
"""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn

from .likelihoods import (
    LIKELIHOODS,
    Bernoulli,
    Categorical,
    CausalLM,
    Choice,
    Gaussian,
    Likelihood,
    Pixel,
    Span,
    Token,
    labels_in,
    logits_of,
)

_BY_CLASS: dict[str, type[Likelihood]] = {
    "ForTokenClassification": Token,
    "ForMultipleChoice": Choice,
    "ForCausalLM": CausalLM,
    "LMHeadModel": CausalLM,
    "ForSemanticSegmentation": Pixel,
}
_BY_HEAD: dict[str, type[Likelihood]] = {
    "multilabel_classification": Bernoulli,
    "multiple_choice": Choice,
    "tagging": Token,
    "question_answering": Span,
    "causal_lm": CausalLM,
    "masked_lm": Token,
    "seq2seq_lm": Token,
}
"""By the type of an adapters head."""
_BY_PROBLEM: dict[str, type[Likelihood]] = {
    "regression": Gaussian,
    "single_label_classification": Categorical,
    "multi_label_classification": Bernoulli,
}


_OF_KEYS = ("PREFIX_TUNING", "CARTRIDGE")
"""peft's prompts that are keys and values of the attention, and so have no positions in the logits."""


class OutputReader:
    """A model's output -> the tensor f that its likelihood reads.

    Args:
        model: says what its logits mean, where no likelihood is given.
        likelihood: a name, a `Likelihood`, or None.

    Attributes:
        likelihood: None until it is known.

    Raises:
        ValueError: an unknown likelihood.
    """

    def __init__(self, model: nn.Module, likelihood: Any) -> None:
        if likelihood in list(LIKELIHOODS.values()):
            raise ValueError(f"expected a likelihood, got its class: pass likelihood={likelihood.__name__}()")
        if not (likelihood is None or isinstance(likelihood, Likelihood)):
            if not isinstance(likelihood, str) or likelihood not in LIKELIHOODS:
                raise ValueError(f"unknown likelihood={likelihood!r}: choose one of {', '.join(LIKELIHOODS)}")
            likelihood = make_likelihood(LIKELIHOODS[likelihood], model)
        self.model, self.given = model, likelihood is not None
        self.likelihood: Likelihood | None = likelihood
        self._sure_of_order = False

    def __call__(self, output: Any, batch: Any, examples: int) -> Tensor:
        """f, a row an example.

        Args:
            output: of the model.
            batch: that it was given; the type of its labels may say what the logits mean.
            examples: in the output.

        Raises:
            ValueError: the likelihood cannot be found, or is another one than in the batches before; f has not one row an
                example.
        """
        if not self.given:
            self._find(output, batch)
        assert self.likelihood is not None
        if not self._sure_of_order and type(self.likelihood) in LIKELIHOODS.values():
            self._sure_of_order = logits_come_first(output)
        f = self.likelihood.outputs(output)
        if f.ndim == 0 or len(f) != examples:
            raise ValueError(
                f"expected logits with one row for each of {examples} example(s), got shape {tuple(f.shape)}: have the "
                "model return its logits with the batch dimension first"
            )
        return f

    def _find(self, output: Any, batch: Any) -> None:
        found = find_likelihood(self.model, output, batch)
        if self.likelihood is not None and self.likelihood.name != found.name:
            raise different_likelihoods(self.likelihood.name, found.name)
        self.likelihood = found

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


def different_likelihoods(before: str, now: str) -> ValueError:
    """One record has one likelihood."""
    return ValueError(
        f"the logits were read as {before!r} before and as {now!r} now, by the labels' type or the model's config: say "
        f"which it is, likelihood={before!r} or likelihood={now!r}"
    )


def make_likelihood(kind: type[Likelihood], model: nn.Module) -> Likelihood:
    """A likelihood of one kind, with what the model says about the positions of its logits."""
    if not issubclass(kind, Token):
        return kind()
    prompt: Any = getattr(model, "active_peft_config", None)
    before_text = getattr(prompt, "is_prompt_learning", False) and not prompt.peft_type.endswith(_OF_KEYS)
    return kind(prompt.num_virtual_tokens if before_text else 0)


def find_likelihood(model: nn.Module, output: Any, batch: Any) -> Likelihood:
    """The likelihood of a model's output, where nobody has named it.

    Raises:
        ValueError: the output could be several; the message names them.
    """
    kind = _kind_by_head(model, output) or _kind_by_class(model, output)
    if kind is not None:
        return make_likelihood(kind, model)
    f = logits_of(output)
    if f.ndim <= 2 and (kind := _kind_by_problem(model, f, batch)) is not None:
        return kind()
    if hasattr(output, "start_logits"):
        return Span()
    if f.ndim == 2 and f.shape[1] >= 2:
        return Categorical()
    choices = {3: '"token", "causal_lm" or "gaussian"', 4: '"pixel" or "gaussian"'}
    raise ValueError(
        f"logits of shape {tuple(f.shape)} do not say what they mean: pass likelihood="
        f"{choices.get(f.ndim, _NUMBERS)} (expected (batch, classes) of at least 2 classes otherwise)"
    )


_NUMBERS = '"gaussian" or "bernoulli"'


def is_decoder_of_labels(model: nn.Module) -> bool:
    """Whether the logits are those of a decoder that reads the labels, shifted, beside an encoder."""
    head = _active_head(model)
    if head:
        return head["head_type"] == "seq2seq_lm"
    both = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    return bool(both) and _deciding_class(model).endswith(("ForConditionalGeneration", "EncoderDecoderModel"))


def _kind_by_head(model: nn.Module, output: Any) -> type[Likelihood] | None:
    head = _active_head(model)
    kind = str(head.get("head_type", ""))
    if kind.endswith("classification") and head.get("multilabel"):
        return Bernoulli
    if kind == "causal_lm" and not head.get("shift_labels", True):
        return Token
    if kind == "classification" and logits_of(output).shape[-1] == 1:
        return Gaussian
    return _BY_HEAD.get(kind)


def _active_head(model: nn.Module) -> dict[str, Any]:
    """Of a model of adapters with heads to choose from; {} for others."""
    heads, active = getattr(model, "heads", None), getattr(model, "active_head", None)
    if not isinstance(heads, nn.ModuleDict) or not isinstance(active, str):
        return {}
    return cast(dict[str, Any], heads[active].config)


def _kind_by_class(model: nn.Module, output: Any) -> type[Likelihood] | None:
    name = _deciding_class(model)
    if name.endswith("ForCTC"):
        raise ValueError(
            f"{name} sums over alignments (CTC), which no likelihood here does: measure the labels of its frames with "
            'likelihood="token", and labels in the batch that say which frames count'
        )
    if name.endswith("ForQuestionAnswering") and hasattr(output, "logits"):  # answers to choose from
        raise ValueError(
            f'{name} has logits over answers: pass likelihood="bernoulli" or "categorical", as its loss is'
        )
    if name.endswith("ForQuestionAnswering"):
        return Span
    if is_decoder_of_labels(model):
        return Token
    return next((kind for ending, kind in _BY_CLASS.items() if name.endswith(ending)), None)


def _deciding_class(model: nn.Module) -> str:
    """The class whose forward pass makes the output: not one inside, whose output may be used for anything.

    peft's wrapper passes on what the model inside returns. A subclass without a forward pass of its own is what its base is.
    """
    inside = getattr(model, "get_base_model", None)
    kinds = type(inside() if inside is not None else model).__mro__
    own = (
        kind for kind in kinds if "forward" in vars(kind) and not kind.__name__.endswith("Mixin")
    )  # as adapters.init's
    return next(own).__name__


def _kind_by_problem(model: nn.Module, f: Tensor, batch: Any) -> type[Likelihood] | None:
    """As Hugging Face's classifiers choose their loss: by the problem's name, else by the outputs and the labels' type."""
    config = getattr(model, "config", None)
    problem = getattr(config, "problem_type", None)
    if problem in _BY_PROBLEM:
        return _BY_PROBLEM[problem]
    y = labels_in(batch)
    if y is None or not hasattr(config, "problem_type") or not _deciding_class(model).endswith("Classification"):
        return None
    if f.ndim == 2 and f.shape[1] == 1:
        return Gaussian
    return Bernoulli if y.is_floating_point() else None


def logits_come_first(output: Any) -> bool:
    """Whether it is known that a tuple's first entry is not features; not without autograd's graph.

    Raises:
        ValueError: it is made into a later entry of another width.
    """
    if not isinstance(output, tuple | list) or not isinstance(output[0], Tensor):
        return True
    first = output[0]
    for i, later in enumerate(output[1:], start=1):
        alike = isinstance(later, Tensor) and later.ndim == first.ndim and later.shape[:1] == first.shape[:1]
        if alike and later.shape[-1] != first.shape[-1] and _is_made_from(later, first):
            raise ValueError(
                f"expected logits first in the model's output, got {tuple(first.shape)}, from which entry {i} of shape "
                f"{tuple(later.shape)} is made: have it return its logits first"
            )
    return first.grad_fn is not None


def _is_made_from(later: Tensor, first: Tensor) -> bool:
    """By autograd's graph."""
    wanted, waiting, seen = first.grad_fn, [later.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        if node is wanted:
            return True
        seen.add(node)
        waiting += [below for below, _ in node.next_functions]
    return False
