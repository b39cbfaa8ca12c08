"""nngeometry, curvlinops, BackPACK and Opacus agree with us where they support the model; what help they needed is said."""

from __future__ import annotations

import pytest
import torch
from oracle import per_example_trace
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from zoo import specimen

from fisherdyn import fisher_trace
from fisherdyn.layers import Layers

# What their imports and decorators say to others is not ours to answer for.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


def perceptron() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.LayerNorm(6), nn.Linear(6, 3))
    return model.eval(), torch.randn(7, 5)


def convolutional() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(64, 3))
    nn.init.uniform_(model[1].running_var, 0.5, 2.0)
    return model.eval(), torch.randn(5, 2, 6, 6)


def by_module(model: nn.Module) -> Layers:
    owners = {name: module for name, module in model.named_modules() if [*module.parameters(recurse=False)]}
    return {name: tuple(f"{name}.{p}" for p, _ in module.named_parameters()) for name, module in owners.items()}


def by_nngeometry(model: nn.Module, x: Tensor) -> Tensor:
    """The diagonal of the Fisher matrix from a factor of S (Tanabe and Sagae), summed over each layer."""
    pytest.importorskip("nngeometry")
    from nngeometry.layercollection import LayerCollection
    from nngeometry.metrics import FIM
    from nngeometry.object import PMatDiag

    layers = LayerCollection.from_model(model)
    loader = DataLoader(TensorDataset(x), batch_size=len(x))
    diagonal = FIM(model=model, loader=loader, representation=PMatDiag, layer_collection=layers).get_diag()
    sizes = [layer.numel() for layer in layers.layers.values()]
    return torch.stack([part.sum() for part in diagonal.split(sizes)])


def by_curvlinops(model: nn.Module, x: Tensor | dict[str, Tensor], layers: Layers) -> Tensor:
    """The trace of each layer's Gauss-Newton matrix, written out: for a softmax it is the Fisher matrix."""
    curvlinops = pytest.importorskip("curvlinops")
    examples = len(x) if isinstance(x, Tensor) else len(next(iter(x.values())))
    found = []
    for names in layers.values():
        operator = curvlinops.GGNLinearOperator(
            model,
            nn.CrossEntropyLoss(),
            [model.get_parameter(name) for name in names],
            [(x, torch.zeros(examples, dtype=torch.long))],
            batch_size_fn=lambda batch: examples,
        )
        found.append((operator @ torch.eye(operator.shape[1])).trace())
    return torch.stack(found)


@pytest.mark.parametrize("make", [perceptron, convolutional])
def test_nngeometry_agrees(make):
    model, x = make()
    ours = fisher_trace(model, [x], layers=by_module(model), labels="exact").trace
    torch.testing.assert_close(by_nngeometry(model, x).double(), ours, rtol=1e-4, atol=0.0)


class Broadcast(nn.Module):
    """One row for all examples, as BERT's position ids are; autograd is told that it comes from the input, or is not."""

    def __init__(self, from_input: bool) -> None:
        super().__init__()
        self.from_input, self.shared, self.head = from_input, nn.Linear(2, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        row = 1 + 0 * x[:1, :2] if self.from_input else x.new_ones(1, 2)
        return self.head((x + self.shared(row)).tanh())


@pytest.mark.parametrize(("from_input", "times"), [(True, 2), (False, 0)])
def test_nngeometry_is_silently_wrong_where_a_row_is_broadcast(from_input, times):
    """Of two equal examples it gives twice the truth: the gradient of the row is the sum of both, squared, over two.

    Where the row does not come from the input, it gives 0. On BERT itself 0.4 does not run: its Linear and LayerNorm
    take two dimensions.
    """
    torch.manual_seed(0)
    model = Broadcast(from_input).eval()
    x = torch.randn(1, 3).repeat(2, 1)
    layers = by_module(model)
    truth = per_example_trace(model, x, layers).mean(dim=0)
    ours = fisher_trace(model, [x], layers=layers, labels="exact").trace
    torch.testing.assert_close(ours, truth, rtol=1e-4, atol=0.0)
    shared, head = by_nngeometry(model, x).double()
    torch.testing.assert_close(shared, times * truth[0], rtol=1e-4, atol=0.0)
    torch.testing.assert_close(head, truth[1], rtol=1e-4, atol=0.0)


@pytest.mark.parametrize("make", [perceptron, convolutional])
def test_curvlinops_agrees(make):
    model, x = make()
    layers = by_module(model)
    ours = fisher_trace(model, [x], layers=layers, labels="exact").trace
    torch.testing.assert_close(by_curvlinops(model, x, layers).double(), ours, rtol=1e-4, atol=0.0)


class Logits(nn.Module):
    """A Hugging Face classifier of a dict of inputs, as curvlinops wants it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        return self.model(**inputs).logits


def test_curvlinops_agrees_on_bert():
    """Help: eager attention, a wrapper that returns logits. Layers of few parameters, since it multiplies by each column."""
    it = specimen("bert")
    names = (
        "classifier",
        "bert.pooler.dense",
        "bert.encoder.layer.1.output.LayerNorm",
        "bert.encoder.layer.0.output.dense",
    )
    layers = {name: (f"{name}.weight", f"{name}.bias") for name in names}
    ours = fisher_trace(it.model, it.loader, layers=layers, labels="exact").trace
    theirs = {name: tuple(f"model.{p}" for p in parameters) for name, parameters in layers.items()}
    torch.testing.assert_close(by_curvlinops(Logits(it.model), it.inputs, theirs).double(), ours, rtol=1e-4, atol=0.0)


def test_backpack_agrees_label_by_label():
    """Help: a loss that is a sum; it has no rule for LayerNorm."""
    backpack = pytest.importorskip("backpack")
    from backpack.extensions import BatchL2Grad

    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)), torch.randn(7, 5)
    y = torch.arange(7) % 3
    ours = fisher_trace(model, [(x, y)], layers=by_module(model), labels="empirical").values
    loss = backpack.extend(nn.CrossEntropyLoss(reduction="sum"))(backpack.extend(model)(x), y)
    with backpack.backpack(BatchL2Grad()):
        loss.backward()
    theirs = torch.stack([model[i].weight.batch_l2 + model[i].bias.batch_l2 for i in (0, 2)], dim=1)
    torch.testing.assert_close(theirs.double(), ours, rtol=1e-4, atol=0.0)


def test_opacus_agrees_label_by_label_on_bert():
    """Help: train mode, which it records in alone, with all dropout at 0; a loss that is a sum; no position embeddings.

    On these it raises, since they are broadcast over the batch.
    """
    opacus = pytest.importorskip("opacus")
    it = specimen("bert")
    model, y = it.model, torch.arange(5) % 3
    layers = {"0": tuple(n for n, _ in model.named_parameters() if "layer.0." in n), "head": ("classifier.weight",)}
    ours = fisher_trace(model, [{**it.inputs, "labels": y}], layers=layers, labels="empirical").values
    model.requires_grad_(False)
    for names in layers.values():
        for name in names:
            model.get_parameter(name).requires_grad_(True)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    wrapped = opacus.GradSampleModule(model.train(), loss_reduction="sum")
    nn.functional.cross_entropy(wrapped(**it.inputs).logits, y, reduction="sum").backward()
    theirs = [
        sum(wrapped._module.get_parameter(name).grad_sample.flatten(1).square().sum(dim=1) for name in names)
        for names in layers.values()
    ]
    torch.testing.assert_close(torch.stack(theirs, dim=1).double(), ours, rtol=1e-4, atol=0.0)
