"""The paper's tasks on tiny models: what is trained, in which language, on which examples, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from fisherdyn import tasks, verify
from fisherdyn.tasks.batches import ShuffledBatches, subsample
from fisherdyn.tasks.text import sources
from fisherdyn.tasks.text.classify import XCOPA, XNLI
from fisherdyn.tasks.text.extract import MLQA, XQuAD
from fisherdyn.tasks.text.reading import MissingError
from fisherdyn.tasks.tuning import TASK, set_language

pytestmark = pytest.mark.skipif(not tiny.SHARED.is_dir(), reason="the shared data are not beside the project")


HEADS = ("classifier", "pooler", "qa_outputs")


def load(hub: Path, name: str, model: str = "xlmr", **options):
    folders = {"model": str(hub / model / "model"), "adapters": hub / model / "adapters", "data": hub / "data"}
    return tasks.load(name, **{**folders, "batch": 8, "probe_examples": 8, "reduction": 4, **options})


# ---- what is trained, and in which language --------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["xlmr", "mbert"])
@pytest.mark.parametrize("name", ["xnli", "xcopa", "xquad"])
def test_the_language_adapter_is_active_in_training_and_replaced_at_evaluation(hub, name, model):
    """Its weights, invertible ones included, change the training output; the target's do not, until it is evaluated."""
    task = load(hub, name, model, languages=("zh",))
    network = task.build_model(0).eval()
    batch = next(iter(task.train_loader(0)))
    with torch.no_grad():
        before = network(**batch).loss
        for code, matters in (("zh", False), ("en", True)):
            for part in (f"layer.1.output.adapters.{code}.", f"invertible_adapters.{code}."):
                weights = [p for n, p in network.named_parameters() if part in n]
                assert weights, part
                kept = [p.clone() for p in weights]
                for p in weights:
                    p.add_(0.5)
                assert (network(**batch).loss != before) == matters, (code, part)
                for p, old in zip(weights, kept, strict=True):
                    p.copy_(old)
    seen = []

    def look(module, *_):
        seen.append((module.adapters_config.active_setup.first(), torch.is_grad_enabled(), module.training))

    hook = network.base_model.register_forward_hook(look)
    task.evaluate()["zh"](network)
    task.evaluate_source()(network)
    hook.remove()
    assert {first for first, *_ in seen} == {"zh", "en"}
    assert seen[0] == ("zh", False, False)
    assert network.adapters_config.active_setup.first() == "en"
    torch.testing.assert_close(network(**batch).loss, before, rtol=0, atol=0)


def test_evaluation_in_the_wrong_language_would_be_seen(hub):
    """The control: logits under the source's adapter and under the target's differ."""
    task = load(hub, "xnli", languages=("th",))
    network = task.build_model(0).eval()
    batch = next(iter(task.train_loader(0)))
    batch.pop("labels")
    with torch.no_grad():
        english = network(**batch).logits
        set_language(network, "th")
        assert not torch.allclose(network(**batch).logits, english)


@pytest.mark.parametrize(
    ("model", "name", "head"),
    [
        ("xlmr", "xnli", {"classifier"}),
        ("xlmr", "xcopa", {"classifier", "pooler"}),
        ("xlmr", "xquad", {"qa_outputs"}),
        ("mbert", "xnli", {"classifier"}),
        ("mbert", "xcopa", {"classifier"}),
        ("mbert", "xquad", {"qa_outputs"}),
    ],
)
@pytest.mark.parametrize("tuning", ["adapter", "lora", "full"])
def test_what_is_trained(hub, name, head, model, tuning):
    """Task adapters, LoRA or everything, and the head: what the checkpoint has no weights for is part of it."""
    task = load(hub, name, model, tuning=tuning, languages=("zh",))
    network = task.build_model(0)
    layers = task.layers(network)
    assert list(layers) == ["0", "1", "2"]
    trainable = {n for n, p in network.named_parameters() if p.requires_grad}
    grouped = {n for names in layers.values() for n in names}
    assert grouped <= trainable
    rest = trainable - grouped
    if tuning == "full":
        assert trainable == {n for n, _ in network.named_parameters()}
        return
    assert all(f".{TASK}." in n for n in grouped)
    assert {part for part in HEADS if any(part in n.split(".") for n in rest)} == head
    assert all(set(n.split(".")) & head for n in rest)
    if tuning == "adapter":
        width = {network.get_parameter(n).shape[0] for n in layers["0"] if "adapter_down" in n and n.endswith("weight")}
        assert width == {16 // 4}
        assert not any(f"invertible_adapters.{TASK}" in n for n, _ in network.named_parameters())


def test_pretrained_weights_and_language_adapters_are_those_on_disk(hub):
    from safetensors.torch import load_file

    network = load(hub, "xquad", languages=("zh",)).build_model(0)
    own = network.state_dict()
    on_disk = load_file(hub / "xlmr" / "model" / "model.safetensors")
    kept = {n: w for n, w in on_disk.items() if n.startswith("roberta.encoder")}
    where = {n: n if n in own else n.replace(".dense.", ".dense.base_layer.") for n in kept}
    assert all(torch.equal(own[where[n]], w) for n, w in kept.items())
    for code, weights in (
        ("zh", load_file(hub / "xlmr" / "adapters" / "zh" / "adapter.safetensors")),
        ("en", torch.load(hub / "xlmr" / "adapters" / "en" / "pytorch_adapter.bin", weights_only=True)),
    ):
        assert any("invertible" in n for n in weights)
        assert all(torch.equal(own[n], w) for n, w in weights.items()), code


def test_fresh_weights_come_from_the_seed_alone(hub):
    state = torch.get_rng_state()
    few = load(hub, "xnli", languages=("zh",))
    a, b, other = few.build_model(1), few.build_model(1), few.build_model(2)
    assert torch.equal(torch.get_rng_state(), state)
    names = few.layers(a)["1"] + ("classifier.dense.weight",)
    assert all(torch.equal(a.get_parameter(n), b.get_parameter(n)) for n in names)
    assert not torch.equal(a.get_parameter(names[-1]), other.get_parameter(names[-1]))


@pytest.mark.parametrize(
    ("name", "tuning"),
    [("xquad", "adapter"), ("xcopa", "adapter"), ("xnli", "lora"), ("xcopa", "lora"), ("xquad", "full")],
)
def test_the_fisher_is_measured_right_on_these_models(hub, name, tuning):
    """Invertible adapters, two stacked adapters, LoRA, two rows an example: hooks against brute force."""
    task = load(hub, name, "mbert", tuning=tuning, languages=("zh",))
    network = task.build_model(0)
    found = verify(network, task.probe_loader()[0], layers=task.layers(network))
    assert found.wrong == (), found


@pytest.fixture(scope="module")
def mdeberta(hub, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mdeberta")
    tiny.make_mdeberta(folder / "mdeberta", hub / "xlmr" / "model", ("en", "zh"))
    (folder / "data").symlink_to(hub / "data")
    return folder


@pytest.mark.filterwarnings("ignore:.*one example at a time")  # its positions have one row for the whole batch
@pytest.mark.parametrize("tuning", ["adapter", "lora", "full"])
def test_mdeberta(mdeberta, tuning):
    task = load(mdeberta, "xcopa", "mdeberta", tuning=tuning, languages=("zh",))
    network = task.build_model(0)
    assert 0 <= task.evaluate()["zh"](network) <= 1
    assert torch.isfinite(network(**next(iter(task.train_loader(0)))).loss)
    found = verify(network, task.probe_loader()[0], layers=task.layers(network))
    assert found.wrong == (), found


# ---- languages and their gaps ----------------------------------------------------------------------------------------


def test_languages_without_an_adapter_are_skipped_and_said(hub):
    task = load(hub, "xquad")
    assert task.targets == ("ar", "th", "zh")
    assert task.skipped == dict.fromkeys(["de", "el", "es", "hi", "ru", "tr", "vi"], "no language adapter")
    assert list(task.evaluate()) == list(task.targets)
    assert load(hub, "xquad", tuning="lora").skipped == {}


def test_the_gaps_of_the_hub_are_the_papers():
    """mBERT lacks Thai, Italian and Tamil; XLM-R nothing that the paper uses."""
    mbert, xlmr = "bert-base-multilingual-cased", "xlm-roberta-base"
    for kind, gaps in ((XQuAD, {"th"}), (MLQA, set()), (XNLI, {"th"}), (XCOPA, {"it", "ta", "th"})):
        assert set(kind(model=mbert).skipped) == gaps
        assert kind(model=xlmr).skipped == {}
    assert [len(kind.targets_of_paper) for kind in (XQuAD, MLQA, XNLI, XCOPA)] == [10, 6, 11, 11]


def test_everything_on_the_hub_is_pinned():
    splits = [value for value in vars(sources).values() if isinstance(value, sources.Split)]
    assert len(splits) == 13
    revisions = [split.revision for split in splits] + [revision for _, revision in sources.MODELS.values()]
    assert all(re.fullmatch("[0-9a-f]{40}", revision) for revision in revisions)


def test_no_code_of_others_is_ever_run():
    room = Path(sources.__file__).parent
    source = "".join(path.read_text() for path in room.glob("*.py"))
    assert "trust_remote_code" not in source
    assert "weights_only=True" in source
    assert "weights_only=False" not in source


# ---- samples and batches ---------------------------------------------------------------------------------------------


def test_subsamples_are_random_and_of_their_seed(hub):
    chosen = subsample(400, 100, 0, 0)
    assert len(set(chosen.tolist())) == 100
    assert chosen.tolist() != list(range(100))
    assert np.array_equal(chosen, subsample(400, 100, 0, 0))
    assert not np.array_equal(chosen, subsample(400, 100, 1, 0))
    assert not np.array_equal(chosen, subsample(400, 100, 0, 1))
    everything = load(hub, "xnli").split(0)
    some = load(hub, "xnli", train_examples=12).split(0)
    assert len(some) == 12
    assert some != everything[:12]
    assert all(row in everything for row in some)
    with pytest.raises(ValueError, match=r"mnli\.train: 49 examples: expected 1 to 48"):
        load(hub, "xnli", train_examples=49).split(0)


def test_every_example_is_read_once_a_pass_in_its_own_order():
    loader = ShuffledBatches(10, 4, 3, lambda rows: {"rows": rows})
    first, second = (torch.cat([b["rows"] for b in loader]) for _ in range(2))
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(10))
    assert not torch.equal(first, second)
    assert len(loader) == 3
    again = torch.cat([b["rows"] for b in ShuffledBatches(10, 4, 3, lambda rows: {"rows": rows})])
    assert torch.equal(again, first)


def test_batches_are_what_the_model_takes(hub):
    choice = next(iter(load(hub, "xcopa", "mbert").train_loader(0)))
    assert choice["input_ids"].shape[:2] == (8, 2)
    assert set(choice) == {"input_ids", "token_type_ids", "attention_mask", "labels"}
    spans = next(iter(load(hub, "xquad").train_loader(0)))
    assert set(spans) == {"input_ids", "attention_mask", "start_positions", "end_positions"}
    assert (spans["end_positions"] >= spans["start_positions"]).all()
    probe = load(hub, "xquad").probe_loader()
    assert sum(len(batch["input_ids"]) for batch in probe) == 8
    assert all(set(batch) == {"input_ids", "attention_mask"} for batch in probe)


def test_the_question_is_in_the_choice(hub):
    """Cause and effect of the same premise and choices are different inputs."""
    task = load(hub, "xcopa")
    row = task.split(0)[0]
    cause, effect = (task.collate([{**row, "question": asked}])["input_ids"] for asked in ("cause", "effect"))
    assert cause.shape != effect.shape or not torch.equal(cause, effect)


# ---- what is refused -------------------------------------------------------------------------------------------------


def _copy(hub: Path, to: Path) -> Path:
    shutil.copytree(hub, to / "hub")
    return to / "hub"


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


HARM = {
    "no model": (lambda h: shutil.rmtree(h / "xlmr" / "model"), r"--model .*model: no such folder"),
    "no data": (lambda h: shutil.rmtree(h / "data"), r"--data .*data: no such folder"),
    "no adapters": (lambda h: shutil.rmtree(h / "xlmr" / "adapters"), r"--adapters .*: no such folder"),
    "no training file": (
        lambda h: (h / "data" / "train-v1.1.json").unlink(),
        r"has no train-v1\.1\.jsonl\|\.json\|\.parquet",
    ),
    "no test file": (lambda h: (h / "data" / "xquad.zh.json").unlink(), r"has no xquad\.zh\.jsonl"),
    "cut data": (lambda h: _cut(h / "data" / "xquad.zh.json"), r"xquad\.zh\.json: damaged \("),
    "empty data": (
        lambda h: (h / "data" / "xquad.zh.json").write_text('{"data": []}'),
        r"xquad\.zh\.json: expected rows, found none",
    ),
    "other data": (
        lambda h: (h / "data" / "xquad.zh.json").write_text('[{"text": "a"}]'),
        r"expected rows with context, question, answers; context, question, answers missing",
    ),
    "no weights": (lambda h: (h / "xlmr" / "model" / "model.safetensors").unlink(), r"model .*: cannot be loaded"),
    "cut weights": (lambda h: _cut(h / "xlmr" / "model" / "model.safetensors"), r"model .*: cannot be loaded \("),
    "no tokenizer": (
        lambda h: [p.unlink() for p in (h / "xlmr" / "model").glob("*token*")],
        r"tokenizer of .*: cannot be loaded \(",
    ),
    "adapter without weights": (
        lambda h: (h / "xlmr" / "adapters" / "zh" / "adapter.safetensors").unlink(),
        r"zh: expected adapter_config\.json and adapter\.safetensors or pytorch_adapter\.bin: the adapter is not whole",
    ),
    "cut adapter": (
        lambda h: _cut(h / "xlmr" / "adapters" / "zh" / "adapter.safetensors"),
        r"language adapter .*zh: cannot be loaded \(.*damaged, or of another model",
    ),
    "adapter of another model": (
        lambda h: shutil.copytree(h / "mbert" / "adapters", h / "xlmr" / "adapters", dirs_exist_ok=True),
        r"made for a model of type bert, this is xlm-roberta",
    ),
    "no source adapter": (
        lambda h: shutil.rmtree(h / "xlmr" / "adapters" / "en"),
        r"no language adapter of .*model for en: give one with --adapters DIR",
    ),
}  # fmt: skip


@pytest.mark.parametrize("harm", HARM)
def test_what_is_missing_or_damaged_is_one_line(hub, tmp_path, harm):
    harmed = _copy(hub, tmp_path)
    do, message = HARM[harm]
    do(harmed)
    with pytest.raises(ValueError, match=message) as refused:
        load(harmed, "xquad", languages=("zh",) if harm != "no adapters" else ()).check()
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"languages": ("xx",)}, "unknown language xx of task xquad: choose from ar, de"),
        ({"languages": ("ru",)}, "no language adapter of .* for ru"),
        ({"tuning": "prefix"}, "unknown tuning 'prefix': choose one of adapter, task_adapter, lora, full"),
        ({"speed": 3}, "task 'xquad' has no option speed: it has model, data"),
    ],
)
def test_wrong_options_are_refused(hub, options, message):
    with pytest.raises(ValueError, match=message):
        load(hub, "xquad", **options)


def test_hidden_labels_and_missing_answers_are_refused(hub, tmp_path):
    harmed = _copy(hub, tmp_path)
    tiny.write_lines(harmed / "data" / "copa.train.jsonl", [{**row, "label": -1} for row in tiny.copa(4)])
    with pytest.raises(MissingError, match=r"copa\.train: expected labels 0 to 1, found -1 \(4 such rows\)"):
        load(harmed, "xcopa", languages=("zh",)).check()
    content = tiny.squad(4)
    content["data"][0]["paragraphs"][2]["qas"][0]["answers"] = []
    (harmed / "data" / "train-v1.1.json").write_text(json.dumps(content))
    with pytest.raises(MissingError, match=r"train-v1\.1: question 2 has no answer"):
        load(harmed, "mlqa", languages=("zh",)).check()


def test_a_slow_tokenizer_is_refused(hub, monkeypatch):
    import transformers

    class Slow:
        is_fast = False

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda *a, **k: Slow())
    with pytest.raises(MissingError, match="expected a fast one"):
        _ = load(hub, "xnli").tokenizer
