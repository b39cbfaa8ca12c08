"""Families of models whose weights are shared, whose tokens are routed or whose batch is hidden, against plain autograd.

The labels are given, so that the truth is one backward pass for each example.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
import transformers as hf
from oracle import Layers, per_example_trace
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import rnn

from fisherdyn import fisher_trace
from fisherdyn.fisher.rules import BUDGET, find_rule, lookup
from fisherdyn.fisher.tied import TiedWeight, Use
from fisherdyn.layers import find_layers, resolve_layers

SMALL = {"hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2}
MOST = {**SMALL, "vocab_size": 30, "num_key_value_heads": 2, "pad_token_id": 0}
T5 = {"vocab_size": 30, "d_model": 16, "d_kv": 8, "d_ff": 20, "num_layers": 2, "num_heads": 2}
BART = {
    "vocab_size": 30, "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 20, "decoder_ffn_dim": 20, "max_position_embeddings": 16,
    "scale_embedding": True, "pad_token_id": 0,
}  # fmt: skip
MLA = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
EXPERTS = {"n_routed_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 12, "n_shared_experts": 1}


def sums(model: nn.Module, batch: dict[str, Tensor], layers: Layers, causal: bool) -> Tensor:
    """(examples, layers) ||grad of sum_t log p(y_t | x)||^2, one example after the other."""
    model, rows = model.eval().requires_grad_(True), []
    for i in range(len(batch["labels"])):
        alone = {name: x[i : i + 1] for name, x in batch.items()}
        y = alone.pop("labels")
        logits = model(**alone).logits
        if causal:
            logits, y = logits[:, :-1], y[:, 1:]
        model.zero_grad()
        cross_entropy(logits.flatten(0, -2), y.flatten(), ignore_index=-100, reduction="sum").backward()
        gradients = [[model.get_parameter(name).grad for name in names] for names in layers.values()]
        rows.append(torch.stack([_square_sum(layer) for layer in gradients]))
    return torch.stack(rows)


def _square_sum(gradients: list[Tensor | None]) -> Tensor:
    return sum((g.square().sum() for g in gradients if g is not None), torch.zeros((), dtype=torch.float64))


def text(batch: int = 4, length: int = 6) -> dict[str, Tensor]:
    ids, mask = torch.randint(5, 30, (batch, length)), torch.ones(batch, length, dtype=torch.long)
    mask[1:2, -1] = mask[2:3, -2:] = 0
    return {"input_ids": ids * mask, "attention_mask": mask, "labels": torch.where(mask > 0, ids, -100)}


def both_texts() -> dict[str, Tensor]:
    return {**text(), "decoder_input_ids": torch.randint(5, 30, (4, 5)), "labels": torch.randint(5, 30, (4, 5))}


def moe(model: type, config: type, **options: object) -> Callable[[], nn.Module]:
    return lambda: model(config(**MOST, **options))


FAST: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "gpt2": ("causal_lm", lambda: hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=30, n_embd=16, n_layer=2, n_head=2))),
    "bert": ("token", lambda: hf.BertForMaskedLM(hf.BertConfig(vocab_size=30, **SMALL))),
    "albert": ("token", lambda: hf.AlbertForMaskedLM(hf.AlbertConfig(vocab_size=30, embedding_size=8, **SMALL))),
    "electra": ("token", lambda: hf.ElectraForMaskedLM(hf.ElectraConfig(vocab_size=30, embedding_size=8, **SMALL))),
    "opt": ("causal_lm", lambda: hf.OPTForCausalLM(hf.OPTConfig(
        vocab_size=30, hidden_size=16, ffn_dim=20, num_hidden_layers=2, num_attention_heads=2, word_embed_proj_dim=8,
    ))),
    "llama": ("causal_lm", lambda: hf.LlamaForCausalLM(hf.LlamaConfig(tie_word_embeddings=True, **MOST))),
    "gemma3": ("causal_lm", lambda: hf.Gemma3ForCausalLM(hf.Gemma3TextConfig(head_dim=8, **MOST))),
    "mixtral": ("causal_lm", moe(hf.MixtralForCausalLM, hf.MixtralConfig, num_local_experts=4)),
    "qwen2_moe": ("causal_lm", moe(
        hf.Qwen2MoeForCausalLM, hf.Qwen2MoeConfig, num_experts=6, num_experts_per_tok=2, moe_intermediate_size=12,
        shared_expert_intermediate_size=12,
    )),
    "deepseek_v2": ("causal_lm", moe(
        hf.DeepseekV2ForCausalLM, hf.DeepseekV2Config, first_k_dense_replace=1, topk_method="greedy", n_group=None,
        **EXPERTS, **MLA,
    )),
    "jamba": ("causal_lm", moe(
        hf.JambaForCausalLM, hf.JambaConfig, use_mamba_kernels=False, num_experts=2, attn_layer_period=2,
        attn_layer_offset=1, mamba_d_state=4, mamba_dt_rank=4,
    )),
}  # fmt: skip

SLOW: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "t5": ("token", lambda: hf.T5ForConditionalGeneration(hf.T5Config(**T5))),
    "bart": ("token", lambda: hf.BartForConditionalGeneration(hf.BartConfig(**BART))),
    "gpt_oss": ("causal_lm", moe(
        hf.GptOssForCausalLM, hf.GptOssConfig, num_local_experts=4, num_experts_per_tok=2, head_dim=8
    )),
    "recurrent_gemma": ("causal_lm", lambda: hf.RecurrentGemmaForCausalLM(hf.RecurrentGemmaConfig(
        vocab_size=30, hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, lru_width=16,
        attention_window_size=8,
    ))),
    "mamba": ("causal_lm", lambda: hf.MambaForCausalLM(hf.MambaConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=2, state_size=4
    ))),
    "switch": ("token", lambda: hf.SwitchTransformersForConditionalGeneration(hf.SwitchTransformersConfig(
        num_experts=4, num_sparse_encoder_layers=1, num_sparse_decoder_layers=1, **T5
    ))),
}  # fmt: skip
SINGLE_INSIDE = {"llama", "gemma3", "mixtral", "qwen2_moe", "deepseek_v2", "jamba", "t5", "gpt_oss", "switch"}
SINGLE_INSIDE |= {"recurrent_gemma", "mamba"}


@pytest.mark.parametrize("name", [*FAST, *SLOW])
def test_families_are_measured_with_the_layers_that_are_found(name):
    torch.manual_seed(0)
    likelihood, make = FAST[name] if name in FAST else SLOW[name]
    model = make().double().eval()
    batch = both_texts() if "decoder_attention_heads" in model.config.to_dict() or name in ("t5", "switch") else text()
    layers = find_layers(model)
    slowly = pytest.warns(UserWarning, match="one example at a time") if name in SLOW else nullcontext()
    with slowly:
        found = fisher_trace(model, [batch], labels="empirical", likelihood=likelihood)
    tolerance = 1e-5 if name in SINGLE_INSIDE else 1e-9
    truth = sums(model, batch, layers, causal=likelihood == "causal_lm")
    torch.testing.assert_close(found.values, truth, rtol=tolerance, atol=tolerance * 1e-4)
    assert found.trace.min() > 0


@pytest.mark.filterwarnings("ignore:layer.*exactly 0")  # experts that no token of the few comes to
@pytest.mark.parametrize("batch", [1, 2, 3])
def test_experts_whatever_tokens_they_get(batch):
    """One token, none, or as many for each example by chance: with one layer for each expert."""
    torch.manual_seed(1)
    model = moe(hf.MixtralForCausalLM, hf.MixtralConfig, num_local_experts=8)().double().eval()
    layers = resolve_layers(model, r"(layers\.\d+\.block_sparse_moe\.(?:experts\.\d+|gate))")
    batches = [text(batch, 3) for _ in range(3)]
    found = fisher_trace(model, batches, layers=layers, labels="empirical")
    truth = torch.cat([sums(model, one, layers, causal=True) for one in batches])
    torch.testing.assert_close(found.values, truth, rtol=1e-5, atol=1e-9)
    assert (found.values == 0).any()  # an expert was idle
    assert not (found.values == 0).all(dim=0).all()


class Tied(nn.Module):
    """Every kind of use of one weight, and of one scale and one shift."""

    def __init__(self, vocabulary: int = 9) -> None:
        super().__init__()
        self.first, self.second = nn.Embedding(vocabulary, 6), nn.Embedding(vocabulary, 6, padding_idx=2)
        self.body, self.again, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, vocabulary)
        self.norm, self.other = nn.LayerNorm(6), nn.LayerNorm(6)
        self.second.weight = self.head.weight = self.first.weight
        self.again.weight = self.body.weight
        self.other.weight, self.other.bias = self.norm.weight, self.norm.bias

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.body(self.first(x)).tanh()) + self.other(self.again(self.second(x.flip(1))).sin())
        return self.head(h).mean(dim=1)


def plain(model: nn.Module, x: Tensor, y: Tensor, layers: Layers) -> Tensor:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside = model

        def forward(self, x: Tensor) -> object:
            return hf.utils.ModelOutput(logits=model(x))

        def get_parameter(self, target: str) -> nn.Parameter:
            return model.get_parameter(target)

    return sums(Named(), {"x": x, "labels": y}, layers, causal=False)


@pytest.mark.parametrize("budget", [1, BUDGET])
def test_all_uses_of_a_weight_add_before_the_square(budget, monkeypatch):
    monkeypatch.setattr("fisherdyn.fisher.rules.BUDGET", budget)  # in chunks of one example, too
    torch.manual_seed(0)
    model, x, y = Tied().double(), torch.randint(9, (5, 4)), torch.randint(9, (5,))
    layers = {name: (name,) for name, _ in model.named_parameters()}
    found = fisher_trace(model, [(x, y)], layers=layers, labels="empirical")
    truth = plain(model, x, y, layers)
    torch.testing.assert_close(found.values, truth, rtol=1e-9, atol=1e-16)
    apart = plain(_untied(model), x, y, {"all": ("first.weight", "second.weight", "head.weight")})
    assert not torch.allclose(apart[:, 0], truth[:, list(layers).index("first.weight")], rtol=0.1)


def _untied(model: Tied) -> nn.Module:
    other = Tied().double()
    for name in ("second", "head", "again", "other"):
        module = getattr(other, name)
        module.weight = nn.Parameter(module.weight.detach().clone())
    other.other.bias = nn.Parameter(other.other.bias.detach().clone())
    other.load_state_dict(model.state_dict())
    return other


def test_uses_that_cancel_keep_their_digits():
    """The head's gradient is the negative of the embedding's, but for a thousandth."""
    torch.manual_seed(0)
    tokens, d = torch.randint(7, (3, 5)), torch.randn(3, 5, 4)
    e, a = -torch.nn.functional.one_hot(tokens, 7).float(), 0.999 * d
    weight = TiedWeight(0, "weight")
    embedding, head = nn.Embedding(7, 4), nn.Linear(4, 7)
    weight.add(Use(embedding, find_rule(embedding), "weight", tokens, d))
    weight.add(Use(head, find_rule(head), "weight", a[:, :, None], e[:, :, None]))
    lookups = torch.zeros(3, 7, 4, dtype=torch.float64)
    for i in range(3):
        lookups[i].index_add_(0, tokens[i], d[i].double())
    truth = (lookups + e.double().mT @ a.double()).square().sum(dim=(1, 2))
    torch.testing.assert_close(weight.squared_norms().double(), truth, rtol=1e-3, atol=0.0)


def test_a_recurring_token_keeps_its_digits():
    torch.manual_seed(0)
    embedding, tokens, d = nn.Embedding(7, 4), torch.tensor([[3, 5, 3, 3]]), torch.randn(1, 4, 4)
    d[:, 3] = 1e-4 * d[:, 1] - d[:, 0] - d[:, 2]  # what is left of token 3
    d[:, 1] = 0
    truth = d[0, [0, 2, 3]].double().sum(dim=0).square().sum()
    found = lookup(embedding, tokens, d)["weight"]
    torch.testing.assert_close(found[0].double(), truth, rtol=1e-2, atol=0.0)


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.body, self.head = nn.Embedding(30, 6), nn.LSTM(6, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, input_ids: Tensor, lengths: Tensor) -> Tensor:
        x = rnn.pack_padded_sequence(self.embed(input_ids), lengths, batch_first=True, enforce_sorted=False)
        return self.head(self.body(x)[1][0][-1])


def test_a_packed_lstm_goes_on_by_the_loop():
    torch.manual_seed(0)
    model, batch = Packed().double(), {"input_ids": torch.randint(30, (4, 6)), "lengths": torch.tensor([6, 3, 4, 2])}
    layers = {name: (name,) for name, _ in model.named_parameters()}
    with pytest.warns(UserWarning, match=r"'body' \(LSTM.*PackedSequence"):
        found = fisher_trace(model, [batch], layers=layers, labels="exact")
    torch.testing.assert_close(found.values, per_example_trace(model, batch, layers), rtol=1e-9, atol=1e-16)


@pytest.mark.parametrize("method", ["hooks", "loop", "batch"])
def test_sparse_gradients(method):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 6, sparse=True), nn.Flatten(), nn.Linear(24, 3)).double()
    x, layers = torch.randint(9, (5, 4)), {"0": ("0.weight",), "2": ("2.weight", "2.bias")}
    dense = nn.Sequential(nn.Embedding(9, 6), *model[1:]).double()
    dense.load_state_dict(model.state_dict())
    found = fisher_trace(model, x.split(1), layers=layers, labels="exact", method=method)
    torch.testing.assert_close(found.values, per_example_trace(dense, x, layers), rtol=1e-9, atol=0.0)


def test_integer_parameters_are_left_out_or_refused():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3)).double(), torch.randn(5, 6).double()
    model[0].register_parameter("zero_point", nn.Parameter(torch.zeros(6, dtype=torch.int8), requires_grad=False))
    layers = {"0": ("0.weight", "0.bias"), "2": ("2.weight", "2.bias")}
    assert find_layers(model) == layers
    with pytest.raises(ValueError, match=r"'0.zero_point' is torch.int8, which has no gradient: leave it out"):
        fisher_trace(model, [x], layers={"0": ("0.weight", "0.zero_point")})
    found = fisher_trace(model, [x], labels="exact")
    model[0].zero_point = None
    torch.testing.assert_close(found.values, per_example_trace(model, x, layers), rtol=1e-9, atol=0.0)


@pytest.mark.filterwarnings("ignore:.*quantiz")
@pytest.mark.parametrize("method", ["hooks", "loop", "vmap"])
def test_quantised_modules_are_refused(method):
    """Their scale depends on the whole batch, and they have no gradient."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))
    quantised = torch.ao.quantization.quantize_dynamic(model, {"2"}, dtype=torch.qint8)
    with pytest.raises(ValueError, match=r"'2' .*is quantised, without a gradient: measure what it was made of"):
        fisher_trace(quantised, [torch.randn(5, 6)], method=method)
    assert fisher_trace(model, [torch.randn(5, 6)]).trace.min() > 0


@pytest.mark.parametrize("method", ["hooks", "loop"])
def test_nodes_of_a_graph_are_no_examples(method):
    torch.manual_seed(0)

    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
            h = self.head(adjacency @ self.body(x).tanh())
            return h if x.ndim == 2 else h.mean(dim=1)

    model, x, adjacency = Graph(), torch.randn(7, 6), torch.rand(7, 7)
    with pytest.raises(ValueError, match=r"does not take an example alone.*make the graph the example"):
        fisher_trace(model, [{"x": x, "adjacency": adjacency}], method=method)
    graphs = {"x": torch.stack([x, x.flip(0)]), "adjacency": torch.stack([adjacency] * 2)}
    found = fisher_trace(model, [graphs], labels="exact", method=method)
    truth = per_example_trace(model, graphs, find_layers(model))
    torch.testing.assert_close(found.values, truth, rtol=1e-4, atol=0.0)
