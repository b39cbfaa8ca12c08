"""The nine known ways to get tr(F) wrong: each computed wrongly beside ours, so that the difference is seen to matter."""

from __future__ import annotations

import copy

import pytest
import torch
from oracle import class_gradients, per_example_trace, snapshot
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM
from zoo import SMALL, specimen, tokens

from fisherdyn import fisher_trace, probe
from fisherdyn.fisher import vmap
from fisherdyn.fisher.rules import find_rule
from fisherdyn.layers import resolve_layers


def exact(model: nn.Module, x: Tensor | dict[str, Tensor], **options: object) -> Tensor:
    return fisher_trace(model, [x], labels="exact", **options).values


def seen_by(module: nn.Module, model: nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor], list[list[Tensor]]]:
    """p, what the module was given in each call, and for each class y the gradients of sum_i log p(y|x_i) at its outputs."""
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []
    handle = module.register_forward_hook(lambda m, a, out: (inputs.append(a[0].detach()), outputs.append(out))[1])
    log_p = model(x).log_softmax(dim=1)
    handle.remove()
    found = [list(torch.autograd.grad(column.sum(), outputs, retain_graph=True)) for column in log_p.unbind(dim=1)]
    return log_p.detach().exp(), inputs, found


def test_1_tokens_are_not_samples():
    """Wrong: each token's gradient squared by itself, without the products between tokens of one example."""
    it = specimen("inplace_after_view")
    model, x, layers = it.model, it.inputs + 2, {"body": ("body.weight",)}  # tokens that are alike
    model.act = nn.ReLU()
    truth = per_example_trace(model, x, layers)[:, 0]
    p, (a,), gradients = seen_by(model.body, model, x)
    wrong = sum(p[:, y] * (a.square().sum(2) * d.square().sum(2)).sum(1) for y, (d,) in enumerate(gradients))
    torch.testing.assert_close(exact(model, x, layers=layers)[:, 0], truth, rtol=1e-4, atol=0.0)
    assert wrong.mean() < 0.7 * truth.mean()


def test_2_what_is_broadcast_over_the_batch_has_one_gradient_an_example():
    """Wrong: position ids are (1, T), so that the gradient there is already summed over the batch."""
    it = specimen("broadcast_positions")
    model, x, layers = it.model, it.inputs, {"positions": ("positions.weight",)}
    truth = per_example_trace(model, x, layers).mean()
    p, _, gradients = seen_by(model.positions, model, x)
    assert gradients[0][0].shape[0] == 1
    wrong = sum(p[:, y].mean() * d.square().sum() for y, (d,) in enumerate(gradients))
    torch.testing.assert_close(exact(model, x, layers=layers).mean(), truth, rtol=1e-4, atol=0.0)
    assert wrong > 1.5 * truth


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).tanh())


def test_3_uses_of_a_weight_add_before_the_square():
    """Wrong: each call's, or each place's, squared gradient by itself."""
    it = specimen("repeated")
    model, x, layers = it.model, it.inputs, {"shared": ("shared.weight",)}
    truth = per_example_trace(model, x, layers).mean()
    p, inputs, gradients = seen_by(model.shared, model, x)
    wrong = sum(
        (p[:, y] * a.square().sum(1) * d.square().sum(1)).mean()
        for y, calls in enumerate(gradients)
        for a, d in zip(inputs, calls, strict=True)
    )
    torch.testing.assert_close(exact(model, x, layers=layers).mean(), truth, rtol=1e-4, atol=0.0)
    assert abs(wrong / truth - 1) > 0.2

    torch.manual_seed(0)
    tied, x = Tied(), torch.randn(4, 3)
    truth = per_example_trace(tied, x, {"both": ("a.weight",)}).mean()
    untied = Tied()
    untied.b.weight = nn.Parameter(tied.b.weight.detach().clone())
    untied.a.weight = nn.Parameter(tied.a.weight.detach().clone())
    wrong = per_example_trace(untied, x, {"a": ("a.weight",), "b": ("b.weight",)}).sum(dim=1).mean()
    for method in ("hooks", "vmap"):
        torch.testing.assert_close(exact(tied, x, method=method).mean(), truth, rtol=1e-4, atol=0.0)
    assert abs(wrong / truth - 1) > 0.05


def test_4_the_gradient_of_the_mean_loss_squared_is_not_the_trace():
    """Wrong: divided by B, where for sampled labels it must be multiplied (Eqn. 1 of the paper against its code)."""
    torch.manual_seed(1)
    model, x = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 4)).double(), torch.randn(8, 5).double()
    truth = exact(model, x).mean(dim=0)
    loader = [x] * 600
    theirs = fisher_trace(model, loader, labels="mc", method="authors")
    assert ((theirs.trace - truth / 8**2).abs() < 4 * theirs.se).all()
    multiplied = 8**2 * theirs.trace
    assert ((multiplied - truth).abs() < 4 * 8**2 * theirs.se).all()
    ours = fisher_trace(model, loader, labels="mc", method="batch")
    assert ((ours.trace - truth).abs() < 4 * ours.se).all()
    assert (ours.se < 0.1 * truth).all()


def test_4_the_authors_form_is_what_their_code_computes_and_not_the_trace():
    torch.manual_seed(1)
    model, x = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 4)).double(), torch.randn(8, 5).double()
    loss = torch.nn.functional.cross_entropy(model(x), model(x).argmax(dim=1))
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    theirs = torch.stack([sum(g.square().sum() for g in pair) / 8 for pair in (gradients[:2], gradients[2:])])
    found = fisher_trace(model, [x], labels="argmax", method="authors")
    torch.testing.assert_close(found.trace, theirs)
    truth = exact(model, x).mean(dim=0)
    assert (found.trace < 0.1 * truth).all()


def test_5_vmap_of_attention_that_branches_on_data_is_refused_with_the_remedy():
    torch.manual_seed(0)
    models = {
        kind: BertForSequenceClassification(BertConfig(vocab_size=30, attn_implementation=kind, **SMALL)).eval()
        for kind in ("sdpa", "eager")
    }
    models["eager"].load_state_dict(models["sdpa"].state_dict())
    x, layers = tokens(), r"layer\.(\d+)\."
    with pytest.raises(ValueError, match='attn_implementation="eager"'):
        exact(models["sdpa"], x, layers=layers, method="vmap")
    by_hooks = exact(models["sdpa"], x, layers=layers)
    torch.testing.assert_close(exact(models["eager"], x, layers=layers, method="vmap"), by_hooks, rtol=1e-4, atol=0.0)


class Largest(TorchDispatchMode):
    """The size of the largest tensor that is made."""

    numel = 0

    def __torch_dispatch__(self, func: object, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor):
            self.numel = max(self.numel, out.numel())
        return out


def test_5_chunks_bound_memory_because_the_norm_is_taken_inside(monkeypatch):
    """Wrong: `chunk_size` alone, with the norm outside: all gradients are laid side by side in the end."""
    monkeypatch.setattr(vmap, "CHUNK", 2)
    torch.manual_seed(0)
    model, x = nn.Linear(50, 40), torch.randn(16, 50)
    with Largest() as ours:
        fisher_trace(model, [x], labels="mc", method="vmap")
    gradient = torch.func.grad(lambda w, x: torch.func.functional_call(model, w, x).log_softmax(dim=0)[0])
    weights = {name: p.detach() for name, p in model.named_parameters()}
    with Largest() as theirs:
        torch.func.vmap(gradient, in_dims=(None, 0), chunk_size=2)(weights, x)
    assert ours.numel <= 2 * 40 * 50
    assert theirs.numel == 16 * 40 * 50


def test_6_batch_norm_and_dropout_are_in_evaluation_mode_and_the_record_says_so():
    """Wrong: in train mode one example's gradient depends on which others are in its batch."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2)).double().train()
    x, others = torch.randn(4, 3).double(), torch.randn(4, 3).double()
    check = snapshot(model)
    alone = exact(model, x)[0]
    beside = exact(model, torch.cat([x[:1], others]))[0]
    torch.testing.assert_close(alone, beside, rtol=1e-9, atol=0.0)
    assert probe(model, [x]).attrs["mode"] == "eval"
    check()

    def in_train_mode(batch: Tensor) -> Tensor:
        moving = copy.deepcopy(model)
        moving[2].p = 0.0
        log_p = moving(batch).log_softmax(dim=1)
        return torch.autograd.grad(log_p[0, 0], moving[0].weight)[0]

    assert not torch.allclose(in_train_mode(x), in_train_mode(torch.cat([x[:1], others])), rtol=0.1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_7_half_precision_is_squared_in_single(dtype):
    """Wrong: gradients of 1e-5, squared in float16, vanish."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    with torch.no_grad():
        model[2].weight.mul_(1e-4)
    x = torch.randn(9, 6)
    layers = resolve_layers(model)
    truth = per_example_trace(model, x, layers).mean(dim=0)
    found = exact(copy.deepcopy(model).to(dtype), x.to(dtype)).mean(dim=0)
    assert truth[0] < 1e-6
    torch.testing.assert_close(found, truth, rtol=0.02, atol=0.0)
    if dtype is torch.float16:
        norms, p = class_gradients(model, x, layers)
        wrong = (p * norms[..., 0].sqrt().half().square()).sum(dim=1).mean()
        assert wrong < 0.5 * truth[0]


def test_7_overflow_is_reported_and_not_averaged_in():
    """Logits are finite, and so are the gradients; what a hidden layer's gradient becomes in float16 is not."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 64), nn.Linear(64, 2)).half()
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
        model[1].weight.fill_(60_000.0)
        model[2].weight[0].fill_(10.0)
    good = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 64), nn.Linear(64, 2)).half()
    assert torch.isfinite(exact(good, torch.randn(4, 3).half())).all()
    with pytest.raises(ValueError, match=r"not finite in layer.* 0"):
        exact(model, torch.randn(4, 3).half())


@pytest.mark.parametrize("method", ["hooks", "vmap", "batch"])
def test_8_frozen_layers_are_measured_and_nothing_is_touched(method):
    """Wrong: to thaw them for the measurement, or to leave them out (as a probe by .grad does)."""
    it = specimen("bert")
    model = it.model.double()
    loader = [{key: value[i : i + 1] for key, value in it.inputs.items()} for i in range(5)]
    thawed = fisher_trace(model, loader, layers=it.layers, labels="exact", method=method)
    model.requires_grad_(False)
    check = snapshot(model)
    frozen = fisher_trace(model, loader, layers=it.layers, labels="exact", method=method)
    check()
    torch.testing.assert_close(frozen.trace, thawed.trace, rtol=1e-9, atol=0.0)
    assert frozen.trainable == (False, False)


def test_9_a_kind_without_a_rule_is_measured_or_named_and_never_skipped():
    """Wrong: what has no rule counts as nothing (BackPACK has none for LayerNorm)."""
    it = specimen("lstm")
    assert find_rule(it.model.lstm) is None
    layers = {"all": tuple(name for name, _ in it.model.named_parameters())}
    truth = per_example_trace(it.model, it.inputs, layers).mean()
    covered = {
        "all": tuple(name for name in layers["all"] if find_rule(it.model.get_submodule(name.rpartition(".")[0])))
    }
    wrong = per_example_trace(it.model, it.inputs, covered).mean()
    torch.testing.assert_close(exact(it.model, it.inputs, layers=layers).mean(), truth, rtol=1e-4, atol=0.0)
    assert wrong < 0.99 * truth
    it.model.spare = nn.LSTM(2, 2)
    with pytest.raises(ValueError, match="not called in the forward pass: spare"):
        exact(it.model, it.inputs, layers={"spare": ("spare.weight_ih_l0",)})


# What a reader of this project found in it.


class Mixing(nn.Module):
    """Examples are compared with the batch's mean: with a single example nothing shows."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        return self.head((h - 0.9 * h.mean(dim=0)).tanh())


def test_a_batch_of_one_proves_nothing_for_others():
    torch.manual_seed(0)
    model = Mixing()
    with pytest.raises(ValueError, match="one example alone has another gradient"):
        fisher_trace(model, [torch.randn(1, 6), torch.randn(16, 6)])


def test_a_small_layer_under_a_large_one_is_checked():
    torch.manual_seed(0)

    class Reused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(6, 6), nn.Linear(6, 3)
            nn.init.normal_(self.head.weight, std=2e-4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x) + nn.functional.linear(x * x, self.body.weight))

    model, x = Reused(), 5 * torch.randn(8, 6)
    body, head = per_example_trace(model, x, resolve_layers(model)).mean(dim=0)
    assert 1e-7 * head < body < 1e-5 * head
    with pytest.warns(UserWarning, match=r"layer\(s\) body"):
        fisher_trace(model, [x])


def test_gradients_that_cancel_over_positions_keep_their_digits():
    """An offset before an instance norm: each position's gradient is large, their sum small."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(32, 32, 1), nn.InstanceNorm1d(32), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 8, 3))
    x = torch.randn(6, 32, 8) + 300.0
    layers = {"conv": ("0.weight",)}
    truth = per_example_trace(model, x, layers)
    torch.testing.assert_close(exact(model, x, layers=layers), truth, rtol=2e-3, atol=0.0)


@pytest.mark.parametrize("method", ["hooks", "vmap", "batch"])
def test_a_confident_half_precision_model_is_no_zero(method):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 2)), torch.randn(1, 5)
    with torch.no_grad():
        model[2].bias.copy_(torch.tensor([30.0, 0.0]))
    truth = per_example_trace(model, x, resolve_layers(model))
    found = fisher_trace(copy.deepcopy(model).half(), [x.half()], labels="exact", method=method).values
    torch.testing.assert_close(found, truth, rtol=0.1, atol=0.0)


def test_padding_on_the_left_says_nothing():
    config = LlamaConfig(vocab_size=30, attn_implementation="eager", **SMALL)
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    ids, pad = torch.randint(8, 30, (3, 5)), torch.full((3, 3), 7)
    ones, none = torch.ones(3, 5, dtype=torch.long), torch.zeros(3, 3, dtype=torch.long)
    places = torch.cat([none, torch.arange(5).expand(3, 5)], dim=1)
    bare = {"input_ids": ids, "attention_mask": ones, "position_ids": torch.arange(5).expand(3, 5)}
    left = {
        "input_ids": torch.cat([pad, ids], dim=1),
        "attention_mask": torch.cat([none, ones], dim=1),
        "position_ids": places,
    }
    a, b = (exact(model, x, layers=r"layers\.(\d+)\.") for x in (bare, left))
    torch.testing.assert_close(a, b, rtol=1e-3, atol=0.0)


def test_no_label_is_not_the_first_class():
    y = torch.tensor([0, -100, 1, -100])
    with pytest.raises(ValueError, match="some examples have label -100"):
        fisher_trace(nn.Linear(3, 2), [(torch.randn(4, 3), y)], labels="empirical")
