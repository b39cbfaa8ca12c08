"""What others do, on the same workloads: one reading of squared per-example gradient norms (or their sum) a batch.

Each peer is used as its documentation has it, with one sampled label an example. What it needed beside that, and where it
does not run, stands at its function. They come with `make .venv/.dev`, without the torchvision that two of them ask for.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from .workloads import Inputs, Workload

Step = Callable[[Inputs, Tensor], None]
"""One batch and its labels."""


class DoesNotRun(Exception):  # noqa: N818
    """Why a peer cannot measure a workload."""


def sampled(logits: Tensor) -> Tensor:
    return torch.multinomial(logits.detach().softmax(dim=1), 1)[:, 0]


def plain(work: Workload) -> Step:
    """The unit of all ratios: forward, loss, backward, as training does it."""

    def step(inputs: Inputs, labels: Tensor) -> None:
        cross_entropy(work.logits(inputs), labels).backward()
        work.model.zero_grad(set_to_none=True)

    return step


def forward(work: Workload) -> Step:
    @torch.no_grad()
    def step(inputs: Inputs, labels: Tensor) -> None:
        work.logits(inputs)

    return step


def naive(work: Workload) -> Step:
    """A loop over examples."""
    weights = work.measured

    def step(inputs: Inputs, labels: Tensor) -> None:
        for i in range(len(labels)):
            one = {k: v[i : i + 1] for k, v in inputs.items()} if isinstance(inputs, dict) else inputs[i : i + 1]
            logits = work.logits(one)
            gradients = torch.autograd.grad(cross_entropy(logits, sampled(logits)), weights)
            torch.stack([g.square().sum() for g in gradients])

    return step


def batch_gradient(work: Workload) -> Step:
    """Sampled labels, one gradient of the whole batch, squared."""
    weights = work.measured

    def step(inputs: Inputs, labels: Tensor) -> None:
        logits = work.logits(inputs)
        gradients = torch.autograd.grad(cross_entropy(logits, sampled(logits)), weights)
        torch.stack([g.square().sum() for g in gradients])

    return step


def authors(work: Workload) -> Step:
    """The published code's way: a deep copy of the model for each list of batches, then batch gradients."""
    copied = copy.deepcopy(work.model)
    weights = [copied.get_parameter(name) for names in work.layers.values() for name in names]
    theirs = Workload(copied, work.batches, work.labels, work.layers)

    def step(inputs: Inputs, labels: Tensor) -> None:
        if inputs is work.batches[0]:
            copy.deepcopy(work.model)
        logits = theirs.logits(inputs)
        cross_entropy(logits, logits.argmax(dim=1)).backward()
        for weight in weights:
            assert weight.grad is not None
            (weight.grad.square() / len(labels)).sum()
        copied.zero_grad()

    return step


def opacus(work: Workload) -> Step:
    """Ghost norms. It records in train mode only (there is no dropout here), and refuses buffers unless strict=False."""
    from opacus.grad_sample import GradSampleModuleFastGradientClipping

    model = copy.deepcopy(work.model).train()
    _only_measured(model, work)
    watched = GradSampleModuleFastGradientClipping(model, strict=False, loss_reduction="mean")
    theirs = Workload(watched, work.batches, work.labels, work.layers)

    def step(inputs: Inputs, labels: Tensor) -> None:
        logits = theirs.logits(inputs)
        cross_entropy(logits, sampled(logits)).backward()
        watched.get_norm_sample()
        watched.zero_grad(set_to_none=True)

    return step


def backpack(work: Workload) -> Step:
    """Its first-order extension, on the modules that it knows. LayerNorm is none of them: its weights are left out."""
    from backpack import backpack as extensions
    from backpack import extend
    from backpack.extensions import BatchL2Grad

    model = copy.deepcopy(work.model).eval()
    _only_measured(model, work)
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.requires_grad_(False)
        elif isinstance(module, nn.Linear) and any(p.requires_grad for p in module.parameters()):
            extend(module)
    theirs = Workload(model, work.batches, work.labels, work.layers)

    def step(inputs: Inputs, labels: Tensor) -> None:
        logits = theirs.logits(inputs)
        with extensions(BatchL2Grad()):
            cross_entropy(logits, sampled(logits)).backward()
        for p in model.parameters():
            p.grad = None
            if hasattr(p, "batch_l2"):
                del p.batch_l2

    return step


def nngeometry(work: Workload) -> Step:
    """The implicit trace of all layers together. Its Linear takes inputs of two dimensions only: W3."""
    from nngeometry.layercollection import LayerCollection
    from nngeometry.metrics import FIM_MonteCarlo
    from nngeometry.object import PMatImplicit

    if isinstance(work.batches[0], dict):
        raise DoesNotRun("tokens: its inputs must be differentiable tensors, and its Linear has no third dimension")
    layers = LayerCollection.from_model(work.model)

    def step(inputs: Inputs, labels: Tensor) -> None:
        assert isinstance(inputs, Tensor)
        data = torch.utils.data.TensorDataset(inputs.detach().clone(), labels)
        loader = torch.utils.data.DataLoader(data, batch_size=len(labels))
        FIM_MonteCarlo(work.model, loader, PMatImplicit, layer_collection=layers, device=str(inputs.device)).trace()

    return step


def _only_measured(model: nn.Module, work: Workload) -> None:
    names = {name for names in work.layers.values() for name in names}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)


PEERS: dict[str, Callable[[Workload], Step]] = {
    "naive loop over examples": naive,
    "one batch gradient, sampled labels": batch_gradient,
    "the authors' procedure": authors,
    "nngeometry, one label": nngeometry,
    "BackPACK (without LayerNorm)": backpack,
    "Opacus, ghost": opacus,
}
