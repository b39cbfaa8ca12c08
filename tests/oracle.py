"""The truth, slowly: gradients of log p(y|x), example by example and class by class, in float64; no code of fisherdyn's."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Inputs = Mapping[str, Tensor] | Tensor
Layers = Mapping[str, Sequence[str]]


def cast(inputs: Inputs, dtype: torch.dtype) -> dict[str, Tensor] | Tensor:
    """Floating-point inputs in another precision; tokens as they are."""
    if isinstance(inputs, Tensor):
        return inputs.to(dtype) if inputs.is_floating_point() else inputs
    return {k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items()}


def logits(model: nn.Module, inputs: Inputs) -> Tensor:
    """(examples, softmaxes, classes); a classifier has one softmax an example."""
    out = model(inputs) if isinstance(inputs, Tensor) else model(**inputs)
    f = out if isinstance(out, Tensor) else out.logits
    return f.reshape(len(f), -1, f.shape[-1])


@dataclass(frozen=True)
class Truth:
    """All that the Fisher information of some examples can be asked.

    Attributes:
        gram: (examples, layers, S C, S C): inner products of grad log p(y_s | x), over S softmaxes of C classes each.
        p: (examples, S, C).
        counts: (examples, S): 1 for softmaxes that count, 0 for padding.
    """

    gram: Tensor
    p: Tensor
    counts: Tensor

    @property
    def norms(self) -> Tensor:
        """(examples, S C, layers): ||grad log p(y_s | x)||^2."""
        return self.gram.diagonal(dim1=2, dim2=3).mT

    def exact(self) -> Tensor:
        """(examples, layers): sum over softmaxes and classes of p ||grad log p||^2."""
        return ((self.p * self.counts[..., None]).flatten(1)[..., None] * self.norms).sum(dim=1)

    def of(self, c: Tensor) -> Tensor:
        """(examples, layers): ||sum_y c_y grad log p(y)||^2. Where c sums to 0 in each softmax, that is ||J^T c||^2."""
        c = (c * self.counts[..., None]).flatten(1)
        return torch.einsum("ni,nlij,nj->nl", c, self.gram, c)

    def labelled(self, y: Tensor) -> Tensor:
        """(examples, layers) of the labels y (examples, S): ||grad of the sum over softmaxes of log p(y_s)||^2."""
        return self.of(torch.nn.functional.one_hot(y, self.p.shape[2]).to(self.p))

    def mixed(self, signs: Tensor) -> Tensor:
        """(examples, layers) of the cotangents L v, v = signs (examples, S, C), with L L^T = S written out as matrices."""
        return self.of(torch.stack([torch.stack(list(map(_mix, *pair))) for pair in zip(self.p, signs, strict=True)]))


def _mix(p: Tensor, signs: Tensor) -> Tensor:
    """diag(s) H v without the column of the likeliest class, H the reflection that sends s = sqrt(p) onto its axis."""
    s, k = p.sqrt(), int(p.argmax())
    axis = torch.eye(len(p), dtype=p.dtype)
    u = s + axis[k]
    factor = torch.diag(s) @ (axis - torch.outer(u, u) / (1 + s[k]))
    factor = torch.cat([factor[:, :k], factor[:, k + 1 :]], dim=1)
    torch.testing.assert_close(factor @ factor.T, torch.diag(p) - torch.outer(p, p), rtol=1e-9, atol=1e-12)
    return factor @ torch.cat([signs[:k], signs[k + 1 :]]).to(p)


def truth(model: nn.Module, inputs: Inputs, layers: Layers) -> Truth:
    """By one plain backward pass for each example, softmax and class."""
    model = copy.deepcopy(model).double().eval().requires_grad_(True)
    inputs = cast(inputs, torch.float64)
    n = len(inputs) if isinstance(inputs, Tensor) else len(next(iter(inputs.values())))
    grams, probabilities = [], []
    for i in range(n):
        alone = inputs[i : i + 1] if isinstance(inputs, Tensor) else {k: v[i : i + 1] for k, v in inputs.items()}
        log_p = logits(model, alone)[0].log_softmax(dim=1)
        rows = [_gradients(model, one, layers) for one in log_p.flatten()]
        stacked = [torch.stack(layer) for layer in zip(*rows, strict=True)]
        grams.append(torch.stack([g @ g.T for g in stacked]))
        probabilities.append(log_p.detach().exp())
    p = torch.stack(probabilities)
    mask = None if isinstance(inputs, Tensor) or p.shape[1] == 1 else inputs.get("attention_mask")
    return Truth(torch.stack(grams), p, torch.ones(p.shape[:2], dtype=p.dtype) if mask is None else mask.to(p))


def _gradients(model: nn.Module, value: Tensor, layers: Layers) -> list[Tensor]:
    """The gradient in each layer's parameters, as one vector."""
    model.zero_grad(set_to_none=True)
    value.backward(retain_graph=True)
    return [torch.cat([_flat(model.get_parameter(name)) for name in names]) for names in layers.values()]


def _flat(parameter: nn.Parameter) -> Tensor:
    g = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    return (torch.view_as_real(g) if g.is_complex() else g).flatten()


def class_gradients(model: nn.Module, inputs: Inputs, layers: Layers) -> tuple[Tensor, Tensor]:
    """(examples, classes, layers) squared norms of grad log p(y|x), and p (examples, classes)."""
    found = truth(model, inputs, layers)
    return found.norms, found.p.flatten(1)


def per_example_trace(model: nn.Module, inputs: Inputs, layers: Layers) -> Tensor:
    """(examples, layers): sum_y p(y|x) ||grad log p(y|x)||^2."""
    return truth(model, inputs, layers).exact()


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


def per_example_gradients(model: nn.Module, inputs: Inputs, labels: Tensor, layers: Layers) -> Tensor:
    """(examples, layers) squared norms of the gradient of each example's own cross-entropy."""
    model = copy.deepcopy(model).double().requires_grad_(True)
    inputs = cast(inputs, torch.float64)
    rows = []
    for i, y in enumerate(labels):
        alone = inputs[i : i + 1] if isinstance(inputs, Tensor) else {k: v[i : i + 1] for k, v in inputs.items()}
        loss = nn.functional.cross_entropy(logits(model, alone)[:, 0], y[None])
        rows.append(torch.stack([g.square().sum() for g in _gradients(model, loss, layers)]))
    return torch.stack(rows)
