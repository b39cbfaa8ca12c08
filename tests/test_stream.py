"""The store that grows: what a killed, cut short, crowded or misplaced record leaves behind."""

from __future__ import annotations

import contextlib
import errno
import json
import random
import time

import children
import numpy as np
import pytest
import torch
import xarray as xr
from children import batches
from torch import nn
from transformers import Trainer, TrainingArguments

from fisherdyn import Recorder
from fisherdyn.integrations.transformers import FisherCallback
from fisherdyn.recording import ledger, stream


@pytest.fixture
def model():
    return children.model()


def train(model: nn.Module, steps: range, optimizer: torch.optim.Optimizer, recorder: Recorder | None = None) -> None:
    x, *_ = batches()
    for step in steps:
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        if recorder is not None:
            recorder.log(train_loss=loss, **({"accuracy": step / 10} if step > 4 else {}))


def test_the_store_is_the_dataset_at_every_step(model, tmp_path, monkeypatch):
    """With chunks of 4 records, so that chunks fill up and new ones begin; a variable comes in the middle."""
    monkeypatch.setattr(stream, "ROWS", 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recorder = Recorder(model, batches(), every=1, path=tmp_path / "run").attach(optimizer)
    for step in range(14):
        train(model, range(step, step + 1), optimizer, recorder)
        with xr.open_zarr(tmp_path / "run") as ds:
            xr.testing.assert_identical(ds.load(), recorder.dataset)
        with xr.open_dataset(tmp_path / "run", engine="zarr") as ds:
            assert ds.sizes["step"] == step + 1
    recorder.close()
    assert recorder.dataset["accuracy"].notnull().values.tolist() == [False] * 6 + [True] * 9
    with xr.open_zarr(tmp_path / "run", consolidated=False) as ds:
        xr.testing.assert_identical(ds.load(), recorder.dataset)


def test_sigkill_at_20_random_moments_loses_at_most_the_record_being_written(tmp_path):
    context, rng = children.context(), random.Random(0)
    lengths = []
    for i in range(20):
        news, end = context.Pipe(duplex=False)
        child = context.Process(target=children.record_for_ever, args=(tmp_path / str(i), end))
        child.start()
        end.close()
        made = -1
        for _ in range(rng.randint(1, 25)):
            made = news.recv()
        time.sleep(rng.uniform(0, 0.02))
        child.kill()
        child.join()
        with contextlib.suppress(EOFError):
            while True:
                made = news.recv()
        with xr.open_zarr(tmp_path / str(i)) as ds:
            steps = ds.load()["step"].values
        assert steps.tolist() == list(range(len(steps)))
        # Each update that was told of has its record; one more may have been written and not yet told.
        assert made + 1 <= len(steps) <= made + 2
        assert ds["fisher_trace"].notnull().all()
        assert (ds["update_norm"] > 0).all()
        lengths.append(len(steps))
        net = children.model()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        recorder = Recorder(net, batches()[:1], every=1, resume=tmp_path / str(i)).attach(optimizer, step=len(steps))
        train(net, range(1), optimizer)
        with xr.open_zarr(tmp_path / str(i)) as ds:
            xr.testing.assert_identical(ds.load(), recorder.dataset)
        assert ds["step"].values.tolist() == list(range(len(steps) + 1))
    assert len(set(lengths)) > 5  # the moments were different ones
    assert min(lengths) < 10 < max(lengths)  # and some came after the variable in the middle


def test_half_a_record_is_not_seen(model, tmp_path, monkeypatch):
    """Stopped after each file that a record writes, in turn: readers always see what there was before."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recorder = Recorder(model, batches(), every=1, path=tmp_path / "run").attach(optimizer)
    train(model, range(3), optimizer)
    before = recorder.dataset
    write_row = stream.Stream._write_row
    for stop_after in range(8):
        done = []

        def write(self, name, index, row, done=done, stop_after=stop_after):
            if len(done) == stop_after:
                raise KeyboardInterrupt
            done.append(write_row(self, name, index, row))

        monkeypatch.setattr(stream.Stream, "_write_row", write)
        with pytest.raises(KeyboardInterrupt):
            train(model, range(1), optimizer)
        with xr.open_zarr(tmp_path / "run") as ds:
            xr.testing.assert_identical(ds.load(), before)


def test_a_run_goes_on_where_it_was_cut_short(model, tmp_path):
    whole, half = children.model(), children.model()
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.1) for net in (whole, half)]
    with Recorder(whole, batches(), every=2).attach(optimizers[0]) as expected:
        train(whole, range(11), optimizers[0], expected)
    first = Recorder(half, batches(), every=2, path=tmp_path / "run").attach(optimizers[1])
    train(half, range(6), optimizers[1], first)
    checkpoint = {name: weight.clone() for name, weight in half.state_dict().items()}
    train(half, range(6, 9), optimizers[1], first)  # beyond the checkpoint: made again
    del first
    half.load_state_dict(checkpoint)
    optimizers[1] = torch.optim.SGD(half.parameters(), lr=0.1)
    with Recorder(half, batches(), every=2, resume=tmp_path / "run").attach(optimizers[1], step=6) as resumed:
        train(half, range(6, 11), optimizers[1], resumed)
    assert resumed.dataset["step"].values.tolist() == [0, 2, 4, 6, 8, 10, 11]
    # What was logged between the last record and the checkpoint was logged by the process that is gone.
    gone = ["train_loss", "accuracy"]
    xr.testing.assert_identical(resumed.dataset.drop_vars(gone), expected.dataset.drop_vars(gone))
    with xr.open_zarr(tmp_path / "run") as ds:
        xr.testing.assert_identical(ds.load(), resumed.dataset)


def test_a_trainer_goes_on_where_it_was_cut_short(tmp_path):
    """From a checkpoint at step 10, the record having come to 15; and its losses are those that the Trainer reports."""
    rows = [{"x": x, "labels": x.sum().gt(0).long()} for x in torch.cat(batches(20))]

    def train_to(last: int, callback: FisherCallback, **go_on: str) -> Trainer:
        arguments = TrainingArguments(
            str(tmp_path / "checkpoints"), max_steps=last, per_device_train_batch_size=4, gradient_accumulation_steps=2,
            learning_rate=0.1, lr_scheduler_type="constant", save_steps=10, logging_steps=1, report_to=[], use_cpu=True,
            disable_tqdm=True, dataloader_pin_memory=False,
        )  # fmt: skip
        torch.manual_seed(0)
        trainer = Trainer(children.Answering(), arguments, train_dataset=rows, callbacks=[callback])
        trainer.train(**go_on)
        return trainer

    probe = [{"x": x} for x in batches()]
    whole = FisherCallback(probe, every=5)
    losses = [one["loss"] for one in train_to(20, whole).state.log_history if "loss" in one]
    cut_short, resumed = (
        FisherCallback(probe, every=5, path=tmp_path / "run"),
        FisherCallback(probe, every=5, resume=tmp_path / "run"),
    )
    train_to(15, cut_short)
    train_to(20, resumed, resume_from_checkpoint=str(tmp_path / "checkpoints" / "checkpoint-10"))
    assert resumed.dataset["step"].values.tolist() == [0, 5, 10, 15, 20]
    xr.testing.assert_identical(resumed.dataset.drop_vars("train_loss"), whole.dataset.drop_vars("train_loss"))
    # The loss of the update from here is known when the record is made.
    means = [np.mean(losses[:1]), *(np.mean(losses[a:b]) for a, b in ((1, 6), (6, 11), (11, 16), (16, 20)))]
    assert whole.dataset["train_loss"].values == pytest.approx(means, abs=1e-3)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"layers": r"^(2)\."}, "holds a record of other layers .*0 of 30, 2 of 21; here 2 of 21"),
        ({"loader": {"a": batches(), "b": batches()}}, r"holds a record of loaders \[\], here they are \['a', 'b'\]"),
        ({"seed": 1}, "was made otherwise .*label_seed: 0 then, 1 now"),
        ({"every": 3}, "was made otherwise .*recorded: 'every 2' then, 'every 3' now"),
        ({"labels": "exact"}, "was made otherwise .*estimator: 'hooks/rademacher' then, 'hooks/exact' now"),
        ({"num_batches": 2}, "was made otherwise .*batches: 4 then, 2 now"),
        ({"attrs": {"lr": 2.0}}, r"was made otherwise .*lr: 0.1 then, 2.0 now"),
    ],
)
def test_another_record_is_not_gone_on_with(model, tmp_path, changed, message):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    given = {"loader": batches(), "every": 2, "attrs": {"lr": 0.1}}
    with Recorder(model, path=tmp_path / "run", **given).attach(optimizer):
        train(model, range(3), optimizer)
    before = (tmp_path / "run" / stream.CONSOLIDATED).read_text()
    with pytest.raises(ValueError, match=message):
        Recorder(model, resume=tmp_path / "run", **{**given, **changed}).attach(optimizer, step=4).close()
    assert (tmp_path / "run" / stream.CONSOLIDATED).read_text() == before


def test_a_resumed_record_must_know_where_it_is(model, tmp_path):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    Recorder(model, batches(), path=tmp_path / "run").attach(optimizer).close()
    with pytest.raises(ValueError, match="goes on after step 0: say at which step training does"):
        Recorder(model, batches(), resume=tmp_path / "run").attach(optimizer)
    by_hand = Recorder(model, batches(), every=100, resume=tmp_path / "run")
    with pytest.raises(ValueError, match="goes on after step 0: say at which step training does"):
        by_hand.step()
    by_hand.go_on_at(99)
    by_hand.step()
    by_hand.step()
    assert by_hand.dataset["step"].values.tolist() == [0, 100]


def test_places_that_will_not_do(model, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="expected a folder for a zarr store, found a file"):
        Recorder(model, batches(), path=tmp_path / "file")
    with pytest.raises(ValueError, match="there is something already; go on from it with resume="):
        Recorder(model, batches(), path=tmp_path / "empty")
    for nothing in ("empty", "nowhere"):
        with pytest.raises(ValueError, match=r"no record to go on from .*begin one with path="):
            Recorder(model, batches(), resume=tmp_path / nothing)
    with pytest.raises(ValueError, match="got both"):
        Recorder(model, batches(), path=tmp_path / "a", resume=tmp_path / "b")


@pytest.mark.parametrize("full_at", ["_write_row", "_commit"])
def test_a_full_disk(model, tmp_path, monkeypatch, full_at):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recorder = Recorder(model, batches(), every=1, path=tmp_path / "run").attach(optimizer)
    train(model, range(3), optimizer)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(stream.Stream, full_at, full)
        with pytest.raises(
            OSError, match=r"record at step 3 could not be saved .No space left.*all 4 records are in memory"
        ):
            train(model, range(1), optimizer)
    with xr.open_zarr(tmp_path / "run") as ds:
        assert ds["step"].values.tolist() == [0, 1, 2]
    assert recorder.dataset["step"].values.tolist() == [0, 1, 2, 3]
    train(model, range(1), optimizer)  # there is room again
    with xr.open_zarr(tmp_path / "run") as ds:
        xr.testing.assert_identical(ds.load(), recorder.dataset)


def test_a_disk_that_is_full_from_the_start(model, tmp_path, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recorder = Recorder(model, batches(), every=1, path=tmp_path / "run").attach(optimizer)
    with monkeypatch.context() as patched:
        patched.setattr(xr.Dataset, "to_zarr", full)
        with pytest.raises(OSError, match="record at step 0 could not be saved"):
            train(model, range(1), optimizer)
    train(model, range(2), optimizer)
    with xr.open_zarr(tmp_path / "run") as ds:
        xr.testing.assert_identical(ds.load(), recorder.dataset)


def test_what_is_in_the_store_is_plain_zarr(model, tmp_path):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    Recorder(model, batches(), path=tmp_path / "run").attach(optimizer).close()
    listed = json.loads((tmp_path / "run" / stream.CONSOLIDATED).read_text())["metadata"]
    assert listed["fisher_trace/.zarray"]["chunks"] == [stream.ROWS, 2]
    assert np.dtype(listed["step/.zarray"]["dtype"]) == np.int64
    assert ledger.Stream is stream.Stream
