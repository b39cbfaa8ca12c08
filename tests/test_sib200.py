"""SIB-200 on a tiny encoder: the head, what is trained, the languages, what is refused, and studies from end to end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import xarray as xr
from transformers import XLMRobertaConfig, XLMRobertaModel

from fisherdyn import tasks, verify
from fisherdyn.sweep.__main__ import main, parse, plan
from fisherdyn.sweep.planning import folder_of
from fisherdyn.tasks.text import baseline
from fisherdyn.tasks.text.mean_pooling import MeanPoolingClassifier
from fisherdyn.tasks.text.reading import MissingError
from fisherdyn.tasks.text.sib200 import CATEGORIES, CC100, LANGUAGES, PAPERS, SIB200, UNREADABLE

DATA = tiny.SHARED / "sib200"
shared = pytest.mark.skipif(not DATA.is_dir(), reason="SIB-200 is not beside the project")
THREE = ("deu_Latn", "quy_Latn", "zho_Hans")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """SIB-200 in four languages, cut short."""
    folder = tmp_path_factory.mktemp("sib200")
    for code in ("eng_Latn", *THREE):
        (folder / code).mkdir()
        for name, rows in (("train", 48), ("dev", 12), ("test", 12)):
            lines = (DATA / code / f"{name}.tsv").read_text().split("\n")
            (folder / code / f"{name}.tsv").write_text("\n".join(lines[: rows + 1]) + "\n")
    return folder


def load(hub: Path, data: Path, **options) -> SIB200:
    small = {"batch": 8, "probe_examples": 8, "reduction": 4, "languages": THREE}
    return tasks.load("sib200", model=str(hub / "xlmr" / "model"), data=data, **{**small, **options})


# ---- the head --------------------------------------------------------------------------------------------------------


def test_the_head_reads_the_mean_over_tokens_and_not_over_padding():
    """Against one text at a time, without padding, in float64."""
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 8, "intermediate_size": 8}
    encoder = XLMRobertaModel(XLMRobertaConfig(vocab_size=50, initializer_range=0.5, **sizes), add_pooling_layer=False)
    model = MeanPoolingClassifier(encoder, 7).double().eval()
    ids = torch.tensor([[0, 7, 9, 11, 2], [0, 5, 2, 1, 1]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    labels = torch.tensor([3, 6])
    with torch.no_grad():
        found = model(input_ids=ids, attention_mask=mask, labels=labels)
        rows = []
        for row, n in zip(ids, (5, 3), strict=True):
            states = encoder(input_ids=row[None, :n]).last_hidden_state[0]
            rows.append(sum(states) / n @ model.classifier.weight.T + model.classifier.bias)
        with_padding = encoder(input_ids=ids, attention_mask=mask).last_hidden_state.mean(1)
    expected = torch.stack(rows)
    torch.testing.assert_close(found.logits, expected)
    assert not torch.allclose(model.classifier(with_padding), expected)  # the control: padding would be seen
    p = expected.softmax(1)
    torch.testing.assert_close(found.loss, -(p[0, 3].log() + p[1, 6].log()) / 2)


# ---- what is trained -------------------------------------------------------------------------------------------------


@shared
@pytest.mark.parametrize("tuning", ["task_adapter", "lora", "full"])
def test_what_is_trained_and_measured(hub, data, tuning):
    task = load(hub, data, tuning=tuning)
    model = task.build_model(0)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    grouped = {name for names in task.layers(model).values() for name in names}
    assert list(task.layers(model)) == ["0", "1", "2"]
    if tuning == "full":
        assert trained == {name for name, _ in model.named_parameters()}
    else:
        assert all(".task." in name for name in grouped)
        assert trained - grouped == {"classifier.weight", "classifier.bias"}
    found = verify(model, task.probe_loader()[0], layers=task.layers(model))
    assert found.wrong == (), found


@shared
def test_task_adapters_alone_have_no_language_below_them(hub, data):
    """One adapter, active in training and in every language; the accuracy is that of the model as it stands."""
    task = load(hub, data)
    model = task.build_model(0)
    assert list(model.adapters_config) == ["task"]
    assert model.adapters_config.active_setup.flatten() == {"task"}
    batch = next(iter(task.train_loader(0)))
    with torch.no_grad():
        before = model.eval()(**batch).logits
        adapter = [p for name, p in model.named_parameters() if ".task.adapter_up.weight" in name]
        for p in adapter:
            p.normal_()
        assert not torch.allclose(model(**batch).logits, before)
        for code, metric in task.evaluate().items():
            rows = task.split(2, code)
            right = [
                int(model(**task.collate([row])).logits.argmax()) == CATEGORIES.index(row["category"]) for row in rows
            ]
            assert metric(model) == sum(right) / len(rows)
    assert model.adapters_config.active_setup.flatten() == {"task"}


@shared
def test_language_adapters_are_asked_for_and_the_remedy_works(hub, data):
    with pytest.raises(ValueError, match=r"no language adapter of .* for .*choose --tuning task_adapter or lora"):
        load(hub, data, tuning="adapter")
    assert load(hub, data, tuning="task_adapter").targets == THREE


@shared
def test_batches_of_evaluation_are_of_like_length(hub, data, monkeypatch):
    from fisherdyn.tasks.text import classify

    monkeypatch.setattr(classify, "TEST_BATCH", 3)
    task = load(hub, data)
    batches = list(task.evaluate()["deu_Latn"].keywords["batches"])
    lengths = torch.cat([batch["attention_mask"].sum(1) for batch in batches]).tolist()
    assert lengths == sorted(lengths)
    assert len(lengths) == 12
    assert max(batch["input_ids"].shape[1] for batch in task.train_loader(0)) <= 64


@shared
def test_every_text_has_the_prefix(hub, data):
    task = load(hub, data)
    row = task.split(0, "eng_Latn")[0]
    ids = task.collate([row])["input_ids"][0].tolist()
    assert ids == task.tokenizer("query: " + row["text"], truncation=True, max_length=64)["input_ids"]
    assert ids != task.tokenizer(row["text"], truncation=True, max_length=64)["input_ids"]


# ---- languages -------------------------------------------------------------------------------------------------------


def targets(*languages: str, **options) -> tuple[str, ...]:
    return SIB200(model="nobody/reads-this", languages=languages, **options).targets


def test_targets_are_the_papers_all_those_of_a_file_or_codes(tmp_path):
    assert targets() == targets("paper") == tuple(PAPERS.values())
    assert len(PAPERS) == 17
    assert targets("qu", "yor_Latn") == ("quy_Latn", "yor_Latn")
    (tmp_path / "mine.txt").write_text("fra_Latn\nht\n")
    assert targets(str(tmp_path / "mine.txt")) == ("fra_Latn", "hat_Latn")
    everything = SIB200(model="nobody/reads-this", languages=("all",))
    assert len(LANGUAGES) == 205
    assert len(everything.targets) == 205 - 1 - 9
    assert everything.skipped == UNREADABLE
    assert len(UNREADABLE) == 9
    with pytest.raises(ValueError, match="unknown language xx of task sib200: choose from ace_Arab, "):
        targets("xx")


def test_any_language_can_be_the_source():
    task = SIB200(model="nobody/reads-this", source="es")
    assert task.source == "spa_Latn"
    assert task.targets == tuple(code for code in PAPERS.values() if code != "spa_Latn")
    with pytest.raises(ValueError, match="language spa_Latn is the source: choose other languages as targets"):
        targets("de", "es", source="spa_Latn")
    assert targets("de", "deu_Latn", source="spa_Latn") == ("deu_Latn",)
    with pytest.raises(ValueError, match="unknown source xx of task sib200: choose from ace_Arab"):
        SIB200(source="xx")


def test_what_is_known_of_the_languages():
    of = SIB200(model="nobody/reads-this", languages=("quy_Latn", "vie_Latn", "arz_Arab")).coordinates
    assert of["language"]["quy_Latn"] == "Ayacucho Quechua"
    assert of["family"]["vie_Latn"] == "Austroasiatic"
    assert of["script"]["arz_Arab"] == "Arab"
    assert of["cc100"]["quy_Latn"] == 0
    assert of["cc100"]["vie_Latn"] == 137.3 / 2394.3
    assert np.isnan(of["cc100"]["arz_Arab"])
    assert all(row["name"] and row["family"] for row in LANGUAGES.values())
    assert sum(float(row["cc100"] or 0) for row in LANGUAGES.values()) < CC100


@shared
def test_the_languages_are_those_of_the_data():
    assert sorted(LANGUAGES) == sorted(path.name for path in DATA.iterdir() if path.is_dir())


# ---- what is refused -------------------------------------------------------------------------------------------------


@shared
def test_what_is_missing_or_damaged_is_one_line(hub, data, tmp_path):
    with pytest.raises(MissingError, match=r"--data .*: has no fra_Latn/test\.jsonl\|\.json\|\.parquet\|\.tsv"):
        load(hub, data, languages=("fra_Latn",)).check()
    with pytest.raises(MissingError, match=r"--data .*nowhere: no such folder"):
        load(hub, tmp_path / "nowhere").check()
    for code in ("eng_Latn", "deu_Latn"):
        (tmp_path / code).mkdir()
        for name in ("train", "dev", "test"):
            (tmp_path / code / f"{name}.tsv").write_text("index_id\tcategory\ttext\n0\tweather\tIt rains.\n")
    with pytest.raises(
        MissingError, match=r"eng_Latn/train: expected the topics science/technology, .*; found 'weather'"
    ):
        load(hub, tmp_path, languages=("deu_Latn",)).check()
    (tmp_path / "eng_Latn" / "train.tsv").write_text("index_id\ttext\n0\tIt rains.\n")
    with pytest.raises(MissingError, match="expected rows with category, text; category missing in some"):
        load(hub, tmp_path, languages=("deu_Latn",)).check()


@shared
def test_quotes_and_odd_line_ends_are_a_texts_own(tmp_path):
    from fisherdyn.tasks.text.reading import read

    (tmp_path / "eng_Latn").mkdir()
    text = 'She said "it\u2028is\x85late'
    (tmp_path / "eng_Latn" / "test.tsv").write_text(f"index_id\tcategory\ttext\n0\thealth\t{text}\n1\thealth\tb\n")
    rows = read(SIB200.splits[2], "eng_Latn", tmp_path)
    assert [row["text"] for row in rows] == [text, "b"]


# ---- studies ---------------------------------------------------------------------------------------------------------


def arguments(study: str, hub: Path, data: Path, out: Path, *more: str) -> list[str]:
    small = ["--seeds", "1", "--steps", "3", "--interval", "1", "--workers", "1", "--train-examples", "16"]
    places = ["--model", str(hub / "xlmr" / "model"), "--data", str(data), "--languages", "de,qu,zh", "--out", str(out)]
    return [study, "--task", "sib200", *places, *small, *more]


@shared
def test_a_study_stops_goes_on_and_says_what_it_trained(hub, data, tmp_path, capsys):
    """Three rows at once, and one by one: the same to the bit."""
    rows = ["--only", "standard", "--only", "FUN", "--only", "full"]
    assert main(arguments("compare", hub, data, tmp_path / "once", *rows)) == 0
    said = capsys.readouterr().out
    for row in ("standard", "FUN", "full"):
        assert main(arguments("compare", hub, data, tmp_path / "parts", "--only", row)) == 0
    once, parts = (xr.load_dataset(tmp_path / name / "compare.nc") for name in ("once", "parts"))
    xr.testing.assert_identical(once, parts)
    assert once["target"].values.tolist() == list(THREE)
    assert once["family"].values.tolist() == ["Indo-European", "Quechuan", "Sino-Tibetan"]
    assert once["cc100"].attrs["long_name"].startswith("share of the target's language")
    assert once["tuning"].values.tolist() == ["task_adapter", "task_adapter", "full"]
    assert once["eval_step"].values.tolist() == [3]  # once, at the end
    assert once["metric"].notnull().all()
    assert "| FUN | Ada+FUN | 16 |" in said
    assert "Task adapters alone were trained, without the language adapters of the paper." in said


@shared
def test_permutations_of_a_real_task(hub, data, tmp_path, capsys):
    """The tiny encoder has three layers, and orders are of twelve: standard and top-down."""
    assert main(arguments("permutations", hub, data, tmp_path, "--schedules", "1")) == 0
    said = capsys.readouterr().out
    assert "Task adapters alone were trained" in said
    assert (tmp_path / "figure-4.png").exists()


def test_the_recipe_of_the_real_encoder():
    runs, settings = plan(parse(["compare", "--task", "sib200", "--seeds", "1"]))
    assert len(runs) == 7
    assert (settings.steps, settings.lr, settings.interval, settings.evaluate_every) == (200, 1e-3, 10, 200)
    assert settings.options == {"tuning": "task_adapter", "batch": 16}
    runs, settings = plan(parse(["low-resource", "--task", "sib200", "--seeds", "1"]))
    assert {settings.of(run).options["train_examples"] for run in runs} == {50, 200, 701}
    assert folder_of(parse(["compare", "--task", "sib200"])) == Path("runs/compare-sib200-multilingual-e5-small")


# ---- the baseline ----------------------------------------------------------------------------------------------------


def test_the_baselines_regression_is_at_its_optimum():
    """The gradient of its objective, by autograd in float64, is zero there and nowhere near."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 5)), rng.integers(3, size=40)
    weights = torch.tensor(baseline.fit(x, y, 3, 0.1))

    def gradient(at: torch.Tensor) -> float:
        at = at.clone().requires_grad_()
        objective = torch.nn.functional.cross_entropy(torch.tensor(x) @ at, torch.tensor(y)) + 0.05 * (at**2).sum()
        return float(torch.autograd.grad(objective, at)[0].abs().max())

    assert gradient(weights) < 1e-4
    assert gradient(weights + 0.1) > 1e-3


@shared
def test_the_baseline_prints_every_language(hub, data, capsys):
    places = ["--model", str(hub / "xlmr" / "model"), "--data", str(data), "--languages", "de,zh"]
    assert baseline.main(places) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["eng_Latn", "deu_Latn", "zho_Hans", "mean"]
