"""The schedules under transformers' Trainer, adapters' AdapterTrainer and Lightning: the same table as in fit()."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader

from fisherdyn import fit, policies, tasks
from fisherdyn.layers import adapter_layers
from fisherdyn.schedule import Unfreezing, authors_steps
from fisherdyn.settings import Measurement, Optimization

adapters = pytest.importorskip("adapters")
L = pytest.importorskip("lightning.pytorch")
from adapters import AdapterTrainer  # noqa: E402
from transformers import Trainer, TrainerCallback, TrainingArguments  # noqa: E402

from fisherdyn.integrations import lightning as for_lightning  # noqa: E402
from fisherdyn.integrations.transformers import UnfreezingCallback  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*pin_memory.*"),
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*`isinstance\\(treespec, LeafSpec\\)`.*"),
]
K, STEPS = 2, 10
ORDER = (10, 1, 0, 3, 9, 6, 8, 2, 5, 7, 4)
ALL = tuple(map(str, range(12)))
TABLE = {
    "standard": (policies.all_at_once, [(0, ALL)]),
    "top_down": (policies.top_down, [(0, ("11",)), (2, ("10",)), (4, ("9",)), (6, ("8",)), (8, ("7",))]),
    "bottom_up": (policies.bottom_up, [(0, ("11",)), (2, ("0",)), (4, ("1",)), (6, ("2",)), (8, ("3",))]),
    "linear_probing": (policies.linear_probing, [(0, ()), (2, ALL)]),
    "permutation": (
        lambda: policies.permutation(ORDER),
        [(0, ("11",)), (2, ("10",)), (4, ("1",)), (6, ("0",)), (8, ("3",))],
    ),
    "surgical": (lambda: policies.surgical([3, 5]), [(0, ("3", "5"))]),
}


@pytest.fixture(scope="module")
def task():
    return tasks.load("world", train_examples=96, dev_examples=8, test_examples=8, batch=8)


@pytest.fixture(scope="module")
def data(task):
    split = task.split(0)
    return [{name: x[i] for name, x in split.items()} for i in range(96)]


class Watch(TrainerCallback):
    """After every update: frozen layers' weights are those of the beginning, and the optimizer has nothing of them."""

    def __init__(self, schedule):
        self.schedule, self.open, self.rates = schedule, [], []

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.before = {name: p.detach().clone() for name, p in model.named_parameters()}

    def on_step_end(self, args, state, control, model=None, optimizer=None, **kwargs):
        unfreezing = self.schedule.unfreezing
        is_open = unfreezing.open_at(state.global_step - 1)
        check(model, optimizer, unfreezing.layers, is_open, self.before)
        self.open.append(is_open)
        self.rates.append(optimizer.param_groups[0]["lr"])


def check(model, optimizer, layers, is_open, before):
    for layer, names in layers.items():
        for name in names:
            parameter = model.get_parameter(name)
            assert parameter.requires_grad == (layer in is_open)
            assert bool(optimizer.state.get(parameter)) == (layer in is_open), (layer, is_open)
            if layer not in is_open:
                assert torch.equal(parameter, before[name])


def arguments(folder, **changes):
    options = {"max_steps": STEPS, "per_device_train_batch_size": 8, "learning_rate": 8e-3, "weight_decay": 0.1}
    options |= {"use_cpu": True, "report_to": [], "disable_tqdm": True, "save_strategy": "no", "logging_strategy": "no"}
    return TrainingArguments(output_dir=str(folder), **{**options, **changes})


def trainer(model, data, callback, folder, cls=AdapterTrainer, **changes):
    watch = Watch(callback)
    return cls(model=model, args=arguments(folder, **changes), train_dataset=data, callbacks=[callback, watch]), watch


@pytest.mark.parametrize("name", TABLE)
def test_adapter_trainer(task, data, tmp_path, name):
    policy, expected = TABLE[name]
    callback = UnfreezingCallback(policy(), K)
    runs, watch = trainer(task.build_model(0), data, callback, tmp_path, lr_scheduler_type="linear")
    runs.train()
    assert callback.unfreezing.decisions == expected
    assert len(watch.open) == STEPS
    assert watch.rates == pytest.approx([8e-3 * (STEPS - 1 - i) / STEPS for i in range(STEPS)])


def test_fun_leaves_the_order_of_the_data_alone(task, data, tmp_path):
    """FUN under a Trainer takes the choices that the measured scores call for, and then trains as that permutation does."""
    callback = UnfreezingCallback(policies.fun(batches=12), authors_steps("fun", K, len(ALL)))
    model = task.build_model(0)
    runs, _ = trainer(model, data, callback, tmp_path)
    runs.train()
    chosen = [layer for _, (layer,) in callback.unfreezing.decisions[1:]]
    assert [step for step, _ in callback.unfreezing.decisions] == [0, 1, 3, 5, 7, 9]
    assert chosen == [max(s.scores, key=lambda layer: s.scores[layer][0]) for s in callback.unfreezing.selections]
    rest = [layer for layer in ALL[:-1] if layer not in chosen]
    twin = task.build_model(0)
    other = UnfreezingCallback(policies.permutation([*chosen, *rest]), authors_steps("fun", K, len(ALL)))
    trainer(twin, data, other, tmp_path)[0].train()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_gradient_accumulation_counts_updates(task, data, tmp_path):
    callback = UnfreezingCallback(policies.top_down(), K)
    runs, watch = trainer(
        task.build_model(0), data, callback, tmp_path, gradient_accumulation_steps=2, max_steps=5, cls=Trainer
    )
    runs.train()
    assert callback.unfreezing.decisions == TABLE["top_down"][1][:3]
    assert len(watch.open) == 5


@pytest.mark.parametrize("policy", [policies.random_order, lambda: policies.fun(batches=4)])
def test_trainer_resumes(task, data, tmp_path, policy):
    """Cut off after 5 of 10 updates, and taken up in new objects: the same decisions and, to the bit, the same weights."""
    saving = {"save_strategy": "steps", "save_steps": 5}
    whole = UnfreezingCallback(policy(), K, seed=1)
    model = task.build_model(0)
    trainer(model, data, whole, tmp_path, cls=Trainer, **saving)[0].train()
    resumed, again = UnfreezingCallback(policy(), K, seed=1), task.build_model(0)
    runs, _ = trainer(again, data, resumed, tmp_path, cls=Trainer, **saving)
    runs.callback_handler.pop_callback(Watch)
    runs.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert repr(resumed.unfreezing.decisions) == repr(whole.unfreezing.decisions)
    assert repr(resumed.unfreezing.selections) == repr(whole.unfreezing.selections)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    state = tmp_path / "checkpoint-5" / "trainer_state.json"
    without = json.loads(state.read_text())
    del without["stateful_callbacks"]["UnfreezingCallback"]
    state.write_text(json.dumps(without))
    with pytest.raises(ValueError, match="not written with this callback"):
        trainer(task.build_model(0), data, UnfreezingCallback(policy(), K), tmp_path, cls=Trainer, **saving)[0].train(
            resume_from_checkpoint=str(tmp_path / "checkpoint-5")
        )


def test_trainer_refuses_what_would_never_train(task, data, tmp_path):
    model = task.build_model(0)
    layers = task.layers(model)
    for name in layers["4"]:
        model.get_parameter(name).requires_grad_(False)
    callback = UnfreezingCallback(policies.top_down(), K, layers=layers)
    with pytest.raises(ValueError, match=r"optimizer lacks parameters of layer\(s\) 4, .*make it while all layers"):
        trainer(model, data, callback, tmp_path)[0].train()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"restore_callback_states_from_checkpoint": True}, "leave it off"),
        ({"fsdp": "full_shard"}, "use DDP"),
        ({"ddp_find_unused_parameters": False}, "set ddp_find_unused_parameters=True"),
        ({"gradient_checkpointing": True}, "set ddp_find_unused_parameters=True"),
    ],
)
def test_trainer_refuses_arguments(changes, message):
    from transformers.training_args import ParallelMode

    fine = {"restore_callback_states_from_checkpoint": False, "fsdp": "", "deepspeed": None}
    fine |= {"ddp_find_unused_parameters": None, "gradient_checkpointing": False}
    args = SimpleNamespace(**{**fine, **changes}, parallel_mode=ParallelMode.DISTRIBUTED)
    with pytest.raises(ValueError, match=message):
        UnfreezingCallback(policies.top_down(), K).on_train_begin(args, None, None)


class Module(L.LightningModule):
    """What a user writes, and a check after every update."""

    def __init__(self, model, only_trainable=False):
        super().__init__()
        self.model, self.only_trainable = model, only_trainable
        self.before = {name: p.detach().clone() for name, p in model.named_parameters()}

    def training_step(self, batch, batch_idx):
        return self.model(**batch).loss

    def configure_optimizers(self):
        kept = [p for p in self.model.parameters() if p.requires_grad or not self.only_trainable]
        optimizer = torch.optim.AdamW(kept, lr=8e-3, weight_decay=0.1)
        scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, STEPS)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_train_batch_end(self, outputs, batch, batch_idx):
        (callback,) = [c for c in self.trainer.callbacks if isinstance(c, for_lightning.UnfreezingCallback)]
        if self.before:
            is_open = callback.unfreezing.open_at(self.trainer.global_step - 1)
            check(self.model, self.trainer.optimizers[0], callback.unfreezing.layers, is_open, self.before)


def lightning(module, data, callback, folder, steps=STEPS, checkpoint=None):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    runs = L.Trainer(
        max_steps=steps, callbacks=[callback], enable_checkpointing=False, default_root_dir=str(folder), **quiet
    )
    runs.fit(module, DataLoader(data, batch_size=8), ckpt_path=checkpoint)
    return runs


@pytest.mark.parametrize("name", TABLE)
def test_lightning(task, data, tmp_path, name):
    policy, expected = TABLE[name]
    callback = for_lightning.UnfreezingCallback(policy(), K, module="model")
    lightning(Module(task.build_model(0)), data, callback, tmp_path)
    assert callback.unfreezing.decisions == expected


@pytest.mark.parametrize("policy", [policies.random_order, lambda: policies.fun(batches=4)])
def test_lightning_resumes(task, data, tmp_path, policy):
    """On batches that are all the same: where Lightning goes on in an epoch that max_steps cut off is its own affair."""
    same = data[:8] * 10
    whole = for_lightning.UnfreezingCallback(policy(), K, module="model", seed=1)
    module = Module(task.build_model(0))
    lightning(module, same, whole, tmp_path)
    half = Module(task.build_model(0))
    path = Path(tmp_path) / "half.ckpt"
    lightning(
        half, same, for_lightning.UnfreezingCallback(policy(), K, module="model", seed=1), tmp_path, steps=5
    ).save_checkpoint(path)
    again = Module(task.build_model(0))
    again.before = {}
    resumed = for_lightning.UnfreezingCallback(policy(), K, module="model", seed=1)
    lightning(again, same, resumed, tmp_path, checkpoint=path)
    assert repr(resumed.unfreezing.decisions) == repr(whole.unfreezing.decisions)
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), again.parameters(), strict=True))


def test_lightning_refuses_what_would_never_train(task, data, tmp_path):
    model = task.build_model(0)
    layers = task.layers(model)
    for name in layers["4"]:
        model.get_parameter(name).requires_grad_(False)
    callback = for_lightning.UnfreezingCallback(policies.top_down(), K, module="model", layers=layers)
    with pytest.raises(ValueError, match=r"optimizer lacks parameters of layer\(s\) 4"):
        lightning(Module(model, only_trainable=True), data, callback, tmp_path)


def bert():
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(vocab_size=20, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=16)
    return BertForSequenceClassification(config)


def sentences():
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(20, (3, 8, 6), generator=g)
    return [{"input_ids": x, "labels": x.sum(dim=1) % 2} for x in ids]


def briefly(loader):
    """Six updates, a layer every two."""
    return {
        "interval": 2,
        "optimization": Optimization(steps=6, lr=1e-2),
        "measurement": Measurement(loader=loader, every=6),
    }


def test_lora():
    """peft: one layer a block, and only what LoRA and the classifier have moves."""
    peft = pytest.importorskip("peft")
    lora = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"])
    model = peft.get_peft_model(bert(), lora)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    loader, layers = sentences(), r"layer\.(\d+)\..*lora_"
    ds = fit(model, loader, policy=policies.fun(), layers=layers, **briefly(loader))
    assert sorted(ds["selected"].values.tolist()) == [0, 2, 4]
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert any("lora_" in name for name in moved)
    assert all("lora_" in name or "classifier" in name for name in moved)


@pytest.mark.parametrize(
    ("policy", "selected"),
    [(policies.top_down(), [4, 2, 0]), (policies.linear_probing(), [2, 2, 2]), (policies.fun(), None)],
)
def test_plain_encoder_layers(policy, selected):
    """Full fine-tuning, as in the original GU and LPFT; what is in no block is frozen or open, as the user left it."""
    model, loader = bert(), sentences()
    model.bert.embeddings.requires_grad_(False)
    ds = fit(model, loader, policy=policy, layers=r"layer\.(\d+)\.", **briefly(loader))
    found = ds["selected"].values.tolist()
    assert found == (selected or [*found[:2], 0])
    assert selected or sorted(found) == [0, 2, 4]


def test_two_adapters_at_one_depth(data):
    """Parallel structures: a layer has the parameters of both, and they open together."""
    from adapters import SeqBnConfig
    from adapters.composition import Parallel

    model = bert()
    adapters.init(model)
    for name in ("left", "right"):
        model.add_adapter(name, config=SeqBnConfig(reduction_factor=4))
    model.train_adapter(Parallel("left", "right"))
    unfreezing = Unfreezing(policies.top_down(), adapter_layers(model, "left", "right"), 2)
    unfreezing.attach(model, torch.optim.AdamW(model.parameters()))
    for step in range(3):
        unfreezing.step(step)
        is_open = {name.split(".adapters.")[1].split(".")[0] + name.split("layer.")[1][0]
                   for name, p in model.named_parameters() if ".adapters." in name and p.requires_grad}  # fmt: skip
        assert is_open == {f"{side}{layer}" for side in ("left", "right") for layer in unfreezing.open_at(step)}
    assert unfreezing.open_at(2) == ("2", "1")
