"""Weights that evaluation mode hides are measured, and a model is left as it was to the bit, after any exception."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from oracle import per_example_trace
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LevitConfig, LevitForImageClassification

from fisherdyn import fisher_trace


def by_parameter(model: nn.Module) -> dict[str, tuple[str]]:
    return {name: (name,) for name, _ in model.named_parameters()}


class Merged(nn.Linear):
    """LoRA as loralib has it: in evaluation mode its two weights are a part of `weight`."""

    def __init__(self) -> None:
        super().__init__(6, 6)
        self.lora_a, self.lora_b = nn.Parameter(torch.randn(2, 6)), nn.Parameter(torch.randn(6, 2))
        self.merged = False

    def train(self, mode: bool = True) -> Merged:
        nn.Module.train(self, mode)
        if mode == self.merged:
            self.weight.data += (-1 if mode else 1) * (self.lora_b @ self.lora_a)
            self.merged = not mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.weight, self.bias)
        return y if self.merged else y + x @ self.lora_a.T @ self.lora_b.T


class Unmerged(Merged):
    """The same function, for the oracle."""

    def train(self, mode: bool = True) -> Unmerged:
        return nn.Module.train(self, mode)


def lora(kind: type[Merged]) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(kind(), nn.Tanh(), nn.Linear(6, 3))


@pytest.mark.parametrize("method", ["hooks", "vmap", "batch"])
@pytest.mark.parametrize("training", [True, False])
def test_merged_weights_are_measured_and_stay_what_they_were(method, training):
    model, x = lora(Merged).double().train(training), torch.randn(4, 6).double()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    names = ("0.lora_a", "0.lora_b", "2.weight")
    layers = {name: (name,) for name in names}
    truth = per_example_trace(lora(Unmerged).double(), x, layers)
    found = fisher_trace(model, x.split(1) if method == "batch" else [x], layers=layers, labels="exact", method=method)
    torch.testing.assert_close(found.values, truth, rtol=1e-9, atol=0.0)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert (model[0].merged, model.training, model[0].training) == (not training, training, training)


@pytest.mark.parametrize("method", ["hooks", "batch"])
def test_biases_that_were_kept_in_evaluation_mode_are_measured(method):
    torch.manual_seed(0)
    small = {
        "image_size": 80,
        "patch_size": 16,
        "hidden_sizes": [8] * 3,
        "num_attention_heads": [2] * 3,
        "depths": [1] * 3,
    }
    small |= {"key_dim": [4] * 3, "mlp_ratio": [1] * 3, "attention_ratio": [1] * 3, "num_labels": 2}
    config = LevitConfig(**small)
    model = LevitForImageClassification(config).double()
    biases = {name: (name,) for name, p in model.named_parameters() if "attention_biases" in name}
    for name in biases:
        nn.init.normal_(model.get_parameter(name))
    x = {"pixel_values": torch.randn(2, 3, 80, 80).double()}
    truth = per_example_trace(model, x, biases)
    model.eval()
    with torch.no_grad():
        logits = model(**x).logits
    kept = [m.attention_bias_cache for m in model.modules() if hasattr(m, "attention_bias_cache")]
    singles = [{"pixel_values": row} for row in x["pixel_values"].split(1)]
    for _ in range(2):
        loader = singles if method == "batch" else [x]
        found = fisher_trace(model, loader, layers=biases, labels="exact", likelihood="categorical", method=method)
        torch.testing.assert_close(found.values, truth, rtol=1e-7, atol=1e-16)
    assert all(cache for cache in kept)
    now = [m.attention_bias_cache for m in model.modules() if hasattr(m, "attention_bias_cache")]
    assert all(cache is then for cache, then in zip(now, kept, strict=True))
    with torch.no_grad():
        assert torch.equal(model(**x).logits, logits)


class KeepsInTrain(nn.Module):
    """Makes what evaluation mode reads in train(False), as TinyViT does."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(6))

    @torch.no_grad()
    def train(self, mode: bool = True) -> KeepsInTrain:
        super().train(mode)
        if not mode:
            self.kept = self.scale.exp()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return x * (self.scale.exp() if self.training else self.kept)


def test_a_layer_that_is_exactly_zero_is_named():
    torch.manual_seed(0)
    model, x = nn.Sequential(KeepsInTrain(), nn.Linear(6, 3)), torch.randn(4, 6)
    layers = by_parameter(model)
    for method in ("hooks", "vmap", "batch"):
        with pytest.warns(
            UserWarning, match=r"layer\(s\) 0.scale: tr\(F\) is exactly 0 .* evaluation mode reads a tensor"
        ):
            found = fisher_trace(model, [x], layers=layers, method=method)
        assert found.trace[0] == 0
        assert (found.trace[1:] > 0).all()


class Attentive(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attention(x, x, x)[0].mean(dim=1))


@pytest.mark.filterwarnings("ignore:Already unmerged")
@pytest.mark.parametrize("method", ["hooks", "vmap", "batch"])
def test_weights_that_were_merged_for_a_call_are_put_back(method):
    """peft replaces the weights by merged ones, and by what is left when these are subtracted again, or leaves them."""
    torch.manual_seed(0)
    config = LoraConfig(target_modules=["attention"], init_lora_weights=False, r=2)
    model, x = get_peft_model(Attentive(), config), torch.randn(4, 5, 8)
    owners = [module for module in model.modules() if module._parameters]
    before = [[(name, p.clone()) for name, p in module._parameters.items() if p is not None] for module in owners]
    expected = {
        "hooks": pytest.warns(UserWarning, match="not called in the forward pass"),
        "vmap": pytest.raises(ValueError, match="cannot map"),
        "batch": nullcontext(),
    }
    with expected[method]:
        fisher_trace(model, [x], method=method)
    for module, parameters in zip(owners, before, strict=True):
        assert [name for name, p in module._parameters.items() if p is not None] == [name for name, _ in parameters]
        for name, value in parameters:
            assert torch.equal(getattr(module, name), value)


class ReplacesAndFails(nn.Module):
    """Shows merged numbers under a parameter, or in its place, when something fails."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.weight = how, nn.Parameter(torch.randn(3, 6))

    def forward(self, x: Tensor) -> Tensor:
        merged = 2 * self.weight.detach()
        if self.how == "data":
            self.weight.data = merged
        elif self.how == "in place":
            with torch.no_grad():
                self.weight.mul_(2)
        else:
            del self.weight
            self.weight = merged
        raise NotImplementedError


@pytest.mark.parametrize("how", ["data", "attribute"])
def test_weights_are_put_back_after_an_exception(how):
    model = ReplacesAndFails(how)
    weight, before, address = model.weight, model.weight.clone(), model.weight.data_ptr()
    with pytest.raises(NotImplementedError):
        fisher_trace(model, [torch.randn(4, 6)], layers={"it": ("weight",)})
    assert model.weight is weight
    assert torch.equal(weight, before)
    assert weight.data_ptr() == address


def test_a_weight_that_a_model_writes_into_is_named():
    with pytest.raises(
        ValueError, match="wrote into its weights weight, so they are no longer what they were: load them"
    ):
        fisher_trace(ReplacesAndFails("in place"), [torch.randn(4, 6)], layers={"it": ("weight",)})
