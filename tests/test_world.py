"""The world: its logic against an independent one, its languages, its text, its encoder."""

from __future__ import annotations

import json
from itertools import product

import numpy as np
import pytest
import torch
from transformers import BertForSequenceClassification

from fisherdyn import tasks
from fisherdyn.tasks.transfer import TEST, TRAIN
from fisherdyn.tasks.tuning import set_language
from fisherdyn.tasks.world import concepts as c
from fisherdyn.tasks.world import encoder, grammar, inference, pretrain
from fisherdyn.tasks.world.__main__ import describe
from fisherdyn.tasks.world.__main__ import main as describe_main
from fisherdyn.tasks.world.corpus import Corpus, sample_documents
from fisherdyn.tasks.world.languages import LANGUAGES, MASK, PAD, Languages, distance, slot_order


@pytest.fixture(scope="module")
def languages():
    return Languages(0)


# ---- the logic -------------------------------------------------------------------------------------------------------


def _relation_of_sets(p: int, q: int, everything: int) -> int | None:
    """Which relation two sets (bit masks) stand in; None for the relations that no edit makes."""
    if not (0 < p < everything and 0 < q < everything):
        return None
    if p == q:
        return grammar.EQUAL
    if p & ~q == 0:
        return grammar.FORWARD
    if q & ~p == 0:
        return grammar.REVERSE
    if p & q == 0:
        return grammar.DISJOINT if p | q != everything else None
    return grammar.INDEPENDENT if p | q != everything else None


def test_labels_follow_from_set_inclusion():
    """Sentences as sets of situations, "not" as complement: all sets of five situations give the table's label."""
    everything = 2**5 - 1
    seen = {}
    for p, q in product(range(1, everything), repeat=2):
        relation = _relation_of_sets(p, q, everything)
        if relation is None:
            continue
        for not_p, not_q in product((0, 1), repeat=2):
            first, second = everything - p if not_p else p, everything - q if not_q else q
            label = 0 if first & ~second == 0 else 2 if first & second == 0 else 1
            seen.setdefault((2 * not_p + not_q, relation), set()).add(label)
    assert seen == {(i, j): {int(inference.LABELS[i, j])} for i in range(4) for j in range(5)}


def _implies(p, q):
    """Slot by slot: everything the second says, the first says too, as specifically or more."""
    return all(b == 0 or a == b or c.HYPERNYM[a] == b for a, b in zip(p, q, strict=True))


def _clash(p, q):
    opposed = [p[s] and c.ANTONYM[p[s]] == q[s] for s in (grammar.S_ADJ, grammar.O_ADJ)]
    counted = [p[s] and q[s] and p[s] != q[s] for s in (grammar.S_NUM, grammar.O_NUM)]
    return any(opposed) or any(counted)


@pytest.mark.parametrize("relation", range(5))
def test_edits_make_the_relation_they_promise(relation):
    first, second = grammar.sample_related(3000, np.full(3000, relation), np.random.default_rng(relation))
    implies, implied, clash = (np.array([f(p, q) for p, q in zip(a, b, strict=True)]) for f, a, b in (
        (_implies, first, second), (_implies, second, first), (_clash, first, second)))  # fmt: skip
    expected = {
        grammar.EQUAL: (True, True, False),
        grammar.FORWARD: (True, False, False),
        grammar.REVERSE: (False, True, False),
        grammar.DISJOINT: (False, False, True),
        # A role swap moves modifiers too, so that numbers may differ in both slots; by stipulation it is neither.
        grammar.INDEPENDENT: (False, False, None),
    }[relation]
    assert (implies == expected[0]).all()
    assert (implied == expected[1]).all()
    if expected[2] is not None:
        assert (clash == expected[2]).all()


def test_verbs_get_what_they_take():
    m = grammar.sample_meanings(5000, np.random.default_rng(0))
    group = c.TYPE[m[:, grammar.VERB]]
    assert (c.SUBJECT_TYPES[group, c.TYPE[m[:, grammar.S_NOUN]]] > 0).all()
    assert (c.OBJECT_TYPES[group, c.TYPE[m[:, grammar.O_NOUN]]] > 0).all()


def test_classes_are_balanced_and_the_hypothesis_alone_says_little(languages):
    """The best guess from the hypothesis's length and negation alone stays far below what the encoder reaches."""
    _, h, y = inference.sample_pairs(30_000, np.random.default_rng(0))
    np.testing.assert_allclose(np.bincount(y) / len(y), 1 / 3, atol=0.01)
    key = (h > 0).sum(axis=1) * 2 + (h[:, grammar.NEG] > 0)
    guessed = sum(np.bincount(y[key == k], minlength=3).max() for k in np.unique(key))
    assert guessed / len(y) < 0.50


# ---- the languages ---------------------------------------------------------------------------------------------------


def test_same_seed_same_world_and_another_is_another():
    a, b, other = Languages(3), Languages(3), Languages(4)
    assert a.vocabulary == b.vocabulary != other.vocabulary
    meanings = grammar.sample_meanings(50, np.random.default_rng(1))
    assert (a.speak(meanings, a.index("te")) == b.speak(meanings, b.index("te"))).all()
    first, second = (tasks.load("world").make_split("te", 50, np.random.default_rng(1)) for _ in range(2))
    assert all((first[k] == second[k]).all() for k in first)


def test_words_are_distinct_and_overlap_is_what_the_dial_says(languages):
    assert len(set(languages.vocabulary)) == len(languages.vocabulary)
    content = np.setdiff1d(np.arange(1, c.COUNT), c.FUNCTION_CONCEPTS)
    for row, language in enumerate(LANGUAGES):
        words = languages.lexicon[row, content]
        assert len(set(words)) == len(content)
        shared = (words == languages.lexicon[0, content]).mean()
        assert shared == pytest.approx(language.overlap, abs=0.01)


def test_word_order():
    by_code = {language.code: [grammar.S_NOUN, grammar.VERB, grammar.O_NOUN] for language in LANGUAGES}
    for language in LANGUAGES:
        slots = slot_order(language)
        assert sorted(slots) == list(range(11))
        said = sorted(by_code[language.code], key=slots.index)
        names = {grammar.S_NOUN: "S", grammar.VERB: "V", grammar.O_NOUN: "O"}
        assert "".join(names[s] for s in said) == language.order
        assert (slots.index(grammar.S_ADJ) < slots.index(grammar.S_NOUN)) == (language.adjective == "before")


def test_sentences_lose_nothing(languages):
    """Each language says every concept of a meaning, once; only case markers come on top."""
    m = grammar.sample_meanings(300, np.random.default_rng(0))
    for row, language in enumerate(LANGUAGES):
        tokens = languages.speak(m, row)
        expected = (m > 0).sum(axis=1) + (2 if language.case else 0)
        assert ((tokens != PAD).sum(axis=1) == expected).all()
        for meaning, sentence in zip(m[:20], tokens[:20], strict=True):
            assert set(languages.lexicon[row, meaning[meaning > 0]]) <= set(sentence)


def test_distances_are_ordered_and_printed(capsys):
    far = [distance(language) for language in LANGUAGES]
    assert far[0] == 0
    assert all(0 < d < 1 for d in far[1:])
    text = describe(("so", "xu", "po"), examples=2)
    assert all(language.name in text for language in LANGUAGES)
    assert "distance" in text
    assert describe_main(["--languages", "so,ka", "--examples", "1"]) == 0
    assert "Kasin" in capsys.readouterr().out


def test_describe_refuses_unknown_languages(capsys):
    with pytest.raises(SystemExit) as stop:
        describe_main(["--languages", "so,qq"])
    assert stop.value.code == 2
    assert "unknown language 'qq'" in capsys.readouterr().err


# ---- the text --------------------------------------------------------------------------------------------------------


def test_text_is_masked_as_bert_does(languages):
    batch = Corpus(languages).batch(4000, np.random.default_rng(0))
    chosen = batch["labels"] >= 0
    ordinary = (batch["attention_mask"] == 1) & (chosen | (batch["input_ids"] > 4))
    assert chosen.sum() / ordinary.sum() == pytest.approx(0.2, abs=0.005)
    assert (batch["input_ids"][chosen] == MASK).mean() == pytest.approx(0.8, abs=0.01)
    assert (batch["input_ids"][chosen] == batch["labels"][chosen]).mean() == pytest.approx(0.1, abs=0.01)
    assert (batch["labels"][~chosen] == -100).all()


def test_the_next_sentence_bit_tells_no_class():
    """All relations that make the three classes are "next" alike: the bit cannot carry the task's label."""
    first, second, bit = sample_documents(4000, np.random.default_rng(0))
    assert set(np.unique(bit)) == {-100, 0, 1}
    following = bit == 0
    kinds = [
        (_implies(p, q), _implies(q, p), _clash(p, q)) for p, q in zip(first[following], second[following], strict=True)
    ]
    for kind in ((True, False, False), (False, True, False), (False, False, True), (False, False, False)):
        assert kinds.count(kind) > 0.1 * len(kinds)


def test_a_short_pretraining_learns(languages):
    """300 steps of a two-layer encoder on one language: below the loss of guessing by frequency alone."""
    torch.manual_seed(0)
    model = pretrain.build_encoder(languages, layers=2, hidden=32)
    corpus = Corpus(languages, only="so")
    losses = pretrain.train(model, pretrain.batches(corpus, 300, 32, [0]), 300, 5e-3, "test")
    tokens = corpus.batch(2000, np.random.default_rng(9))["labels"]
    frequency = np.bincount(tokens[tokens >= 0]) / (tokens >= 0).sum()
    guessing = -(frequency[frequency > 0] * np.log(frequency[frequency > 0])).sum() + np.log(2)
    assert losses[0] > np.log(len(languages.vocabulary)) - 0.5
    assert np.mean(losses[-40:]) < guessing - 0.3


def test_pretraining_writes_what_the_task_loads(tmp_path, capsys):
    assert pretrain.main(["--steps", "2", "--adapter-steps", "1", "--threads", "1", "--out", str(tmp_path)]) == 0
    recipe = json.loads((tmp_path / encoder.RECIPE).read_text())
    assert {"command", "seed", "seconds", "environment", "final_loss"} <= set(recipe["encoder"])
    assert all({"command", "seconds"} <= set(recipe[f"adapter {code}"]) for code in Languages(0).codes)
    shipped = json.loads((encoder.WEIGHTS / encoder.RECIPE).read_text())
    assert set(shipped) == set(recipe)
    model = encoder.build(BertForSequenceClassification, 0, num_labels=3, weights=tmp_path)
    assert sum(p.requires_grad for p in model.parameters()) > 0
    capsys.readouterr()


# ---- the encoder -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def task():
    return tasks.load("world", train_examples=64, dev_examples=32, test_examples=32, probe_examples=16)


def test_only_task_adapters_and_classifier_are_trainable(task):
    model = task.build_model(0)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    layers = task.layers(model)
    assert list(layers) == [str(i) for i in range(12)]
    assert trainable == {name for names in layers.values() for name in names} | {"classifier.weight", "classifier.bias"}
    assert {model.get_parameter(name).shape[0] for name in layers["0"]} == {8, 64}


def test_building_a_model_leaves_the_random_state(task):
    state = torch.get_rng_state()
    a, b, other = task.build_model(1), task.build_model(1), task.build_model(2)
    assert torch.equal(torch.get_rng_state(), state)
    names = task.layers(a)["3"]
    assert all(torch.equal(a.get_parameter(n), b.get_parameter(n)) for n in names)
    assert not all(torch.equal(a.get_parameter(n), other.get_parameter(n)) for n in names)


def test_the_language_adapter_is_active_and_swapped(task):
    """Its weights change the output in training; evaluation in a target uses the target's and puts the source's back."""
    model = task.build_model(0).eval()
    batch = next(iter(task.probe_loader()))
    before = model(**batch).logits
    with torch.no_grad():
        model.get_parameter("bert.encoder.layer.4.output.adapters.so.adapter_up.bias").add_(1.0)
    changed = model(**batch).logits
    assert not torch.equal(before, changed)
    set_language(model, "te")
    target = model(**batch).logits
    assert not torch.equal(target, changed)
    set_language(model, "so")
    assert 0 <= task.evaluate()["te"](model) <= 1
    torch.testing.assert_close(model(**batch).logits, changed, rtol=0, atol=0)
    assert not model.training


@pytest.mark.parametrize("harm", ["missing", "cut", "text", "shape"])
def test_damaged_weights_are_named(tmp_path, harm):
    from safetensors.torch import load_file, save_file

    for file in encoder.WEIGHTS.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    victim = tmp_path / encoder.language_file("hu")
    if harm == "missing":
        victim.unlink()
    elif harm == "cut":
        victim.write_bytes(victim.read_bytes()[:1000])
    elif harm == "text":
        victim.write_text("not weights")
    else:
        save_file({name: w[:1].clone() for name, w in load_file(victim).items()}, victim)
    with pytest.raises(encoder.CheckpointError, match=r"language-hu\.safetensors"):
        encoder.build(BertForSequenceClassification, 0, num_labels=3, weights=tmp_path)


def test_splits_do_not_share_examples_by_seed(task):
    train, dev = task.split(0), task.split(1)
    assert not torch.equal(train["labels"][:32], dev["labels"])
    assert all(torch.equal(task.split(0)[k], train[k]) for k in train)


def test_unknown_task_and_language(task):
    with pytest.raises(ValueError, match="unknown task 'moon': choose one of world"):
        tasks.load("moon")
    with pytest.raises(ValueError, match="unknown language 'qq'"):
        task.split(2, "qq")
    with pytest.raises(ValueError, match="at least one example"):
        tasks.load("world", probe_examples=0)


def test_the_task_uses_the_splits_that_it_names(task):
    """Targets are tested on their own text, tr(F) is measured on inputs that are not trained on, and no case is said."""
    for code, metric in task.evaluate().items():
        expected = task.split(TEST, code)["input_ids"]
        (batch,) = metric.keywords["batches"]
        assert torch.equal(batch["input_ids"], expected)
        assert metric.keywords["language"] == code
        assert expected.shape != task.split(TEST)["input_ids"].shape or not torch.equal(
            expected, task.split(TEST)["input_ids"]
        )
    trained = {tuple(row[row > 0].tolist()) for row in task.split(TRAIN)["input_ids"]}
    probed = {tuple(row[row > 0].tolist()) for batch in task.probe_loader() for row in batch["input_ids"]}
    assert len(probed - trained) > 0.8 * len(probed)
    markers = {
        int(task.languages.lexicon[row, c.ID[case]]) for row in range(10) for case in (c.SUBJECT_CASE, c.OBJECT_CASE)
    }
    for code in task.languages.codes:
        assert not markers - {0} & set(task.split(TEST, code)["input_ids"].flatten().tolist())


def test_every_seed_of_the_task_speaks_the_world_that_the_encoder_knows():
    one, other = (tasks.load("world", seed=seed, train_examples=8, dev_examples=8, test_examples=8) for seed in (0, 1))
    assert one.languages.vocabulary == other.languages.vocabulary
    assert not torch.equal(one.split(TEST)["labels"], other.split(TEST)["labels"])


@pytest.mark.parametrize("code", ["so", "mi", "hu"])
def test_negation_stands_where_the_dial_says(languages, code):
    language = LANGUAGES[languages.index(code)]
    order = slot_order(language)
    verb, negation = order.index(grammar.VERB), order.index(grammar.NEG)
    assert {"before": negation == verb - 1, "after": negation == verb + 1, "last": negation == len(order) - 1}[
        language.negation
    ]
