"""The truth, slowly: tr(F) by a loop over examples and classes, in float64, sharing no code with fisherdyn."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn


def cast(inputs: Mapping[str, Tensor] | Tensor, dtype: torch.dtype) -> dict[str, Tensor] | Tensor:
    """Floating-point inputs in another precision; tokens as they are."""
    if isinstance(inputs, Tensor):
        return inputs.to(dtype) if inputs.is_floating_point() else inputs
    return {k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items()}


def class_gradients(
    model: nn.Module, inputs: Mapping[str, Tensor] | Tensor, layers: Mapping[str, Sequence[str]]
) -> tuple[Tensor, Tensor]:
    """(examples, classes, layers) squared norms of grad log p(y|x), and p (examples, classes); by plain backward()."""
    model = copy.deepcopy(model).double().eval().requires_grad_(True)
    inputs = cast(inputs, torch.float64)
    n = len(inputs) if isinstance(inputs, Tensor) else len(next(iter(inputs.values())))

    def one(i: int) -> Tensor:
        alone = inputs[i : i + 1] if isinstance(inputs, Tensor) else {k: v[i : i + 1] for k, v in inputs.items()}
        out = model(alone) if isinstance(alone, Tensor) else model(**alone)
        return (out if isinstance(out, Tensor) else out.logits)[0].log_softmax(dim=0)

    norms, probabilities = [], []
    for i in range(n):
        classes = len(one(i))
        rows = []
        for y in range(classes):
            model.zero_grad(set_to_none=True)
            log_p = one(i)
            log_p[y].backward()
            rows.append(torch.stack([_square(model, names) for names in layers.values()]))
        norms.append(torch.stack(rows))
        probabilities.append(log_p.detach().exp())
    return torch.stack(norms), torch.stack(probabilities)


def _square(model: nn.Module, names: Sequence[str]) -> Tensor:
    gradients = [model.get_parameter(name).grad for name in names]
    return sum((g.square().sum() for g in gradients if g is not None), torch.zeros((), dtype=torch.float64))


def per_example_trace(
    model: nn.Module, inputs: Mapping[str, Tensor] | Tensor, layers: Mapping[str, Sequence[str]]
) -> Tensor:
    """(examples, layers): sum_y p(y|x) ||grad log p(y|x)||^2."""
    norms, p = class_gradients(model, inputs, layers)
    return (p[..., None] * norms).sum(dim=1)


def snapshot(model: nn.Module) -> Callable[[], None]:
    """Call now, and again later: the second call asserts that nothing of the model has changed."""
    state = {k: v.clone() for k, v in model.state_dict().items()}
    flags = {n: (p.requires_grad, None if p.grad is None else p.grad.clone()) for n, p in model.named_parameters()}
    modes = [m.training for m in model.modules()]
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules()]

    def check() -> None:
        assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
        for name, p in model.named_parameters():
            required, grad = flags[name]
            assert p.requires_grad == required, name
            assert (p.grad is None) == (grad is None), name
            assert grad is None or torch.equal(p.grad, grad), name
        assert [m.training for m in model.modules()] == modes
        assert [
            len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules()
        ] == hooks

    return check


def per_example_gradients(
    model: nn.Module, inputs: Mapping[str, Tensor] | Tensor, labels: Tensor, layers: Mapping[str, Sequence[str]]
) -> Tensor:
    """(examples, layers) squared norms of the gradient of each example's own cross-entropy; by plain backward()."""
    model = copy.deepcopy(model).double().requires_grad_(True)
    inputs = cast(inputs, torch.float64)
    rows = []
    for i, y in enumerate(labels):
        model.zero_grad(set_to_none=True)
        alone = inputs[i : i + 1] if isinstance(inputs, Tensor) else {k: v[i : i + 1] for k, v in inputs.items()}
        out = model(alone) if isinstance(alone, Tensor) else model(**alone)
        nn.functional.cross_entropy(out if isinstance(out, Tensor) else out.logits, y[None]).backward()
        rows.append(torch.stack([_square(model, names) for names in layers.values()]))
    return torch.stack(rows)
