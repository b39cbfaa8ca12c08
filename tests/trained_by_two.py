"""What each of two processes does in `test_several_processes`: FUN under a Trainer or Lightning, on the embedded world."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import lightning.pytorch as L
import torch
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from fisherdyn import policies, schedule, tasks
from fisherdyn.integrations import lightning as for_lightning
from fisherdyn.integrations import transformers as for_transformers

EXAMPLES, BATCH, K, STEPS = 96, 8, 2, 8


def world():
    return tasks.load("world", train_examples=EXAMPLES, dev_examples=8, test_examples=8, batch=BATCH)


class Module(L.LightningModule):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def training_step(self, batch, batch_idx):
        return self.model(**batch).loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.model.parameters(), lr=8e-3)


def by_trainer(model, data, policy, folder):
    callback = for_transformers.UnfreezingCallback(policy, K)
    args = TrainingArguments(
        output_dir=folder,
        max_steps=STEPS,
        per_device_train_batch_size=BATCH,
        learning_rate=8e-3,
        use_cpu=True,
        ddp_backend="gloo",
        ddp_find_unused_parameters=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    Trainer(model, args, train_dataset=data, callbacks=[callback]).train()
    return callback.unfreezing


def by_lightning(model, data, policy, folder):
    callback = for_lightning.UnfreezingCallback(policy, K, module="model")
    trainer = L.Trainer(
        max_steps=STEPS,
        accelerator="cpu",
        devices=2,
        strategy="ddp_find_unused_parameters_true",
        callbacks=[callback],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=folder,
    )
    trainer.fit(Module(model), DataLoader(data, batch_size=BATCH))
    return callback.unfreezing


def main(trainer: str, folder: str) -> None:
    """Leaves in the folder: decisions, selections and weights of this rank, and what it had when it chose."""
    torch.set_num_threads(1)
    task, choose, chosen_with = world(), schedule.choose, []
    split = task.split(0)
    data = [{name: x[i] for name, x in split.items()} for i in range(EXAMPLES)]

    def watched(model, *args, **kwargs):
        chosen_with.append({name: x.clone() for name, x in model.state_dict().items()})
        return choose(model, *args, **kwargs)

    schedule.choose = watched
    model = task.build_model(0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train = {"trainer": by_trainer, "lightning": by_lightning}[trainer]
    unfreezing = train(model, data, policies.fun("exact", batches=EXAMPLES // BATCH, error_rate=0.0), folder)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    found = unfreezing.layers, unfreezing.decisions, unfreezing.selections, moved, model.state_dict(), chosen_with
    torch.save(found, Path(folder) / f"{os.environ['RANK']}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
