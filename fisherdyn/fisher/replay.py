"""The rule for modules that have none: run the module again, one example at a time, and pull its gradient back.

Right for any module that keeps examples apart and has no randomness, at the price of a loop: for the odd module out, not
for a whole network. An example is taken out of the dimension that the module's kind has the batch in, else the first.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_flatten, tree_map

from ..model_index import ModelIndex
from .loop import same_up_to_rounding
from .methods import NotSeparableError
from .plain import call_with_weights

if TYPE_CHECKING:
    from .hooks import ModuleCall


def reading_module(modules: Mapping[str, nn.Module], name: str) -> tuple[str, str]:
    """The module whose call reads a parameter, and the parameter's name there.

    That is the parameter's owner, unless the owner only holds it: a container (ParameterList), a parametrization (weight
    norm), the output projection of nn.MultiheadAttention. Those are read by the module around them.

    Args:
        modules: all of the model's, by name.
        name: of the parameter.
    """
    owner = name.rpartition(".")[0]
    if ".parametrizations." in f".{owner}.":
        # Above a parametrization's list is the dict of them, and above that the module that has them.
        owner = f".{owner}".partition(".parametrizations.")[0].lstrip(".")
    while owner and _only_holds(modules[owner]):
        owner = owner.rpartition(".")[0]
    return owner, name.removeprefix(f"{owner}.") if owner else name


def _only_holds(module: nn.Module) -> bool:
    return type(module).forward is nn.Module.forward or isinstance(module, NonDynamicallyQuantizableLinear)


def replay(
    name: str,
    module: nn.Module,
    calls: Sequence[tuple[ModuleCall, Sequence[Tensor | None]]],
    parameters: Sequence[str],
    examples: int,
) -> dict[str, Tensor]:
    """Squared norms (examples,) of the named parameters; gradients of all calls add before squaring.

    Args:
        name, module: the module.
        calls: its calls, and the gradients that came to each one's outputs.
        parameters: names in the module.
        examples: of the batch.

    Raises:
        NotSeparableError: an example cannot be run alone, or does not give alone what it gave in the batch (examples are
            mixed, or are not where they are looked for).
    """
    alone = _ModuleAlone(name, ModelIndex(module), examples)
    weights = {short: module.get_parameter(short).detach().requires_grad_() for short in parameters}
    norms = {short: torch.zeros(examples, dtype=torch.float64, device=w.device) for short, w in weights.items()}
    for i in range(examples):
        sums = {short: w.new_zeros(w.shape, dtype=_double(w)) for short, w in weights.items()}
        for call, gradients in calls:
            for short, g in zip(weights, alone.pull_back(weights, call, gradients, i), strict=True):
                sums[short] += 0 if g is None else g
        for short, total in sums.items():
            norms[short][i] = total.abs().square().sum()
    return norms


def _double(w: Tensor) -> torch.dtype:
    return torch.complex128 if w.is_complex() else torch.float64


class _ModuleAlone:
    """A module that is run with one example of a batch at a time."""

    def __init__(self, name: str, module: ModelIndex, examples: int) -> None:
        self.module, self.examples = module, examples
        self.title = f"module {name!r} ({type(module.model).__name__}, which has no rule)"

    def pull_back(
        self, weights: dict[str, Tensor], call: ModuleCall, gradients: Sequence[Tensor | None], i: int
    ) -> Sequence[Tensor | None]:
        """Example i's gradient in each weight, None where it has none."""
        pairs = []
        for alone, together, d in zip(self._run(weights, call, i), call.outputs, gradients, strict=True):
            if d is None or together is None:
                continue
            part, d_part = (_example_part(x, alone, i, self.examples) for x in (together, d))
            if part is None or d_part is None or not same_up_to_rounding(part, alone):
                raise NotSeparableError(f"{self.title} gives another output for an example alone than in the batch")
            if alone.requires_grad:
                pairs.append((alone, d_part.to(alone.dtype)))
        if not pairs:
            return [None] * len(weights)
        outputs, d_parts = zip(*pairs, strict=True)
        return torch.autograd.grad(outputs, list(weights.values()), d_parts, allow_unused=True)

    def _run(self, weights: dict[str, Tensor], call: ModuleCall, i: int) -> list[Any]:
        """What the module gives for example i."""
        if any(isinstance(x, PackedSequence) for x in (*call.args, *call.kwargs.values())):
            raise NotSeparableError(f"{self.title} reads a PackedSequence, which has no batch dimension")
        args, kwargs = _example_arguments(self.module.model, call, i, self.examples)
        try:
            with torch.enable_grad():
                return tree_flatten(call_with_weights(self.module, weights, args, kwargs))[0]
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever the module's own code raises at inputs that it was not written for
            first_line = f"{error}".partition("\n")[0][:120]
            raise NotSeparableError(f"{self.title} cannot be run with one example alone ({first_line})") from error


def _example_arguments(
    module: nn.Module, call: ModuleCall, i: int, examples: int
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A call's arguments with example i alone."""
    places = _batch_places(module)
    names = list(inspect.signature(module.forward).parameters) if places else []

    def cut(name: str, x: Any) -> Any:
        dim, ndim = places.get(name, (0, None))
        return tree_map(lambda t: _cut(t, dim, ndim, i, examples), x)

    named = zip_longest(names[: len(call.args)], call.args, fillvalue="")
    return tuple(cut(name, x) for name, x in named), {name: cut(name, x) for name, x in call.kwargs.items()}


def _batch_places(module: nn.Module) -> dict[str, tuple[int, int]]:
    """Argument -> the dimension of its batch, and how many dimensions it has where it has one; others: the first, any."""
    if isinstance(module, nn.RNNBase):
        return {"input": (0 if module.batch_first else 1, 3), "hx": (1, 3)}
    if isinstance(module, nn.MultiheadAttention):
        sequence = (0 if module.batch_first else 1, 3)
        return {"query": sequence, "key": sequence, "value": sequence, "key_padding_mask": (0, 2), "attn_mask": (0, 3)}
    return {}


def _cut(x: Any, dim: int, ndim: int | None, i: int, examples: int) -> Any:
    """Example i of an argument, which may have several rows where its place is known; what all examples share, whole."""
    shared = not isinstance(x, Tensor) or isinstance(x, nn.Parameter) or x.ndim <= dim or ndim not in (None, x.ndim)
    if shared:
        return x
    rows = 1 if ndim is None else max(1, x.shape[dim] // examples)
    return x.narrow(dim, i * rows, rows) if x.shape[dim] == rows * examples else x


def _example_part(x: Tensor, alone: Tensor, i: int, examples: int) -> Tensor | None:
    """Example i of x, along the one dimension in which an example alone is shorter (an LSTM's state has it second).

    None where there is no such dimension: an output that is the same for the whole batch has its gradient summed over it.
    """
    if x.shape == alone.shape and examples == 1:
        return x
    differing = [dim for dim in range(x.ndim) if x.ndim == alone.ndim and x.shape[dim] != alone.shape[dim]]
    if len(differing) != 1:
        return None
    dim, rows = differing[0], alone.shape[differing[0]]
    return x.narrow(dim, i * rows, rows) if x.shape[dim] == rows * examples else None
