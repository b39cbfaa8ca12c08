"""probe() with a model and a loader and nothing else, on the kinds of models that people have; and ds.fisher."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
import xarray as xr
from matplotlib.figure import Figure
from oracle import per_example_trace, snapshot
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils.data import DataLoader
from transformers import BatchEncoding, BertConfig, BertForSequenceClassification
from zoo import SMALL, tokens

from fisherdyn import Recorder, analysis, probe
from fisherdyn.layers import find_layers


def bert() -> nn.Module:
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(vocab_size=30, num_labels=2, attn_implementation="eager", **SMALL))


def randomised(model: nn.Module) -> nn.Module:
    """Fresh LoRA gives nothing, and its gradients are nearly zero."""
    for name, p in model.named_parameters():
        if p.requires_grad:
            nn.init.normal_(p, std=0.3, generator=torch.Generator().manual_seed(len(name)))
    return model.eval()


def plain() -> tuple[nn.Module, list]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2)), ["0", "2"]


def whole() -> tuple[nn.Module, list]:
    return bert().eval(), ["embeddings", "0", "1", "head"]


def peft() -> tuple[nn.Module, list]:
    return randomised(get_peft_model(bert(), LoraConfig(task_type="SEQ_CLS", r=2))), ["0", "1"]


def adapted(config: str) -> nn.Module:
    model = bert()
    pytest.importorskip("adapters").init(model)
    model.add_adapter("task", config=config)
    model.train_adapter("task")
    return randomised(model)


def bottleneck() -> tuple[nn.Module, list]:
    return adapted("seq_bn[reduction_factor=4]"), ["0", "1"]


def adapters_lora() -> tuple[nn.Module, list]:
    return adapted("lora[r=2]"), ["0", "1"]


@pytest.mark.filterwarnings("ignore:.*adapters available but none are activated")
@pytest.mark.parametrize("make", [plain, whole, peft, bottleneck, adapters_lora])
def test_a_model_and_a_loader_are_enough(make):
    """Two classes: rademacher is exact, so the truth is the oracle's to rounding."""
    model, layers = make()
    inputs = torch.randn(5, 6) if make is plain else tokens()
    batch = [inputs] if make is plain else BatchEncoding({**inputs, "labels": torch.zeros(5).long()})
    check = snapshot(model)
    ds = probe(model, [batch])
    check()
    truth = per_example_trace(model, inputs, find_layers(model))
    assert ds["layer"].values.tolist() == layers
    assert ds["fisher_trace"].values == pytest.approx(truth.mean(dim=0).numpy(), rel=1e-3)
    assert ds["fisher_trace_se"].values == pytest.approx(truth.std(dim=0).numpy() / 5**0.5, rel=1e-2)
    assert ds.attrs["likelihood"] == "categorical"
    assert ds.attrs["device"] == "cpu"
    assert all(len(str(value)) <= 100 for value in ds.attrs.values())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_device_is_found_and_batches_are_moved():
    model, _ = plain()
    x = torch.randn(5, 6)
    here = probe(model, [x])
    there = probe(model.cuda(), DataLoader(x, 5, pin_memory=True))
    assert there.attrs["device"] == "cuda:0"
    np.testing.assert_allclose(there["fisher_trace"], here["fisher_trace"], rtol=1e-4)


def test_wrapped_models():
    model, _ = plain()
    with pytest.raises(ValueError, match=r"pass the model inside, model\.module"):
        probe(nn.DataParallel(model), [torch.randn(5, 6)])
    compiled = torch.compile(model, backend="eager")
    assert probe(compiled, [torch.ones(5, 6)]).identical(probe(model, [torch.ones(5, 6)]))


def test_the_models_own_errors_say_on_which_loader():
    model, _ = plain()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied") as caught:
        probe(model, {"en": [torch.ones(5, 6)], "sw": [torch.ones(5, 7)]})
    assert caught.value.__notes__ == ["while tr(F) was measured on loader 'sw'"]
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied") as caught:
        probe(model, [torch.ones(5, 7)])
    assert not hasattr(caught.value, "__notes__")
    recorder = Recorder(model, {"en": [torch.ones(5, 6)], "sw": [torch.ones(5, 7)]})
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied") as caught:
        recorder.step()
    assert "loader 'sw'" in caught.value.__notes__[0]


def test_the_progress_bar(monkeypatch, capsys):
    model, _ = plain()
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)  # another test may have loaded it
    probe(model, [torch.randn(5, 6)])
    assert capsys.readouterr().err == ""
    monkeypatch.setitem(sys.modules, "ipykernel", object())
    probe(model, [torch.randn(5, 6)])
    assert "tr(F)" in capsys.readouterr().err


@pytest.fixture
def recorded() -> xr.Dataset:
    model, _ = plain()
    x = torch.randn(32, 6, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    with Recorder(model, [x], every=2).attach(optimizer) as recorder:
        for _ in range(12):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), (x[:, 0] > 0).long()).backward()
            optimizer.step()
    return recorder.dataset


def test_the_accessor_calls_analysis(recorded):
    curve = analysis.learning_curve(recorded)
    xr.testing.assert_identical(recorded.fisher.learning_curve(), curve)
    xr.testing.assert_identical(recorded.fisher.learning_curve(window=1), analysis.learning_curve(recorded, 1))
    xr.testing.assert_identical(recorded.fisher.peak(), analysis.peak(curve))
    xr.testing.assert_identical(recorded.fisher.width(0.8), analysis.width(curve, 0.8))
    xr.testing.assert_identical(recorded.fisher.learning_period(0.8), analysis.learning_period(curve, 0.8))


def test_the_accessor_plots_lines_or_layers(recorded):
    ax = recorded.fisher.plot(Figure().subplots())
    assert [line.get_label() for line in ax.lines] == ["0", "2"]
    assert ax.lines[1].get_ydata().tolist() == recorded["fisher_trace"].sel(layer="2").values.tolist()
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("step", "tr(F) (nat)")
    model, _ = plain()
    x = torch.randn(8, 6)
    ax = probe(model, {"a": [x], "b": [2 * x]}).fisher.plot(Figure().subplots())
    assert [line.get_label() for line in ax.lines] == ["a", "b"]
    ax = probe(model, [x]).fisher.plot(Figure().subplots())
    assert len(ax.lines) == 1
    assert ax.get_legend() is None


def test_the_accessor_wants_a_record():
    with pytest.raises(ValueError, match="needs a record with fisher_trace, this dataset has a"):
        xr.Dataset({"a": 1}).fisher  # noqa: B018
