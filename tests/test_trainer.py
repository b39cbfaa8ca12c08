"""FUN and its record under transformers' Trainer, on a model without adapters: with transformers 4 and 5 alike."""

from __future__ import annotations

import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments
from zoo.huggingface import bert

from fisherdyn import policies
from fisherdyn.integrations.transformers import FisherCallback, UnfreezingCallback

STEPS, BLOCKS = 4, r"layer\.(\d+)\."


def sentences() -> list[dict[str, torch.Tensor]]:
    ids = torch.randint(5, 30, (16, 6), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": x, "labels": x.sum() % 3} for x in ids]


def train(model: torch.nn.Module, folder: object, *callbacks: TrainerCallback) -> None:
    options = {"use_cpu": True, "report_to": [], "disable_tqdm": True, "save_strategy": "no", "logging_strategy": "no"}
    arguments = TrainingArguments(
        str(folder), max_steps=STEPS, per_device_train_batch_size=4, dataloader_pin_memory=False, **options
    )
    Trainer(model, arguments, train_dataset=sentences(), callbacks=list(callbacks)).train()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_fun_opens_the_block_with_the_largest_trace(tmp_path):
    torch.manual_seed(0)
    model = bert().model
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    unfreezing = UnfreezingCallback(policies.fun(batches=2), STEPS, layers=BLOCKS)  # no second block within the steps
    train(model, tmp_path, unfreezing)
    assert unfreezing.unfreezing.decisions == [(0, ("1",))]
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert any(".layer.1." in name for name in moved)
    assert not any(".layer.0." in name for name in moved)

    model = bert().model
    unfreezing = UnfreezingCallback(policies.fun(batches=2), 2, layers=BLOCKS)
    train(model, tmp_path, unfreezing)
    (selection,) = unfreezing.unfreezing.selections
    best = max(selection.scores, key=lambda layer: selection.scores[layer][0])
    assert unfreezing.unfreezing.decisions == [(0, ("1",)), (2, (best,))]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_record_is_kept(tmp_path):
    torch.manual_seed(0)
    batch = torch.utils.data.default_collate(sentences()[:8])
    recorder = FisherCallback([batch], every=2)
    train(bert().model, tmp_path, recorder)
    assert recorder.dataset["step"].values.tolist() == [0, 2, 4]
    assert bool((recorder.dataset["fisher_trace"] > 0).all())
