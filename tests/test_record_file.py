"""The file of a record: what a killed, cut short, crowded or misplaced record leaves behind."""

from __future__ import annotations

import contextlib
import errno
import os
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


def test_the_file_is_the_dataset_at_every_step(model, tmp_path):
    """A variable comes in the middle; whoever has the file open keeps what it opened."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recorder = Recorder(model, batches(), every=1, path=tmp_path / "new" / "run.nc").attach(optimizer)
    train(model, range(1), optimizer, recorder)
    with xr.open_dataset(tmp_path / "new" / "run.nc") as first:
        for step in range(1, 14):
            train(model, range(step, step + 1), optimizer, recorder)
            with xr.open_dataset(tmp_path / "new" / "run.nc") as ds:
                xr.testing.assert_identical(ds.load(), recorder.dataset)
        assert first.load().sizes["step"] == 1
    recorder.close()
    assert recorder.dataset["accuracy"].notnull().values.tolist() == [False] * 6 + [True] * 9
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["run.nc"]


def test_sigkill_at_20_random_moments_loses_at_most_the_record_being_written(tmp_path):
    context, rng = children.context(), random.Random(0)
    lengths = []
    for i in range(20):
        news, end = context.Pipe(duplex=False)
        child = context.Process(target=children.record_for_ever, args=(tmp_path / f"{i}.nc", end))
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
        with xr.open_dataset(tmp_path / f"{i}.nc") as ds:
            steps = ds.load()["step"].values
        assert steps.tolist() == list(range(len(steps)))
        # Each update that was told of has its record; one more may have been written and not yet told.
        assert made + 1 <= len(steps) <= made + 2
        assert ds["fisher_trace"].notnull().all()
        assert (ds["update_norm"] > 0).all()
        lengths.append(len(steps))
        net = children.model()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        recorder = Recorder(net, batches()[:1], every=1, resume=tmp_path / f"{i}.nc").attach(optimizer, step=len(steps))
        train(net, range(1), optimizer)
        with xr.open_dataset(tmp_path / f"{i}.nc") as ds:
            xr.testing.assert_identical(ds.load(), recorder.dataset)
        assert ds["step"].values.tolist() == list(range(len(steps) + 1))
    assert len(set(lengths)) > 5  # the moments were different ones
    assert min(lengths) < 10 < max(lengths)  # and some came after the variable in the middle


@pytest.mark.parametrize("stop_in", ["to_netcdf", "replace"])
def test_half_a_record_is_not_seen(model, tmp_path, monkeypatch, stop_in):
    """Stopped while the new file is written, and before it takes its place: readers see what there was before."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recorder = Recorder(model, batches(), every=1, path=tmp_path / "run.nc").attach(optimizer)
    train(model, range(3), optimizer)
    before = recorder.dataset

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(*{"to_netcdf": (xr.Dataset, "to_netcdf"), "replace": (os, "replace")}[stop_in], interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(model, range(1), optimizer)
    with xr.open_dataset(tmp_path / "run.nc") as ds:
        xr.testing.assert_identical(ds.load(), before)


def test_a_run_goes_on_where_it_was_cut_short(model, tmp_path):
    whole, half = children.model(), children.model()
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.1) for net in (whole, half)]
    with Recorder(whole, batches(), every=2).attach(optimizers[0]) as expected:
        train(whole, range(11), optimizers[0], expected)
    first = Recorder(half, batches(), every=2, path=tmp_path / "run.nc").attach(optimizers[1])
    train(half, range(6), optimizers[1], first)
    checkpoint = {name: weight.clone() for name, weight in half.state_dict().items()}
    train(half, range(6, 9), optimizers[1], first)  # beyond the checkpoint: made again
    del first
    half.load_state_dict(checkpoint)
    optimizers[1] = torch.optim.SGD(half.parameters(), lr=0.1)
    with Recorder(half, batches(), every=2, resume=tmp_path / "run.nc").attach(optimizers[1], step=6) as resumed:
        train(half, range(6, 11), optimizers[1], resumed)
    assert resumed.dataset["step"].values.tolist() == [0, 2, 4, 6, 8, 10, 11]
    # What was logged between the last record and the checkpoint was logged by the process that is gone.
    gone = ["train_loss", "accuracy"]
    xr.testing.assert_identical(resumed.dataset.drop_vars(gone), expected.dataset.drop_vars(gone))
    with xr.open_dataset(tmp_path / "run.nc") as ds:
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
        FisherCallback(probe, every=5, path=tmp_path / "run.nc"),
        FisherCallback(probe, every=5, resume=tmp_path / "run.nc"),
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
    with Recorder(model, path=tmp_path / "run.nc", **given).attach(optimizer):
        train(model, range(3), optimizer)
    before = (tmp_path / "run.nc").read_bytes()
    with pytest.raises(ValueError, match=message):
        Recorder(model, resume=tmp_path / "run.nc", **{**given, **changed}).attach(optimizer, step=4).close()
    assert (tmp_path / "run.nc").read_bytes() == before


def test_a_resumed_record_must_know_where_it_is(model, tmp_path):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    Recorder(model, batches(), path=tmp_path / "run.nc").attach(optimizer).close()
    with pytest.raises(ValueError, match="goes on after step 0: say at which step training does"):
        Recorder(model, batches(), resume=tmp_path / "run.nc").attach(optimizer)
    by_hand = Recorder(model, batches(), every=100, resume=tmp_path / "run.nc")
    with pytest.raises(ValueError, match="goes on after step 0: say at which step training does"):
        by_hand.step()
    by_hand.go_on_at(99)
    by_hand.step()
    by_hand.step()
    assert by_hand.dataset["step"].values.tolist() == [0, 100]


def test_places_that_will_not_do(model, tmp_path):
    (tmp_path / "file.nc").write_text("mine")
    (tmp_path / "empty.nc").mkdir()
    xr.Dataset({"x": 1.0}).to_netcdf(tmp_path / "other.nc")
    for taken in ("file.nc", "empty.nc", "other.nc"):
        with pytest.raises(ValueError, match="there is something already; go on from it with resume="):
            Recorder(model, batches(), path=tmp_path / taken)
    for nothing in ("empty.nc", "nowhere.nc", "file.nc", "other.nc"):
        with pytest.raises(ValueError, match=r"no record to go on from .*begin one with path="):
            Recorder(model, batches(), resume=tmp_path / nothing)
    for name in ("run", "run.zarr"):
        with pytest.raises(ValueError, match=r"expected a path that ends in \.nc, such as .*run\.nc"):
            Recorder(model, batches(), path=tmp_path / name)
    with pytest.raises(ValueError, match="got both"):
        Recorder(model, batches(), path=tmp_path / "a.nc", resume=tmp_path / "b.nc")
    assert (tmp_path / "file.nc").read_text() == "mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty.nc", "file.nc", "other.nc"]


def full_disk(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def broken_hdf(*_: object, **__: object) -> None:
    raise RuntimeError("NetCDF: HDF error")


@pytest.mark.parametrize(("failure", "reason"), [(full_disk, "No space left"), (broken_hdf, "HDF error")])
def test_steps_stay_right_after_a_record_that_could_not_be_saved(model, tmp_path, monkeypatch, failure, reason):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recorder = Recorder(model, batches(), every=1, path=tmp_path / "run.nc").attach(optimizer)
    train(model, range(3), optimizer)
    for step in (3, 4):
        with monkeypatch.context() as patched:
            patched.setattr(xr.Dataset, "to_netcdf", failure)
            with pytest.raises(
                OSError,
                match=rf"record at step {step} could not be saved .*{reason}.*all {step + 1} records are in memory",
            ):
                train(model, range(1), optimizer)
        with xr.open_dataset(tmp_path / "run.nc") as ds:
            assert ds["step"].values.tolist() == [0, 1, 2]
    assert recorder.updates == 5
    train(model, range(1), optimizer)  # there is room again
    assert recorder.dataset["step"].values.tolist() == [0, 1, 2, 3, 4, 5]
    with xr.open_dataset(tmp_path / "run.nc") as ds:
        xr.testing.assert_identical(ds.load(), recorder.dataset)
    assert [p.name for p in tmp_path.iterdir()] == ["run.nc"]


def test_steps_of_a_loop_of_ones_own_stay_right_too(model, tmp_path, monkeypatch):
    recorder = Recorder(model, batches(), every=1, path=tmp_path / "run.nc")
    recorder.step()
    with monkeypatch.context() as patched:
        patched.setattr(xr.Dataset, "to_netcdf", full_disk)
        with pytest.raises(OSError, match="record at step 1 could not be saved"):
            recorder.step()
    recorder.step()
    assert recorder.dataset["step"].values.tolist() == [0, 1, 2]


def test_the_last_record_is_saved_by_close(model, tmp_path, monkeypatch):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recorder = Recorder(model, batches(), steps=[0], path=tmp_path / "run.nc").attach(optimizer)
    with monkeypatch.context() as patched:
        patched.setattr(xr.Dataset, "to_netcdf", full_disk)
        with pytest.raises(OSError, match="record at step 0 could not be saved"):
            train(model, range(1), optimizer)
    recorder.close()
    with xr.open_dataset(tmp_path / "run.nc") as ds:
        xr.testing.assert_identical(ds.load(), recorder.dataset)


def test_a_disk_that_is_full_from_the_start(model, tmp_path, monkeypatch):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recorder = Recorder(model, batches(), every=1, path=tmp_path / "run.nc").attach(optimizer)
    with monkeypatch.context() as patched:
        patched.setattr(xr.Dataset, "to_netcdf", full_disk)
        with pytest.raises(OSError, match="record at step 0 could not be saved"):
            train(model, range(1), optimizer)
    train(model, range(2), optimizer)
    with xr.open_dataset(tmp_path / "run.nc") as ds:
        xr.testing.assert_identical(ds.load(), recorder.dataset)


def test_nothing_of_the_users_is_touched(model, tmp_path):
    """Neither by names that are logged, which are refused before the disk is touched, nor by files beside the record."""
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "chapter.txt").write_text("years of work")
    (tmp_path / ".run.nc.part").write_text("mine")
    recorder = Recorder(model, batches(), every=1, path=tmp_path / "runs" / "run.nc")
    for name in (str(thesis), "../thesis", "", ".", "..", "a b", "1st", "a.b", "a-b"):
        with pytest.raises(ValueError, match="expected a name of letters, digits and underscores, got"):
            recorder.log(**{name: 1.0})
    with pytest.raises(ValueError, match="got 'val/loss': log it as 'val_loss', for instance"):
        recorder.log(**{"val/loss": 1.0})
    assert not (tmp_path / "runs").exists()
    recorder.log(val_loss=1.0)
    recorder.step()
    assert (thesis / "chapter.txt").read_text() == "years of work"
    assert (tmp_path / ".run.nc.part").read_text() == "mine"
    with xr.open_dataset(tmp_path / "runs" / "run.nc") as ds:
        xr.testing.assert_identical(ds.load(), recorder.dataset)


def test_attributes_that_a_file_cannot_hold_are_refused_before_training(model, tmp_path):
    with pytest.raises(
        ValueError, match=r"attributes that are texts, numbers or lists of them, got folder=.*use str\(\)"
    ):
        Recorder(model, batches(), path=tmp_path / "run.nc", attrs={"folder": tmp_path})
    recorder = Recorder(model, batches(), path=tmp_path / "run.nc", attrs={"clipped": True, "betas": [0.9, 0.999]})
    recorder.step()
    with xr.open_dataset(tmp_path / "run.nc") as ds:
        assert ds.attrs["clipped"] == 1
        xr.testing.assert_identical(ds.load(), recorder.dataset)
