"""A recorded training run is the run without it, bit for bit: weights, optimizer, random states, order of the data."""

from __future__ import annotations

import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch import Trainer as LightningTrainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from fisherdyn import Recorder
from fisherdyn.integrations.lightning import FisherCallback as LightningCallback
from fisherdyn.integrations.transformers import FisherCallback

STEPS, BATCH, EXAMPLES = 200, 8, 400
CUDA = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"))
pytestmark = [
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
    # Lightning's own, about this machine and about a loader that is meant as it is.
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*GPU available but not used"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.:FutureWarning"),
]


class Noisy(Dataset):
    """Examples that are augmented from every random state there is, where they are loaded."""

    def __init__(self) -> None:
        g = torch.Generator().manual_seed(0)
        self.x = torch.randn(EXAMPLES, 6, generator=g)
        self.y = (self.x[:, 0] > 0).long() + (self.x[:, 1] > 0).long()

    def __len__(self) -> int:
        return EXAMPLES

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return self.x[i] + 0.01 * (torch.randn(6) + random.random() + np.random.rand()), self.y[i]


class Words(Dataset):
    def __init__(self) -> None:
        self.ids = torch.randint(5, 30, (EXAMPLES, 7), generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return EXAMPLES

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"input_ids": self.ids[i], "attention_mask": torch.ones(7).long(), "labels": self.ids[i].sum() % 3}


def seed_all() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


def fingerprint(model: nn.Module, optimizer: torch.optim.Optimizer, seen: list[Tensor]) -> dict[str, Any]:
    """Everything that a later step of training depends on, and the data that came."""
    state = [v for one in optimizer.state_dict()["state"].values() for v in one.values()]
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {
        "weights": [v.cpu() for v in model.state_dict().values()],
        "optimizer": [v.cpu() for v in state],
        "data": seen,
        "torch": [torch.get_rng_state(), *cuda],
        "numpy": [torch.from_numpy(np.random.get_state()[1].astype(np.int64)), torch.tensor(np.random.get_state()[2])],
        "python": [torch.tensor(random.getstate()[1])],
    }


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    for name, tensors in one.items():
        assert len(tensors) == len(other[name]) > 0, name
        assert all(torch.equal(a, b) for a, b in zip(tensors, other[name], strict=True)), name


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(inplace=True), nn.Dropout(0.2), nn.Linear(16, 16), nn.Linear(16, 3))


def plain(device: str, record: Callable[[nn.Module, DataLoader], Recorder] | None) -> dict[str, Any]:
    seed_all()
    model = mlp().to(device)
    loader = DataLoader(Noisy(), BATCH, shuffle=True, num_workers=2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    recorder = record(model, loader).attach(optimizer) if record is not None else None
    seen = []
    for _ in range(STEPS * BATCH // EXAMPLES):
        for x, y in loader:
            seen.append(x)
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x.to(device)), y.to(device))
            loss.backward()
            optimizer.step()
            if recorder is not None:
                recorder.log(train_loss=loss)
    if recorder is not None:
        recorder.close()
        assert recorder.dataset.sizes["step"] == STEPS // 25 + 1
        assert recorder.dataset["fisher_trace"].notnull().all()
    return fingerprint(model, optimizer, seen)


PROBES: dict[str, Callable[[nn.Module, DataLoader], Recorder]] = {
    "training's own loader": lambda model, loader: Recorder(model, loader, every=25, num_batches=2),
    "shuffled, with workers": lambda model, loader: Recorder(
        model, DataLoader(Noisy(), 16, shuffle=True, num_workers=2), every=25, num_batches=2, labels="mc"
    ),
    "a sampler with training's dataset": lambda model, loader: Recorder(
        model,
        DataLoader(loader.dataset, 16, sampler=RandomSampler(loader.dataset, generator=torch.Generator())),
        every=25,
        num_batches=2,
    ),
    "the empirical Fisher": lambda model, loader: Recorder(model, [torch.eye(6)], every=25, empirical=True),
}


@pytest.fixture(scope="module")
def unrecorded() -> dict[str, dict[str, Any]]:
    return {}


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("probe", PROBES)
def test_a_plain_loop(probe, device, unrecorded):
    if device not in unrecorded:
        unrecorded[device] = plain(device, None)
    assert_same(unrecorded[device], plain(device, PROBES[probe]))


def test_a_recorder_that_draws_is_seen(unrecorded):
    """The control: one number drawn from the global state at one record makes another run."""

    class Drawing(Recorder):
        def _state(self, step: int) -> dict[str, Any]:
            torch.rand(1)
            return super()._state(step)

    if "cpu" not in unrecorded:
        unrecorded["cpu"] = plain("cpu", None)
    other = plain("cpu", lambda model, loader: Drawing(model, [torch.zeros(8, 6)], every=25))
    for part in ("weights", "data"):
        with pytest.raises(AssertionError, match=part):
            assert_same({part: unrecorded["cpu"][part]}, other)


class SeenByTrainer(Trainer):
    def training_step(self, model, inputs, *args, **kwargs):
        self.seen = [*getattr(self, "seen", []), inputs["input_ids"].cpu()]
        return super().training_step(model, inputs, *args, **kwargs)


def by_trainer(device: str, folder: Any, *callbacks: FisherCallback) -> dict[str, Any]:
    seed_all()
    sizes = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 20}
    model = BertForSequenceClassification(BertConfig(vocab_size=30, num_labels=3, **sizes))
    arguments = TrainingArguments(
        str(folder), max_steps=STEPS, per_device_train_batch_size=BATCH, learning_rate=1e-3, dataloader_num_workers=2,
        dataloader_pin_memory=False, report_to=[], save_strategy="no", use_cpu=device == "cpu", disable_tqdm=True,
        logging_strategy="no",
    )  # fmt: skip
    trainer = SeenByTrainer(model, arguments, train_dataset=Words(), callbacks=list(callbacks))
    trainer.train()
    return fingerprint(model, trainer.optimizer.optimizer, trainer.seen)


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_a_trainer(device, tmp_path):
    callback = FisherCallback(DataLoader(Words(), 8, shuffle=True), every=50, num_batches=2, empirical=True)
    assert_same(by_trainer(device, tmp_path), by_trainer(device, tmp_path, callback))
    ds = callback.dataset
    assert ds["step"].values.tolist() == [0, 50, 100, 150, 200]
    assert ds["layer"].values.tolist() == ["embeddings", "0", "1", "head"]
    assert ds["train_loss"].notnull().values.tolist() == [False, *[True] * 4]
    assert ds["empirical_trace"].notnull().all("layer").values.tolist() == [True] * 4 + [False]
    assert ds["learning_rate"].values[:-1, 0] == pytest.approx([1e-3, 7.5e-4, 5e-4, 2.5e-4])


class Lit(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()
        self.seen: list[Tensor] = []

    def training_step(self, batch, batch_idx):
        self.seen.append(batch[0].cpu())
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def by_lightning(device: str, folder: Any, *callbacks: LightningCallback) -> dict[str, Any]:
    seed_all()
    model = Lit()
    trainer = LightningTrainer(
        max_steps=STEPS, accelerator="cpu" if device == "cpu" else "gpu", devices=1, logger=False, callbacks=list(callbacks),
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(model, DataLoader(Noisy(), BATCH, shuffle=True, num_workers=2))
    return fingerprint(model, trainer.optimizers[0], model.seen)


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_lightning(device, tmp_path):
    loader = DataLoader(Noisy(), 16, shuffle=True)
    callback = LightningCallback(loader, module="net", every=50, num_batches=2, empirical=True)
    assert_same(by_lightning(device, tmp_path), by_lightning(device, tmp_path, callback))
    ds = callback.dataset
    assert ds["step"].values.tolist() == [0, 50, 100, 150, 200]
    assert ds["gradient_norm"].notnull().all("layer").values.tolist() == [True] * 4 + [False]
    assert ds["empirical_trace"].notnull().all("layer").values.tolist() == [True] * 4 + [False]
    assert ds["train_loss"].notnull().values.tolist() == [False, *[True] * 4]


@pytest.mark.parametrize(
    ("optimizers", "module", "message"),
    [
        (1, "", r"Lit has no forward\(\) that gives logits: name the part that does"),
        (2, "net", "expected one optimizer, got 2: make a Recorder and attach it to one of them"),
        (0, "net", "expected one optimizer, got 0"),
    ],
)
def test_what_the_lightning_callback_refuses(optimizers, module, message):
    trainer = SimpleNamespace(optimizers=[object()] * optimizers, global_step=0)
    with pytest.raises(ValueError, match=message):
        LightningCallback([torch.zeros(8, 6)], module=module).on_train_start(trainer, Lit())


@pytest.mark.parametrize("kind", [FisherCallback, LightningCallback])
def test_a_callback_has_nothing_before_training(kind):
    with pytest.raises(ValueError, match="nothing is recorded yet: training has not begun"):
        kind([torch.zeros(8, 6)]).dataset  # noqa: B018
