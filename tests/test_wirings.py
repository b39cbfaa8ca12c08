"""Right, or refused by name: never silently wrong."""

from __future__ import annotations

import copy

import pytest
import torch
from oracle import cast, per_example_trace
from torch import Tensor, nn
from transformers import BertConfig, BertModel
from wirings import WIRINGS, body_and_head
from zoo import SMALL, tokens

from fisherdyn import fisher_trace
from fisherdyn.fisher import alone


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # checkpointing, under no_grad
@pytest.mark.parametrize("method", ["hooks", "vmap"])
@pytest.mark.parametrize("name", WIRINGS)
def test_right_or_refused(name, method):
    wiring = WIRINGS[name]
    torch.manual_seed(0)
    model, x = wiring.make()
    model, x = model.double().eval(), cast(x, torch.float64)
    layers = {parameter: (parameter,) for parameter, _ in model.named_parameters()}
    refusal = getattr(wiring, method)
    if refusal is not None:
        with pytest.raises(ValueError, match=refusal):
            fisher_trace(model, [x], layers=layers, labels="exact", method=method)
        return
    truth = per_example_trace(copy.deepcopy(model), x, layers)
    found = fisher_trace(model, [x], layers=layers, labels="exact", method=method)
    torch.testing.assert_close(found.values, truth, rtol=1e-9, atol=1e-14)


class MeanPooled(nn.Module):
    """A head on the mean over all positions, padding included: careless, common, and a function of the padding."""

    def __init__(self) -> None:
        super().__init__()
        self.config = BertConfig(vocab_size=30, attn_implementation="eager", **SMALL)
        self.bert, self.head = BertModel(self.config, add_pooling_layer=False), nn.Linear(16, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.head(self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state.mean(dim=1))


@pytest.mark.parametrize("method", ["hooks", "vmap"])
def test_padding_that_counts_is_not_cut(method):
    torch.manual_seed(0)
    model = MeanPooled().double().eval()
    x = {key: torch.cat([v, v.new_zeros(len(v), 5)], dim=1) for key, v in tokens().items()}
    layers = {"head": ("head.weight",)}
    found = fisher_trace(model, [x], layers=layers, labels="exact", method=method, likelihood="categorical")
    torch.testing.assert_close(found.values, per_example_trace(model, x, layers), rtol=1e-9, atol=0.0)


@pytest.mark.parametrize("labels", ["argmax", "class_mix"])
def test_a_certain_example_proves_nothing(labels):
    """The last example is so certain that its gradient is 0; the others' is wrong all the same."""
    torch.manual_seed(0)
    model = body_and_head(lambda m, x: m.head(nn.functional.linear(m.body(x), m.body.weight)))
    x = torch.randn(5, 6)
    x[-1] *= 1e4
    with pytest.raises(ValueError, match=r"body"):
        fisher_trace(model, [x], layers={"body": ("body.weight",)}, labels=labels)


def test_what_was_compared_once_is_not_compared_again(monkeypatch):
    """Fewer layers of a model that was found right are right; more of them, or the modules called otherwise, are not."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3)), torch.randn(8, 6)
    layers = {name: (f"{name}.weight", f"{name}.bias") for name in ("0", "2")}
    compared, plain = [], alone.Alone._norms
    monkeypatch.setattr(alone.Alone, "_norms", lambda *args: compared.append(1) or plain(*args))

    def passes(batch, *names):
        compared.clear()
        fisher_trace(model, [batch], layers={name: layers[name] for name in names})
        return len(compared)

    assert passes(x, "0") == 2
    assert passes(x, "0", "2") == 2
    assert [passes(x, "0", "2"), passes(x, "2"), passes(x, "0")] == [0, 0, 0]
    assert passes(x[:1], "0") > 0
    compared.clear()
    fisher_trace(model, [x], layers={"together": layers["0"] + layers["2"]})  # a sum may hide what its parts do not
    assert len(compared) == 2
