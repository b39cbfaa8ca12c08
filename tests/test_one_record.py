"""One model, trained by fit, transformers' Trainer, Lightning and a hand-written loop: the record is the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr
from children import Answering, batches
from lightning.pytorch import LightningModule
from lightning.pytorch import Trainer as LightningTrainer
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from fisherdyn import Recorder, fit, policies
from fisherdyn.integrations.lightning import FisherCallback as LightningCallback
from fisherdyn.integrations.transformers import FisherCallback
from fisherdyn.settings import Measurement, Optimization

STEPS, EVERY, LR, BATCH = 7, 3, 0.01, 8
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*GPU available but not used"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.:FutureWarning"),
]


@pytest.fixture
def loader() -> DataLoader:
    rows = [{"x": x, "labels": x.sum().gt(0).long()} for x in torch.cat(batches(5))]
    return DataLoader(rows, batch_size=BATCH)


PROBE = [{"x": x} for x in batches(3)]


def options() -> dict:
    """Of every recorder; the generator draws on, as fit's does."""
    return {"every": EVERY, "labels": "mc", "generator": torch.Generator().manual_seed(0)}


def adamw(model) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.0, fused=True)


def by_fit(loader: DataLoader) -> xr.Dataset:
    return fit(
        Answering(),
        loader,
        policy=policies.all_at_once(),
        interval=1,
        optimization=Optimization(steps=STEPS, lr=LR, weight_decay=0.0),
        measurement=Measurement(loader=PROBE, every=EVERY, labels="mc"),
    )


def by_hand(loader: DataLoader) -> xr.Dataset:
    model, step = Answering(), 0
    optimizer = adamw(model)
    with Recorder(model, PROBE, **options()).attach(optimizer) as recorder:
        while step < STEPS:
            for batch in loader:
                if step == STEPS:
                    break
                optimizer.zero_grad()
                loss = model(**batch).loss
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                recorder.log(train_loss=loss)
                step += 1
    return recorder.dataset


def by_trainer(loader: DataLoader, folder) -> xr.Dataset:
    class InOrder(Trainer):
        def get_train_dataloader(self):
            return loader

    callback = FisherCallback(PROBE, **options())
    arguments = TrainingArguments(
        str(folder), max_steps=STEPS, learning_rate=LR, weight_decay=0.0, lr_scheduler_type="constant", report_to=[],
        use_cpu=True, disable_tqdm=True, save_strategy="no", dataloader_pin_memory=False,
    )  # fmt: skip
    model = Answering()
    InOrder(
        model, arguments, train_dataset=loader.dataset, callbacks=[callback], optimizers=(adamw(model), None)
    ).train()
    return callback.dataset


def by_lightning(loader: DataLoader, folder) -> xr.Dataset:
    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = Answering()

        def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
            return self.model(**batch).loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return adamw(self.model)

    callback = LightningCallback(PROBE, module="model", **options())
    trainer = LightningTrainer(
        max_steps=STEPS, gradient_clip_val=1.0, accelerator="cpu", callbacks=[callback], logger=False,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(Module(), loader)
    return callback.dataset


def test_four_ways_to_train_make_one_record(loader, tmp_path):
    expected = by_hand(loader)
    assert expected["step"].values.tolist() == [0, 3, 6, 7]
    assert np.isfinite(expected["train_loss"].values[1:]).all()
    for made in (by_fit(loader), by_trainer(loader, tmp_path), by_lightning(loader, tmp_path)):
        assert set(expected.variables) <= set(made.variables)
        for name in expected.variables:
            assert made[name].dims == expected[name].dims, name
            assert made[name].dtype == expected[name].dtype, name
            assert made[name].attrs == expected[name].attrs, name
            np.testing.assert_array_equal(made[name], expected[name], err_msg=str(name))
        for name in ("estimator", "likelihood", "mode", "batches", "examples", "recorded", "device"):
            assert made.attrs[name] == expected.attrs[name], name


def test_losses_of_accumulated_batches_belong_to_their_update(loader, tmp_path):
    """Two batches an update: the record at step 3 has the losses of updates 0 to 2, six batches, and no other."""
    losses = []

    class Counting(Answering):
        def forward(self, x: Tensor, labels: Tensor | None = None):
            output = super().forward(x, labels)
            if self.training and output.loss is not None:
                losses.append(output.loss.item())
            return output

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = Counting()

        def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
            return self.model(**batch).loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return adamw(self.model)

    callback = LightningCallback(PROBE, module="model", **options())
    trainer = LightningTrainer(
        max_steps=6, accumulate_grad_batches=2, accelerator="cpu", callbacks=[callback], logger=False,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, default_root_dir=tmp_path,
    )  # fmt: skip
    rows = [{"x": x, "labels": x.sum().gt(0).long()} for x in torch.cat(batches(12))]
    trainer.fit(Module(), DataLoader(rows, batch_size=BATCH))
    assert len(losses) == 12
    expected = [np.nan, np.mean(losses[:6]), np.mean(losses[6:])]
    assert callback.dataset["train_loss"].values == pytest.approx(expected, nan_ok=True)
