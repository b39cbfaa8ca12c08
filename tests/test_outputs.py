"""What a model's output means: which likelihood is found, which positions count, which inputs a batch may have."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import adapters
import peft
import pytest
import torch
import transformers
from oracle import per_example_trace
from torch import Tensor, nn
from torch.nn.functional import logsigmoid
from zoo import SMALL, tokens

import fisherdyn
from fisherdyn import fisher_trace
from fisherdyn.layers import resolve_layers
from fisherdyn.likelihoods import LIKELIHOODS

V = 12
"""The vocabulary."""
BERT = {"vocab_size": V, "attn_implementation": "eager", **SMALL}
BLOCKS = r"layer\.(\d+)\.output"


def loop(model: nn.Module, layers: Any, rows: list[Tensor], terms: Callable[[Tensor], list[Tensor]]) -> Tensor:
    """(examples, layers): the sum over the independent log p that `terms` makes of each row, of p ||grad log p||^2."""
    names = resolve_layers(model, layers)
    wanted = [[model.get_parameter(name) for name in group] for group in names.values()]
    found = torch.zeros(len(rows), len(wanted), dtype=torch.float64)
    for i, row in enumerate(rows):
        for log_p in terms(row):
            for layer, weights in enumerate(wanted):
                gradients = torch.autograd.grad(log_p, weights, retain_graph=True, allow_unused=True)
                found[i, layer] += log_p.detach().exp() * sum(g.square().sum() for g in gradients if g is not None)
    return found


def softmaxes(f: Tensor) -> list[Tensor]:
    return list(f.log_softmax(dim=-1).flatten())


def bernoullis(f: Tensor) -> list[Tensor]:
    return [*logsigmoid(f).flatten(), *logsigmoid(-f).flatten()]


def alone(batch: dict[str, Tensor], i: int) -> dict[str, Tensor]:
    return {name: x[i : i + 1] for name, x in batch.items()}


def in_the_loss(model: nn.Module, batch: dict[str, Tensor], labels: Tensor) -> list[Tensor]:
    """Each example's logits at the positions that the model's own loss reads."""
    rows = []
    for i in range(len(labels)):
        output = model(**alone(batch, i), labels=labels[i : i + 1])
        (gradient,) = torch.autograd.grad(output.loss, output.logits, retain_graph=True)
        rows.append(output.logits[0, gradient[0].abs().sum(dim=1) > 0])
    return rows


def exact(model: nn.Module, batch: Any, layers: Any, **options: Any) -> fisherdyn.fisher.trace.FisherTrace:
    return fisher_trace(model, [batch], layers=layers, labels="exact", **options)


def same(found: Tensor, expected: Tensor, rtol: float = 1e-9) -> None:
    assert expected.min() > 0
    torch.testing.assert_close(found, expected, rtol=rtol, atol=0.0)


# Which positions count


def _gpt2() -> nn.Module:
    config = transformers.GPT2Config(vocab_size=V, n_embd=16, n_layer=1, n_head=2, attn_implementation="eager")
    return transformers.GPT2LMHeadModel(config)


PROMPTS = {
    "prompt": peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    "p-tuning": peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, encoder_hidden_size=8),
    "prefix": peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
}


@pytest.mark.parametrize("kind", PROMPTS)
def test_virtual_tokens_stand_before_the_mask_and_the_labels(kind):
    torch.manual_seed(0)
    model = peft.get_peft_model(_gpt2(), PROMPTS[kind]).double().eval().requires_grad_(True)
    batch, layers = tokens(3, 5, V), r"h\.(\d+)\.mlp"
    labels = torch.where(batch["attention_mask"] > 0, batch["input_ids"], -100)
    expected = loop(model, layers, in_the_loss(model, batch, labels), softmaxes)
    found = exact(model, batch, layers)
    assert found.likelihood == "causal_lm"
    same(found.values, expected)
    same(exact(model, {**batch, "labels": labels}, layers).values, expected)
    of_the_labels = fisher_trace(model, [{**batch, "labels": labels}], layers=layers, labels="empirical").values
    for i in range(3):  # the loss is the mean over the labels, and tr(F) that of the sum
        loss = (
            model(**alone(batch, i), labels=labels[i : i + 1]).loss
            * (labels[i, 0 if kind != "prefix" else 1 :] >= 0).sum()
        )
        weights = [p.requires_grad_() for name, p in model.named_parameters() if ".h.0.mlp" in name]
        squares = sum(g.square().sum() for g in torch.autograd.grad(loss, weights))
        same(of_the_labels[i, 0], squares, 1e-6)  # the loss is in float32


def test_virtual_tokens_of_a_tagger_have_no_label():
    torch.manual_seed(0)
    config = peft.PromptTuningConfig(task_type="TOKEN_CLS", num_virtual_tokens=3)
    base = transformers.BertForTokenClassification(transformers.BertConfig(num_labels=3, **BERT))
    model = peft.get_peft_model(base, config).double().eval().requires_grad_(True)
    batch, layers = tokens(3, 5, V), r"layer\.(\d+)\.output"
    rows = [model(**alone(batch, i)).logits[0, 3:][batch["attention_mask"][i].bool()] for i in range(3)]
    found = exact(model, batch, layers)
    assert found.likelihood == "token"
    same(found.values, loop(model, layers, rows, softmaxes))


def _t5() -> nn.Module:
    config = transformers.T5Config(
        vocab_size=V, d_model=16, d_kv=8, d_ff=20, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    return transformers.T5ForConditionalGeneration(config)


def _bart() -> nn.Module:
    size = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "attn_implementation": "eager"}
    return transformers.BartForConditionalGeneration(
        transformers.BartConfig(vocab_size=V, pad_token_id=0, decoder_start_token_id=2, **size, **heads)
    )


DECODERS = {"t5": (_t5, r"(DenseReluDense)", 1e-4), "bart": (_bart, r"layers\.0\.(fc1)", 1e-9)}
"""T5's norms are float32 whatever they are given."""


@pytest.mark.parametrize("length", [4, 5])  # other than the encoder's, and the same
@pytest.mark.parametrize("kind", DECODERS)
def test_decoders_read_and_count_the_labels(kind, length):
    torch.manual_seed(0)
    make, layers, rtol = DECODERS[kind]
    model, batch = make().double().eval(), tokens(3, 5, V)
    labels = torch.randint(3, V, (3, length))
    labels[1, 2:] = -100
    expected = loop(model, layers, in_the_loss(model, batch, labels), softmaxes)
    found = exact(model, {**batch, "labels": labels}, layers)
    assert found.likelihood == "token"
    same(found.values, expected, rtol)
    ids = model.prepare_decoder_input_ids_from_labels(labels=labels)
    decoder = {"decoder_input_ids": ids, "decoder_attention_mask": (labels >= 0).long()}
    rows = [model(**alone({**batch, **decoder}, i)).logits[0, labels[i] >= 0] for i in range(3)]
    same(exact(model, {**batch, **decoder}, layers).values, loop(model, layers, rows, softmaxes), rtol)
    with pytest.raises(ValueError, match="give the batch labels or decoder_input_ids"):
        exact(model, batch, layers)
    with pytest.raises(ValueError, match='pass likelihood="token"'):
        exact(model, {**batch, "labels": labels}, layers, likelihood="causal_lm")


def test_a_prompt_of_adapters_needs_labels_that_say_what_counts():
    torch.manual_seed(0)
    model = adapters.AutoAdapterModel.from_config(transformers.BertConfig(**BERT))
    model.add_tagging_head("head", num_labels=3)
    model.add_adapter("task", config=adapters.PromptTuningConfig(prompt_length=2))
    model.set_active_adapters("task")
    model, batch = model.double().eval(), tokens(3, 5, V)
    with pytest.raises(ValueError, match=r"mask of shape \(3, 5\) do not say .* give it labels of shape \(3, 7\)"):
        exact(model, batch, BLOCKS)
    labels = nn.functional.pad(batch["attention_mask"] - 1, (2, 0), value=-1) * 100
    rows = [model(**alone(batch, i)).logits[0, labels[i] >= 0] for i in range(3)]
    same(exact(model, {**batch, "labels": labels}, BLOCKS).values, loop(model, BLOCKS, rows, softmaxes))


class Registers(nn.Module):
    """Two positions of its own after the text."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(V, 6), nn.Linear(6, V)
        self.more = nn.Parameter(torch.randn(1, 2, 6))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        h = torch.cat(
            [self.embed(input_ids) * attention_mask[..., None], self.more.expand(len(input_ids), 2, 6)], dim=1
        )
        return self.head((h + h.mean(dim=1, keepdim=True)).tanh())


@pytest.mark.parametrize("likelihood", ["token", "causal_lm"])
def test_a_mask_that_does_not_fit_is_refused_and_labels_say_what_counts(likelihood):
    torch.manual_seed(0)
    model, batch = Registers().double(), tokens(3, 5, V)
    for unfit in (batch, {**batch, "labels": batch["input_ids"]}):
        with pytest.raises(
            ValueError, match=r"of shape \(3, 5\) do not say .* give it labels of shape \(3, 7\), with -100"
        ):
            exact(model, unfit, r"(head)", likelihood=likelihood)
    labels = nn.functional.pad(torch.where(batch["attention_mask"] > 0, batch["input_ids"], -100), (0, 2), value=-100)
    counted = labels >= 0 if likelihood == "token" else nn.functional.pad(labels[:, 1:] >= 0, (0, 1))
    rows = [model(**alone(batch, i))[0, counted[i]] for i in range(3)]
    found = exact(model, {**batch, "labels": labels}, r"(head)", likelihood=likelihood)
    same(found.values, loop(model, r"(head)", rows, softmaxes))


# Which likelihood


def _classifier(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    return transformers.BertForSequenceClassification(transformers.BertConfig(**{"num_labels": 3, **BERT, **options}))


def test_float_labels_are_several_labels_before_and_after_the_first_loss():
    model, batch = _classifier().double().eval(), {**tokens(3, 5, V), "labels": torch.eye(3)}
    inputs = {name: x for name, x in batch.items() if name != "labels"}
    before = exact(model, batch, BLOCKS)
    rows = [model(**alone(inputs, i)).logits for i in range(3)]
    same(before.values, loop(model, BLOCKS, rows, bernoullis))
    with pytest.raises(ValueError, match="say which it is, likelihood='bernoulli' or likelihood='categorical'"):
        fisher_trace(model, [batch, inputs], layers=BLOCKS)
    with pytest.raises(ValueError, match="'categorical' before and as 'bernoulli' now"):
        fisherdyn.probe(model, {"a": [inputs], "b": [batch]}, layers=BLOCKS)
    named = fisher_trace(model, [batch, inputs], layers=BLOCKS, labels="exact", likelihood="bernoulli")
    same(named.values[3:], before.values)
    model(**{**batch, "labels": batch["labels"].double()})  # Hugging Face's own loss notes the problem
    after = exact(model, inputs, BLOCKS)
    assert before.likelihood == after.likelihood == "bernoulli"
    same(after.values, before.values)
    assert exact(_classifier(), {**inputs, "labels": torch.arange(3)}, BLOCKS).likelihood == "categorical"
    assert exact(_classifier(num_labels=1), {**inputs, "labels": torch.arange(3)}, BLOCKS).likelihood == "gaussian"


def test_a_recording_has_one_likelihood():
    model, batch = _classifier(), {**tokens(3, 5, V), "labels": torch.eye(3)}
    inputs = {name: x for name, x in batch.items() if name != "labels"}
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(ValueError, match="step 1: the logits were read as 'categorical' before and as 'bernoulli' now"):
        _train(model, optimizer, inputs, batch)
    model.config.problem_type = None
    assert _train(model, optimizer, inputs, batch, likelihood="bernoulli").attrs["likelihood"] == "bernoulli"


def _train(model: nn.Module, optimizer: Any, inputs: Any, batch: Any, **options: Any) -> Any:
    with fisherdyn.Recorder(model, [inputs], every=1, layers=BLOCKS, **options).attach(optimizer) as recorder:
        for _ in range(2):
            optimizer.step()
            model(**batch).loss.backward()
    return recorder.dataset


HEADS = {
    "classification": ({"num_labels": 3}, "categorical", softmaxes),
    "classification ": ({"num_labels": 3, "multilabel": True}, "bernoulli", bernoullis),
    "tagging": ({"num_labels": 3}, "token", softmaxes),
    "causal_lm": ({}, "causal_lm", softmaxes),
    "masked_lm": ({}, "token", softmaxes),
}


@pytest.mark.parametrize("head", HEADS)
def test_heads_of_adapters_say_what_they_are(head):
    torch.manual_seed(0)
    options, name, terms = HEADS[head]
    model = adapters.AutoAdapterModel.from_config(transformers.BertConfig(**BERT))
    getattr(model, f"add_{head.strip()}_head")("head", **options)
    model, batch = model.double().eval(), tokens(3, 5, V)
    found = exact(model, batch, BLOCKS)
    assert found.likelihood == name
    rows = [model(**alone(batch, i)).logits[0] for i in range(3)]
    if name in ("token", "causal_lm"):
        lengths = batch["attention_mask"].sum(dim=1) - int(name == "causal_lm")
        rows = [row[:length] for row, length in zip(rows, lengths, strict=True)]
    same(found.values, loop(model, BLOCKS, rows, terms))


class OwnTagger(nn.Module):
    """Three tags from the logits of a language model inside."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.head = _gpt2(), nn.Linear(V, 3)

    def forward(self, **batch: Tensor) -> Tensor:
        return self.head(self.inside(**batch).logits)


def test_a_model_inside_does_not_say_what_the_logits_mean():
    torch.manual_seed(0)
    model, batch = OwnTagger().double().eval(), tokens(3, 5, V)
    with pytest.raises(ValueError, match='pass likelihood="token", "causal_lm"'):
        exact(model, batch, r"(head)")
    rows = [model(**alone(batch, i))[0, batch["attention_mask"][i].bool()] for i in range(3)]
    same(exact(model, batch, r"(head)", likelihood="token").values, loop(model, r"(head)", rows, softmaxes))


def test_a_problem_type_left_over_does_not_make_a_tagger_a_regression():
    torch.manual_seed(0)
    config = transformers.BertConfig(num_labels=3, problem_type="regression", **BERT)
    model, batch = transformers.BertForTokenClassification(config).double().eval(), tokens(3, 5, V)
    rows = [model(**alone(batch, i)).logits[0, batch["attention_mask"][i].bool()] for i in range(3)]
    found = exact(model, batch, BLOCKS)
    assert found.likelihood == "token"
    same(found.values, loop(model, BLOCKS, rows, softmaxes))


class Pair(nn.Module):
    def __init__(self, order: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head, self.order = nn.Linear(4, 5), nn.Linear(5, 3), order

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor] | Tensor:
        h = self.body(x).tanh()
        f = self.head(h)
        return {"features first": (h, f), "logits first": (f, h), "probabilities": (f, f.softmax(dim=1)), "one": f}[
            self.order
        ]


@pytest.mark.parametrize("method", ["hooks", "vmap"])
@pytest.mark.parametrize("likelihood", [None, "categorical"])
def test_features_before_logits_are_refused(likelihood, method):
    x = torch.randn(4, 4).double()
    with pytest.raises(
        ValueError, match=r"expected logits first .*got \(\d, 5\), from which entry 1 of shape \(\d, 3\) is made"
    ):
        exact(Pair("features first").double(), x, None, likelihood=likelihood, method=method)
    expected = per_example_trace(Pair("one").double(), x, resolve_layers(Pair("one"), None))
    for order in ("logits first", "probabilities"):
        same(exact(Pair(order).double(), x, None, likelihood=likelihood, method=method).values, expected)


# Segmentation, frames, answers


class Segmenter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).tanh())


def test_pixels():
    model, x = Segmenter().double(), torch.randn(3, 2, 2, 3).double()
    with pytest.raises(ValueError, match='pass likelihood="pixel" or "gaussian"'):
        exact(model, x, None)
    rows = [model(x[i : i + 1])[0].permute(1, 2, 0) for i in range(3)]
    for method in ("hooks", "vmap"):
        found = exact(model, x, None, likelihood="pixel", method=method)
        same(found.values, loop(model, None, [row.reshape(-1, 3) for row in rows], softmaxes))
    y = torch.randint(3, (3, 2, 3))
    y[:, 0, 1:] = 255
    counted = [row[y[i] < 255] for i, row in enumerate(rows)]
    same(exact(model, (x, y), None, likelihood="pixel").values, loop(model, None, counted, softmaxes))
    coarse = torch.zeros(3, 4, 6, dtype=torch.long)  # of another resolution: all pixels of the logits count
    same(exact(model, (x, coarse), None, likelihood="pixel").values, found.values)


def test_segmentation_is_found_from_the_class():
    torch.manual_seed(0)
    config = transformers.SegformerConfig(
        num_encoder_blocks=1, depths=[1], sr_ratios=[1], hidden_sizes=[8], num_attention_heads=[1], patch_sizes=[3],
        strides=[4], mlp_ratios=[1], decoder_hidden_size=8, num_labels=3,
    )  # fmt: skip
    model = transformers.SegformerForSemanticSegmentation(config).double().eval()
    x = torch.randn(2, 3, 8, 8).double()
    found = exact(
        model, {"pixel_values": x, "labels": torch.zeros(2, 8, 8, dtype=torch.long)}, r"(linear_fuse|classifier)"
    )
    assert found.likelihood == "pixel"
    rows = [model(x[i : i + 1]).logits[0].permute(1, 2, 0).reshape(-1, 3) for i in range(2)]
    same(found.values, loop(model, r"(linear_fuse|classifier)", rows, softmaxes))


class SpeechForCTC(nn.Module):
    """Frames of two samples."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Conv1d(1, 4, 2, stride=2), nn.Linear(4, V)

    def forward(self, input_values: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        x = (input_values * attention_mask)[:, None]
        return SimpleNamespace(logits=self.head(self.body(x).mT.tanh()))


def test_frames_of_speech_are_measured_as_tokens():
    model = SpeechForCTC().double()
    batch = {
        "input_values": torch.randn(3, 8).double(),
        "attention_mask": torch.ones(3, 8),
        "labels": torch.ones(3, 2).long(),
    }
    with pytest.raises(ValueError, match=r'SpeechForCTC sums over alignments .*likelihood="token", and labels'):
        exact(model, batch, None)
    with pytest.raises(ValueError, match=r"give it labels of shape \(3, 4\)"):
        exact(model, batch, None, likelihood="token")
    batch["labels"] = torch.tensor([[0, 0, 0, 0], [0, 0, 0, -100], [0, 0, -100, -100]])
    inputs = {name: x for name, x in batch.items() if name != "labels"}
    rows = [model(**alone(inputs, i)).logits[0, batch["labels"][i] >= 0] for i in range(3)]
    same(exact(model, batch, None, likelihood="token").values, loop(model, None, rows, softmaxes))


class ImagesForQuestionAnswering(Pair):
    def forward(self, x: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=super().forward(x))


def test_answers_to_choose_from_are_no_span():
    model, x = ImagesForQuestionAnswering("one").double(), torch.randn(3, 4).double()
    with pytest.raises(ValueError, match='pass likelihood="bernoulli" or "categorical"'):
        exact(model, {"x": x}, None)
    rows = [model(x[i : i + 1]).logits for i in range(3)]
    same(exact(model, {"x": x}, None, likelihood="bernoulli").values, loop(model, None, rows, bernoullis))


# Inputs


class Nested(Pair):
    """Of a dict that has a list, as argument or by name."""

    def forward(self, x: dict[str, Any]) -> Tensor:
        return self.head((self.body(x["a"]) * x["scale"] + self.body(x["b"][0])).tanh())


@pytest.mark.parametrize("method", ["hooks", "vmap", "batch"])
def test_nested_inputs(method):
    model, a, b = Nested("one").double(), torch.randn(3, 4).double(), torch.randn(3, 4).double()
    nested = {"a": a, "b": [b], "scale": 2.0}
    rows = [model({"a": a[i : i + 1], "b": [b[i : i + 1]], "scale": 2.0}) for i in range(3)]
    expected = loop(model, None, rows, softmaxes)
    batches = [{"x": nested, "labels": torch.zeros(3)}, {"x": nested}]
    if method != "vmap":
        batches.append(({"x": nested}, torch.zeros(3)))
    for batch in batches:
        found = fisher_trace(model, [batch], labels="exact", method=method)
        if method == "batch":
            assert (found.trace > 0).all()
        else:
            same(found.values, expected)
    assert not fisherdyn.verify(model, batches[0]).wrong
    with pytest.raises(ValueError, match=r"share one batch dimension .*lengths \[2, 3\]"):
        fisher_trace(model, [{"x": {**nested, "b": [b[:2]]}}])


def test_a_pair_of_inputs_by_name_and_labels():
    model, batch = _classifier().double().eval(), tokens(3, 5, V)
    expected = exact(model, batch, BLOCKS).values
    encoding = transformers.BatchEncoding(batch)
    for pair in ((batch, torch.zeros(3).long()), [encoding, torch.zeros(3).long()], (encoding,), encoding):
        same(exact(model, pair, BLOCKS).values, expected)
    assert not fisherdyn.verify(model, (encoding, torch.zeros(3).long()), layers=BLOCKS).wrong
    y = torch.tensor([0, 2, 1])
    by_pair, by_name = (
        fisher_trace(model, [b], layers=BLOCKS, labels="empirical") for b in ((batch, y), {**batch, "labels": y})
    )
    same(by_pair.values, by_name.values)


def test_a_jagged_batch_is_refused_and_measured_one_by_one():
    class Mean(Pair):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.mean(dim=1))

    model = Mean("one").double()
    rows = [torch.randn(n, 4).double() for n in (2, 3, 5)]
    jagged = torch.nested.nested_tensor(rows, layout=torch.jagged)
    with pytest.raises(ValueError, match=r"give batches of one example, x\[None\] for x in tensor.unbind\(\)"):
        exact(model, jagged, None)
    found = fisher_trace(model, [x[None] for x in jagged.unbind()], labels="exact")
    same(found.values, loop(model, None, [model(x[None]) for x in rows], softmaxes))


# Shapes of the output


@pytest.mark.parametrize("method", ["hooks", "vmap"])
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_one_number_an_example(likelihood, method):
    torch.manual_seed(0)

    class Number(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)[:, 0]

    model, x = Number(4, 1).double(), torch.randn(3, 4).double()
    found = exact(model, x, None, likelihood=likelihood, method=method).values.sum(dim=1, keepdim=True)
    p = model(x).sigmoid().detach() if likelihood == "bernoulli" else torch.full((3,), 0.5).double()
    variance = p * (1 - p) if likelihood == "bernoulli" else torch.ones(3).double()
    same(found[:, 0], variance * (x.square().sum(dim=1) + 1))
    y = torch.tensor([0.0, 1.0, 1.0])
    for targets in (y, y[:, None]):
        how = {"likelihood": likelihood, "method": method, "labels": "empirical"}
        found = fisher_trace(model, [(x, targets)], **how).values.sum(dim=1, keepdim=True)
        residual = y - (p if likelihood == "bernoulli" else model(x).detach())
        same(found[:, 0], residual.square() * (x.square().sum(dim=1) + 1))
    with pytest.raises(ValueError, match=r"in shape \(3, 1\), got shape \(1, 3\)"):
        fisher_trace(model, [(x, y[None])], likelihood=likelihood, labels="empirical", check="never")


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian", "categorical"])
def test_a_single_number_is_refused(likelihood):
    class Loss(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).mean()

    with pytest.raises(ValueError, match=r"one row for each of 3 example\(s\), got shape \(\)"):
        exact(Loss(4, 2), torch.randn(3, 4), None, likelihood=likelihood)


@pytest.mark.parametrize("method", ["hooks", "vmap"])
def test_positions_first_are_refused_even_where_there_are_as_many_as_examples(method):
    class PositionsFirst(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).transpose(0, 1)

    torch.manual_seed(0)
    model, x = PositionsFirst(4, 3).double(), torch.randn(5, 5, 4).double()
    with pytest.raises(
        ValueError, match=r"for each of 1 example\(s\), got shape \(5, 1, 3\): .* batch dimension first"
    ):
        exact(model, x, None, likelihood="token", method=method)

    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside = model

        def forward(self, x: Tensor) -> Tensor:
            return self.inside(x).transpose(0, 1)

    found = exact(Positions(), x, r"(weight|bias)", likelihood="token", method=method).values
    same(found, loop(model, None, [model(x[i : i + 1])[:, 0] for i in range(5)], softmaxes))


# Precision


def test_scores_of_confident_models_keep_their_precision():
    """The own label's entry is 1 - p: in float32 it would be 0 where p is within 6e-8 of 1."""
    f = torch.tensor([[25.0, 0.0, -1.0]])
    (c,) = fisherdyn.labels.find_labels("argmax").cotangents(LIKELIHOODS["categorical"](), f, torch.Generator())
    p = f[0].double().softmax(dim=0)
    same(c[0, :1].double(), p[1:].sum()[None], 1e-5)
    assert (1 - f.softmax(dim=1))[0, 0] == 0
    (c,) = fisherdyn.labels.find_labels("argmax").cotangents(LIKELIHOODS["bernoulli"](), f, torch.Generator())
    same(c[0, :1].double(), (-f[0, :1].double()).sigmoid(), 1e-5)


def test_noise_of_a_regression_is_not_lost_in_large_outputs(generator):
    f = torch.full((20_000, 1), 1e8)
    likelihood = LIKELIHOODS["gaussian"](0.5)
    (c,) = fisherdyn.labels.find_labels("mc").cotangents(likelihood, f, generator)
    squares = c.double().square()
    assert abs(squares.mean() - 4) < 4 * squares.std() / len(f) ** 0.5
    lost = likelihood.score(f, likelihood.sample(f, generator), None)  # negative control: by way of y
    assert lost.eq(0).all()
