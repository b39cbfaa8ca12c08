"""How a batch is measured: padding, memory, precision, several processes."""

from __future__ import annotations

import copy
import socket

import pytest
import torch
import torch.multiprocessing as mp
import two_processes
from oracle import per_example_trace
from torch import nn
from torch.utils.data import DataLoader, Sampler
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForQuestionAnswering,
    BertForTokenClassification,
    XLNetConfig,
    XLNetForSequenceClassification,
)
from zoo import SMALL, specimen, tokens

from fisherdyn import fisher_trace
from fisherdyn.fisher import batches as batches_module
from fisherdyn.fisher.batches import Rebatcher, count_examples, rows_of
from fisherdyn.fisher.methods import find_method
from fisherdyn.fisher.trace import Measurement
from fisherdyn.labels import LABELS
from fisherdyn.layers import resolve_layers


def _mlp(classes=4, confidence=4.0):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, classes))
    with torch.no_grad():
        model[2].weight.mul_(confidence)
    return model.double()


# Padding


@pytest.fixture(autouse=True)
def padding_is_tried_on_one_text(monkeypatch):
    """So that what is tried is not taken for what is measured: `_lengths` and `_passes` leave out single examples."""
    monkeypatch.setattr("fisherdyn.fisher.padding.MOST_TRIED", 1)


def _lengths(model):
    """The length of every batch that the model is given from now on, but for the single examples of check and proof."""
    seen = []

    def see(module, args, kwargs):
        if len(kwargs["input_ids"]) > 1:
            seen.append(kwargs["input_ids"].shape[1])

    model.register_forward_pre_hook(see, with_kwargs=True)
    return seen


def _padded(inputs, extra=6):
    return {k: torch.cat([v, v.new_zeros(len(v), extra)], dim=1) for k, v in inputs.items()}


def _tagger():
    torch.manual_seed(0)
    config = BertConfig(vocab_size=30, num_labels=3, attn_implementation="eager", **SMALL)
    return BertForTokenClassification(config).double().eval()


@pytest.mark.parametrize("name", ["bert", "roberta", "gpt2", "bottleneck_adapter", "tagger"])
def test_padding_is_cut_and_nothing_changes(name, monkeypatch):
    if name == "tagger":
        model, inputs, layers = _tagger(), tokens(), r"layer\.(\d+)\."
    else:
        it = specimen(name)
        model, inputs, layers = it.model.double(), it.inputs, it.layers
    batch = _padded(inputs)
    seen = _lengths(model)
    found = fisher_trace(model, [batch], layers=layers, labels="exact")
    assert set(seen) == {int(inputs["attention_mask"].sum(dim=1).max())}
    monkeypatch.setattr(Rebatcher, "prepare", lambda self, batch: batch)
    whole = fisher_trace(model, [batch], layers=layers, labels="exact")
    assert seen[-1] == batch["input_ids"].shape[1]
    torch.testing.assert_close(found.values, whole.values, rtol=1e-9, atol=0)


OWN = {
    "albert": {"embedding_size": 16},
    "deberta": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False},
    "distilbert": {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32},
    "electra": {"embedding_size": 16},
    "gpt2": {"n_embd": 16, "n_layer": 1, "n_head": 2},
    "llama": {"num_key_value_heads": 2},
    "mistral": {"num_key_value_heads": 2, "sliding_window": 4},
    "opt": {"ffn_dim": 32, "word_embed_proj_dim": 16},
    "qwen2": {"num_key_value_heads": 2},
    "rembert": {"input_embedding_size": 16, "output_embedding_size": 16},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
}
"""What some kinds call their sizes otherwise, and have beside them."""


def _classifier(kind, **more):
    torch.manual_seed(0)
    size = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "num_labels": 3,
    }
    size |= {"vocab_size": 40, "max_position_embeddings": 40, "pad_token_id": 1}
    config = AutoConfig.for_model(kind, **{**size, **OWN.get(kind, {}), **more})
    return AutoModelForSequenceClassification.from_config(config).double().eval()


def _ragged(columns):
    torch.manual_seed(1)
    mask = (torch.arange(columns) < torch.tensor([9, 7, 3])[:, None]).long()
    ids = torch.randint(2, 40, (3, 9))
    return {"input_ids": torch.where(mask > 0, nn.functional.pad(ids, (0, columns - 9)), 1), "attention_mask": mask}


PLAIN = (
    "albert", "bert", "camembert", "deberta", "deberta-v2", "distilbert", "electra", "ernie", "gpt2", "llama", "mistral",
    "mpnet", "opt", "qwen2", "rembert", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod",
)  # fmt: skip
"""Model types whose tokens meet in attention alone, and there obey the mask."""


def _is_neutral(model):
    options = {"layers": None, "likelihood": None, "check": "never", "generator": None}
    measurement = Measurement(model, labels=LABELS["exact"], method=find_method("hooks"), **options)
    return measurement.rebatcher.neutral(_ragged(9), _ragged(14))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # DeBERTa's
@pytest.mark.parametrize("kind", PLAIN)
def test_padding_changes_nothing_in_plain_models(kind):
    assert _is_neutral(_classifier(kind))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("xlm", {"summary_type": "mean", "emb_dim": 16, "n_layers": 1, "n_heads": 2}),
        ("llama", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}, "max_position_embeddings": 12}),
        ("big_bird", {"block_size": 2, "num_random_blocks": 0}),  # sparse from 14 columns on, until it reads fewer
    ],
)
def test_models_that_pool_or_go_by_the_length_keep_their_padding(kind, more):
    model = _classifier(kind, **more)
    modules = list(model.modules())
    assert not _is_neutral(model)
    assert list(model.modules()) == modules


def test_rotary_frequencies_that_went_by_the_length_are_put_back():
    model = _classifier("llama", rope_scaling={"rope_type": "dynamic", "factor": 2.0}, max_position_embeddings=8)
    frequencies = model.model.rotary_emb.inv_freq
    before = frequencies.clone()
    seen = []
    model.register_forward_hook(lambda *_: seen.append(model.model.rotary_emb.inv_freq.clone()))
    fisher_trace(model, [_ragged(16)], layers=r"layers\.(\d+)\.")
    assert not torch.equal(seen[-1], before)
    assert model.model.rotary_emb.inv_freq is frequencies
    assert torch.equal(frequencies, before)


def test_a_modules_own_cache_stays_whole():
    """A length and what was made for it belong together: one of them put back would be worse than none."""

    class Positions(nn.Linear):
        length, made = 0, ()

        def forward(self, x):
            if x.shape[1] != self.length:
                self.length, self.made = x.shape[1], (torch.arange(x.shape[1]).to(x),)
            return super().forward(x * self.made[0][:, None]).sum(dim=1)

    torch.manual_seed(0)
    model, short, long = Positions(4, 3), torch.randn(2, 5, 4), torch.randn(2, 9, 4)
    before = model(short)
    fisher_trace(model, [long])
    assert torch.equal(model(short), before)


def test_padding_stays_where_it_counts():
    """A span's softmax runs over it; a label beyond the mask is a label."""
    torch.manual_seed(0)
    reader = BertForQuestionAnswering(BertConfig(vocab_size=30, attn_implementation="eager", **SMALL)).eval()
    batch = _padded(tokens())
    seen = _lengths(reader)
    fisher_trace(reader, [batch], layers=r"layer\.(\d+)\.")
    assert set(seen) == {batch["input_ids"].shape[1]}
    tagger = _tagger()
    seen = _lengths(tagger)
    labels = torch.full_like(batch["input_ids"], -100)
    labels[:, :9] = 1
    fisher_trace(tagger, [{**batch, "labels": labels}], layers=r"layer\.(\d+)\.")
    assert set(seen) == {9}


# Small batches together


def _passes(model):
    """How many examples went through the model in each pass, but for the single ones of check and proof."""
    seen = []

    def see(module, args, kwargs):
        if (examples := count_examples(args, kwargs)) > 1:
            seen.append(examples)

    model.register_forward_pre_hook(see, with_kwargs=True)
    return seen


def _texts(vocabulary=30):
    """Nine batches of three texts, padded to lengths of their own."""
    torch.manual_seed(0)
    for length in (7, 5, 6, 7, 6, 7, 5, 6, 7):
        mask = torch.arange(length) < torch.tensor([length, length - 1, 3])[:, None]
        ids = torch.randint(1, vocabulary, (3, length)) * mask
        yield {"input_ids": ids, "attention_mask": mask.long(), "token_type_ids": torch.zeros_like(ids)}


def _whole_words(texts):
    """The first tokens are labelled, as where words are cut in pieces."""
    for batch in texts:
        labels = torch.full_like(batch["input_ids"], -100)
        labels[:, :3] = 1
        yield {**batch, "labels": labels}


KINDS = {
    "tensors": lambda: (_mlp(), list(torch.randn(9, 3, 5, dtype=torch.float64)), None),
    "pairs": lambda: (_mlp(), [(x, torch.zeros(3)) for x in torch.randn(9, 3, 5, dtype=torch.float64)], None),
    "texts": lambda: (specimen("bert").model.double(), list(_texts()), specimen("bert").layers),
    "tagger": lambda: (_tagger(), list(_texts()), r"layer\.(\d+)\."),
    "words": lambda: (_tagger(), list(_whole_words(_texts())), r"layer\.(\d+)\."),
    "decoder": lambda: (specimen("gpt2").model.double(), list(_texts()), specimen("gpt2").layers),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["hooks", "vmap"])
def test_small_batches_go_together_and_nothing_changes(kind, method, monkeypatch):
    model, batches, layers = KINDS[kind]()
    how = {"layers": layers, "labels": "exact", "method": method}
    passes = _passes(model)
    found = fisher_trace(model, batches, **how)
    if method == "hooks":
        assert passes == [3, 3, 6, 12, 3]  # never more than before
    assert (found.examples, found.batches) == (27, 9)
    monkeypatch.setattr(batches_module, "JOINED_WORK", 0)
    passes.clear()
    one_by_one = fisher_trace(model, batches, **how)
    if method == "hooks":
        assert passes == [3] * 9
    torch.testing.assert_close(found.values, one_by_one.values, rtol=1e-9, atol=1e-30)


def test_what_is_not_alike_goes_alone():
    """Other lengths where padding would count or is not known; other kinds of numbers; what is no tensor; rows for all."""
    torch.manual_seed(0)
    reader = BertForQuestionAnswering(BertConfig(vocab_size=30, attn_implementation="eager", **SMALL)).eval()
    passes = _passes(reader)
    fisher_trace(reader, _texts(), layers=r"layer\.(\d+)\.")
    assert passes == [3] * 9
    texts = list(_texts())
    unmasked = [{"input_ids": batch["input_ids"]} for batch in texts]
    named = [{**batch, "position_ids": torch.arange(batch["input_ids"].shape[1]).expand(3, -1)} for batch in texts]
    for batches in (unmasked, named):
        passes = _passes(tagger := _tagger())
        fisher_trace(tagger, batches, layers=r"layer\.(\d+)\.")
        assert passes == [3] * 9

    class Scaled(nn.Linear):
        def forward(self, x, scale=1.0):
            return super().forward(x.float()) * scale

    x = torch.randn(3, 5)
    for batches in (
        [{"x": x, "scale": 0.5}] * 9,
        [{"x": x, "scale": torch.tensor(0.5)}] * 9,
        [{"x": x, "labels": torch.zeros(2)}] * 9,
        [x, x.double()] * 4 + [x],
        [x, (x,)] * 4 + [x],
    ):
        passes = _passes(model := Scaled(5, 3))
        fisher_trace(model, batches)
        assert passes == [3] * 9


def test_a_model_that_reads_the_last_column_is_not_padded():
    torch.manual_seed(0)
    size = {"d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 32, "num_labels": 3}
    model = XLNetForSequenceClassification(XLNetConfig(vocab_size=30, **size)).double().eval()
    ids = [batch["input_ids"] for batch in _texts()]
    batches = [{"input_ids": x, "attention_mask": torch.ones_like(x)} for x in ids]
    how = {"layers": r"layer\.(\d+)\.", "labels": "exact", "method": "vmap"}
    alone = torch.cat([fisher_trace(model, [batch], **how).values for batch in batches])
    torch.testing.assert_close(fisher_trace(model, batches, **how).values, alone, rtol=1e-9, atol=1e-30)


def test_what_a_model_cannot_take_together_is_measured_one_by_one():
    class Three(nn.Linear):
        def forward(self, x):
            assert len(x) <= 3
            return super().forward(x)

    torch.manual_seed(0)
    passes, batches = _passes(model := Three(5, 3)), list(torch.randn(9, 3, 5))
    found = fisher_trace(model, batches)
    assert passes == [3, 3, 6, *[3] * 7]  # tried once
    twin = nn.Linear(5, 3)
    twin.load_state_dict(model.state_dict())
    torch.testing.assert_close(found.values, fisher_trace(twin, batches).values, rtol=1e-5, atol=0.0)
    batches[8][1] = torch.nan
    with pytest.raises(ValueError, match=r"example\(s\) \[1\] of the batch"):
        fisher_trace(nn.Linear(5, 3), batches)
    decoder = specimen("gpt2").model
    decoder.config.pad_token_id = None
    one_each = [rows_of(batch, range(1)) for batch in _texts()]
    assert fisher_trace(decoder, one_each, layers=specimen("gpt2").layers).batches == 9


def test_a_long_batch_among_short_ones_is_not_what_all_are_padded_to():
    tagger = _tagger()
    passes = _passes(tagger)
    short, long = list(_texts())[1], torch.ones(3, 16, dtype=torch.long)
    batches = [short, short, short, dict.fromkeys(short, long), short, short]
    fisher_trace(tagger, batches, layers=r"layer\.(\d+)\.")
    assert passes == [3, 3, 3, 3, 6]


def test_a_group_does_not_drift():
    """10 columns and 5 are each near to 7, and not to each other."""
    passes = _passes(tagger := _tagger())
    batches = [
        dict.fromkeys(("input_ids", "attention_mask"), torch.ones(3, n).long()) for n in (7, 7, 7, 7, 7, 10, 5, 7)
    ]
    fisher_trace(tagger, batches, layers=r"layer\.(\d+)\.")
    assert passes == [3, 3, 6, 6, 6]


def test_large_batches_go_alone():
    passes = _passes(model := nn.Linear(1000, 1000))
    fisher_trace(model, [torch.randn(3, 1000)] * 5, labels="mc")
    assert passes == [3] * 5
    passes = _passes(model := nn.Linear(2, 2))
    fisher_trace(model, [torch.randn(2**16, 2)] * 9)
    assert passes == [2**16, 2**16, 2**17, 2**17, 2**17, 2**16]


def test_it_stops_when_told_enough_and_leaves_the_rest_of_a_loader():
    batches = iter(torch.randn(40, 3, 5, dtype=torch.float64))
    found = fisher_trace(_mlp(), batches, enough=lambda read: read.batches >= 3 and len(read.values) == read.examples)
    assert (found.batches, found.examples) == (4, 12)
    assert len(list(batches)) == 36


def test_a_batch_samplers_own_generator_is_put_back():
    class Buckets(Sampler):
        def __init__(self) -> None:
            self.generator = torch.Generator().manual_seed(0)

        def __iter__(self):
            yield from torch.randperm(12, generator=self.generator).split(4)

    loader = DataLoader(list(torch.randn(12, 5, dtype=torch.float64)), batch_sampler=Buckets())
    before = loader.batch_sampler.generator.get_state()
    fisher_trace(_mlp(), loader)
    assert torch.equal(loader.batch_sampler.generator.get_state(), before)


# Memory


class Small(nn.Sequential):
    """Has room for so many examples."""

    room = 3

    def forward(self, x):
        if len(x) > self.room:
            raise torch.OutOfMemoryError(f"{len(x)} examples do not fit")
        return super().forward(x)


def test_out_of_memory_halves_the_batch_and_goes_on():
    small = Small(*_mlp())
    x = torch.randn(3, 11, 5, dtype=torch.float64)
    sizes = []
    small.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    found = fisher_trace(small, list(x), labels="exact")
    torch.testing.assert_close(found.values, fisher_trace(_mlp(), list(x), labels="exact").values)
    assert (found.examples, found.batches) == (33, 3)
    assert [n for n in sizes if n > 3] == [11, 6]  # once bitten
    small.room = 0
    with pytest.raises(MemoryError, match="out of memory with a single example"):
        fisher_trace(small, list(x))
    with pytest.raises(torch.OutOfMemoryError):  # its number is of one batch: half of it is another number
        fisher_trace(small, list(x), method="batch")


# Precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_is_squared_in_single(dtype):
    model, x = _mlp().float(), torch.randn(9, 5)
    truth = per_example_trace(model, x, resolve_layers(model)).mean(dim=0)
    with torch.autocast("cpu", dtype=dtype):
        found = fisher_trace(model, [x], labels="exact").trace
    torch.testing.assert_close(found, truth, rtol=0.05, atol=0.0)


def test_a_confident_model_keeps_its_small_gradients():
    """Gradients of 1e-35, whose squares float32 does not have, and cotangents of 2e-9, which float16 does not have."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)), torch.randn(4, 5)
    with torch.no_grad():
        model[2].bias.copy_(torch.tensor([160.0, 0.0, 0.0]))
    truth = per_example_trace(model, x, resolve_layers(model))
    assert 0 < truth.max() < 1e-60
    found = fisher_trace(model, [x], labels="exact").values
    torch.testing.assert_close(found, truth, rtol=1e-3, atol=0.0)
    with torch.no_grad():
        model[2].bias[0] = 40.0
    truth = per_example_trace(model, x, resolve_layers(model))
    assert 0 < truth.max() < 1e-15
    found = fisher_trace(copy.deepcopy(model).half(), [x.half()], labels="exact").values
    torch.testing.assert_close(found, truth, rtol=0.1, atol=0.0)


def test_overflow_is_named():
    """Logits of 0, and above them weights whose product float16 does not have."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3, bias=False), nn.Linear(3, 2, bias=False))
    with torch.no_grad():
        model[0].bias.zero_()
        model[1].weight.fill_(300.0)
        model[2].weight.copy_(torch.tensor([[6e4], [-6e4]]).expand(2, 3))
    with pytest.raises(ValueError, match=r"not finite in layer\(s\) 0: .*bfloat16 or float32"):
        fisher_trace(model.half(), [torch.zeros(2, 3).half()])


# Several processes


@pytest.fixture(scope="module")
def in_two():
    """What each of two processes finds, for three calls."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    with mp.get_context("spawn").Manager() as manager:
        found = manager.dict()
        mp.spawn(two_processes.work, args=(port, found), nprocs=2)
        return dict(found)


def test_two_processes_give_what_one_gives(in_two):
    """Seven batches, of unequal sizes, are dealt out unevenly: 4 and 3."""
    one = fisher_trace(two_processes.model(), two_processes.batches(), labels="exact")
    for rank in (0, 1):
        found = in_two[rank, "all"]
        torch.testing.assert_close(found.trace, one.trace, rtol=1e-12, atol=0)
        torch.testing.assert_close(found.se, one.se, rtol=1e-12, atol=0)
        assert (found.examples, found.batches) == (50, 7)
    assert torch.equal(in_two[0, "all"].values, in_two[1, "all"].values)
    batches = two_processes.batches()
    in_order = fisher_trace(two_processes.model(), batches[0::2] + batches[1::2], labels="exact").values
    torch.testing.assert_close(in_two[0, "all"].values, in_order, rtol=1e-12, atol=0)  # of process 0, then of 1


def test_two_processes_draw_different_labels(in_two):
    """The same inputs in both, and label noise of their own: the error is that of twice the draws."""
    rows = in_two[0, "same inputs"].values.reshape(2, -1, 2)
    assert 0.6 < (rows[0] != rows[1]).float().mean() < 0.9  # three signs agree, up to one for all, in a quarter
    assert torch.equal(rows, in_two[1, "same inputs"].values.reshape(2, -1, 2))


def test_two_processes_stop_together_and_fail_together(in_two):
    assert in_two[0, "target_se"].batches == in_two[1, "target_se"].batches < 7
    assert "logits of example(s) [0] of the batch are not finite" in in_two[1, "failing"]
    assert in_two[0, "failing"].startswith("RuntimeError: process 1 failed with ValueError: logits of example(s) [0]")
