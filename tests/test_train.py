"""fit(): what Algorithm 1 promises, on a small model whose every step can be followed."""

from __future__ import annotations

import copy
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import xarray as xr
from test_schedule import TABLE
from torch import nn
from torch.utils.data import DataLoader

from fisherdyn import fit, policies
from fisherdyn.loop.checkpoint import checkpoints, newest, write
from fisherdyn.schedule import authors_steps
from fisherdyn.settings import Checkpoints, Evaluation, Execution, Measurement, Optimization
from fisherdyn.validation import fields_of


class Tiny(nn.Module):
    """Four layers and a head that answers like a HF model."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.ModuleList(nn.Linear(5, 5) for _ in range(4))
        self.head = nn.Linear(5, 3)

    def forward(self, x, labels=None):
        for layer in self.body:
            x = x + torch.tanh(layer(x))
        logits = self.head(x)
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return SimpleNamespace(logits=logits, loss=loss)


LAYERS = {str(i): (f"body.{i}.weight", f"body.{i}.bias") for i in range(4)}


def make_data():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(48, 5, generator=g)
    y = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
    return [{"x": a, "labels": b} for a, b in zip(x.split(8), y.split(8), strict=True)]


@pytest.fixture
def data():
    return make_data()


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Tiny()


def run(model, data, policy=None, **changes):
    """fit() by the names of `NAMES`, so that a test says only what it is about."""
    probed = {} if "probe_loader" in changes else {"probe_loader": data[:2]}
    options = {**probed, "interval": 4, "steps": 20, "lr": 1e-2, "record_every": 5, "layers": LAYERS}
    options |= {"policy": policy or policies.top_down(), **changes}
    values = {name: {} for name in KINDS}
    for name in [name for name in options if name in NAMES]:
        section, field = NAMES[name]
        values[section][field] = options.pop(name)
    made = {name: kind(**values[name]) for name, kind in KINDS.items() if values[name]}
    return fit(model, data, **made, **options)


KINDS = {
    "optimization": Optimization,
    "measurement": Measurement,
    "evaluation": Evaluation,
    "execution": Execution,
    "checkpoints": Checkpoints,
}
NAMES = {
    "probe_loader": ("measurement", "loader"),
    "record_every": ("measurement", "every"),
    "labels": ("measurement", "labels"),
    "selection_loader": ("measurement", "selection_loader"),
    "evaluate_source": ("evaluation", "source"),
    "evaluate": ("evaluation", "targets"),
    "evaluate_every": ("evaluation", "every"),
    "patience": ("evaluation", "patience"),
    "keep_best": ("evaluation", "keep_best"),
    "checkpoint_folder": ("checkpoints", "folder"),
    "checkpoint_every": ("checkpoints", "every"),
    **{name: ("optimization", name) for name in fields_of(Optimization)},
    **{name: ("execution", name) for name in fields_of(Execution)},
}
"""Option of `run` -> the settings and their field."""


def test_record(model, data):
    ds = run(model, data, evaluate_source=lambda m: 0.5, evaluate={"a": lambda m: 0.25}, evaluate_every=10)
    assert dict(ds.sizes) == {"step": 5, "layer": 4, "eval_step": 2, "target": 1}
    assert ds["step"].values.tolist() == [0, 5, 10, 15, 20]
    assert ds["trainable"].values.tolist() == [[0, 0, 0, 1], [0, 0, 1, 1], [0, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]]
    assert ds["selected"].values.tolist() == [12, 8, 4, 0]
    assert (ds["fisher_trace"] > 0).all()
    assert (ds["fisher_trace_se"] > 0).all()
    assert np.isnan(ds["train_loss"].values).tolist() == [True, False, False, False, False]
    assert {"estimator", "likelihood", "policy", "seed", "revision", "packages"} <= set(ds.attrs)
    assert all({"long_name", "units"} <= set(v.attrs) for v in ds.variables.values())


def test_frozen_layers_do_not_move_by_a_bit_until_they_open(model, data):
    before = copy.deepcopy(model.state_dict())
    run(model, data, steps=8)  # layer 2 opens at 4; layer 1 would at 8
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for layer in "01" for name in LAYERS[layer])
    assert all(not torch.equal(before[name], after[name]) for layer in "23" for name in LAYERS[layer])
    assert not torch.equal(before["head.weight"], after["head.weight"])


def test_standard_is_plain_training(model, data):
    """Recording and scheduling change nothing: bit for bit the loop that anyone would write."""
    plain = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-2, weight_decay=0.01, fused=True)
    for step in range(20):
        loss = plain(**data[step % 6]).loss
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()
    state = torch.get_rng_state()
    run(model, data, policies.all_at_once())
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), model.parameters(), strict=True))
    assert torch.equal(torch.get_rng_state(), state)


def test_adam_starts_when_a_layer_opens(model, data):
    """The first update of a layer that opens at step 4 is AdamW's first: of size lr (1 + decay), not of a later step."""
    before = copy.deepcopy(model.state_dict()["body.2.weight"])
    run(model, data, steps=5, weight_decay=0.0)
    moved = (model.state_dict()["body.2.weight"] - before).abs()
    torch.testing.assert_close(moved, torch.full_like(moved, 1e-2), rtol=1e-3, atol=0.0)


@pytest.mark.parametrize("name", policies.NAMED)
def test_every_policy_trains_and_repeats(model, data, name):
    twin = copy.deepcopy(model)
    a, b = (run(m, data, policies.NAMED[name]) for m in (model, twin))
    xr.testing.assert_identical(a, b)
    assert a["train_loss"][-1] < a["train_loss"][1]


@pytest.mark.parametrize("policy", [policies.random_order, policies.fun])
@pytest.mark.parametrize("seed", range(4))
def test_recording_more_often_changes_no_choice(model, data, policy, seed):
    twin = copy.deepcopy(model)
    pairs = ((model, 20), (twin, 1))
    rarely, often = (run(m, data, policy(), record_every=n, labels="mc", seed=seed) for m, n in pairs)
    assert rarely["selected"].values.tolist() == often["selected"].values.tolist()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_fun_opens_the_largest_trace(model, data):
    """The choices are those that the recorded traces, taken at the same steps, call for."""
    ds = run(model, data, policies.fun(), labels="exact", record_every=4)
    for step, layer in sorted(zip(ds["selected"].values, ds["layer"].values, strict=True))[1:]:
        now = ds.sel(step=step)
        frozen = ds["layer"].values[(ds.sel(step=step - 4)["trainable"] == 0).values]
        assert layer == max(frozen, key=lambda name: float(now["fisher_trace"].sel(layer=name)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps as a whole number of at least 1, got 0"),
        ({"record_every": 0}, "every as a whole number of at least 1"),
        ({"interval": 0}, "interval that is a whole number of at least 1"),
        ({"interval": 2.5}, "interval that is a whole number .*got 2.5"),
        ({"steps": 2.5}, "steps as a whole number of at least 1.*, got 2.5"),
        ({"steps": "20"}, "steps as a whole number of at least 1.*, got '20'"),
        ({"steps": True}, "steps as a whole number of at least 1.*, got True"),
        ({"evaluate_every": 0}, "every as a whole number of at least 1.*, got 0"),
        ({"evaluate_every": 1.5}, "every as a whole number of at least 1.*, got 1.5"),
        ({"checkpoint_folder": "a", "checkpoint_every": None}, "every as a whole number of at least 1.*, got None"),
        ({"lr": "1e-3"}, "lr as a number of at least 0, such as 1e-3, got '1e-3'"),
        ({"lr": -1}, "lr as a number of at least 0, .*got -1"),
        ({"lr": float("nan")}, "lr as a number of at least 0, .*got nan"),
        ({"seed": None}, "seed as a whole number, got None"),
        ({"seed": 1.5}, "seed as a whole number, got 1.5"),
        ({"lr": 1e30}, "training loss is (nan|inf) at step [0-9]+: lower lr|not finite"),
        ({"layers": {"a": ("body.9.weight",)}}, "no parameter 'body.9.weight'"),
        ({"probe_loader": []}, "gave no batch"),
    ],
)
def test_bad_input(model, data, changes, message):
    with pytest.raises(ValueError, match=message):
        run(model, data, **changes)


def test_numpys_numbers_are_numbers(model, data, tmp_path):
    twin, options = copy.deepcopy(model), {"evaluate": {"a": lambda m: 0.5}, "checkpoint_every": 2}
    plain = {"interval": (2, 4), "steps": 6, "record_every": 3, "evaluate_every": 3, "seed": 1, "lr": 0.25}
    ours = {name: np.array(value) if name == "interval" else np.int64(value) for name, value in plain.items()}
    a = run(model, data, checkpoint_folder=tmp_path / "a", **plain, **options)
    b = run(twin, data, checkpoint_folder=tmp_path / "b", **{**ours, "lr": np.float32(0.25)}, **options)
    xr.testing.assert_identical(a, b)


def test_a_loader_that_is_used_up(model, data):
    with pytest.raises(ValueError, match="train_loader gave no batch"):
        run(model, iter(data), probe_loader=data[:2])


def test_a_loader_that_selections_would_restart_is_refused_before_training(model, data):
    examples = [{name: x[i] for name, x in batch.items()} for batch in data for i in range(8)]
    loader = DataLoader(examples, batch_size=8, num_workers=1, persistent_workers=True)
    with pytest.raises(ValueError, match=r"give the selections a loader of their own \(selection_loader= of fit"):
        run(model, loader, policies.fun(), probe_loader=data, on_step=lambda step, loss: pytest.fail("it was trained"))


def test_the_record_says_what_each_choice_rested_on(model, data):
    ds = run(model, data, policies.fun(), probe_loader=data[:2])  # by default on the training set
    assert ds["selection_step"].values.tolist() == [4, 8, 12]
    assert ds["selection_examples"].values.tolist() == [48, 48, 0]
    assert ds["selection_tie"].dtype == np.int8
    for step, layer in zip(ds["selection_step"].values, ds["selection_layer"].values, strict=True):
        assert int(ds["selected"].sel(layer=layer)) == step
    measured = ds["selection_trace"].notnull()
    assert measured.sum("layer").values.tolist() == [3, 2, 0]
    best = ds["selection_trace"][:2].fillna(-1).argmax("layer")
    assert ds["layer"].values[best.values].tolist() == ds["selection_layer"].values[:2].tolist()
    assert ((ds["selection_confidence"] >= 0) & (ds["selection_confidence"] <= 1)).all()


def test_unequal_intervals(model, data):
    ds = run(model, data, interval=authors_steps("top_down", 4, 4), steps=16)
    assert ds["selected"].values.tolist() == [15, 11, 7, 0]
    ds = run(Tiny(), data, interval=(2, 3, 9))
    assert ds["selected"].values.tolist() == [9, 3, 2, 0]


def test_accumulated_batches_are_one_large_batch(model, data):
    twin = copy.deepcopy(model)
    pairs = [{name: torch.cat([a[name], b[name]]) for name in a} for a, b in zip(data[::2], data[1::2], strict=True)]
    run(model, data, accumulate=2, probe_loader=data[:2])
    run(twin, pairs, probe_loader=data[:2])
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_linear_schedule(model, data):
    """The last of 20 updates has a twentieth of the rate: without decay, Adam's step is in proportion."""
    halfway, twin = copy.deepcopy(model), copy.deepcopy(model)
    run(halfway, data, steps=1, lr_schedule="linear", weight_decay=0.0)
    run(twin, data, steps=1, lr_schedule="constant", weight_decay=0.0)
    assert all(torch.equal(a, b) for a, b in zip(halfway.parameters(), twin.parameters(), strict=True))
    rates: list[float] = []

    class Spy(torch.optim.AdamW):
        def step(self, closure=None):
            rates.append(self.param_groups[0]["lr"])
            return super().step(closure)

    original, torch.optim.AdamW = torch.optim.AdamW, Spy
    try:
        run(model, data, steps=4, lr_schedule="linear", lr=1.0)
    finally:
        torch.optim.AdamW = original
    assert rates == [1.0, 0.75, 0.5, 0.25]


def test_the_source_alone_says_when_to_stop_and_what_is_best(model, data):
    source = iter([0.2, 0.5, 0.9, 0.9, 0.8, 0.7, 0.95])
    seen: list[torch.Tensor] = []

    def evaluate_source(m):
        seen.append(m.head.weight.detach().clone())
        return next(source)

    target = {"a": lambda m: m.head.weight.sum().item()}
    options = {"evaluate_source": evaluate_source, "evaluate": target, "record_every": 2}
    ds = run(model, data, patience=3, keep_best=True, **options)
    assert ds["step"].values.tolist() == [0, 2, 4, 6, 8, 10]
    assert int(ds["best_step"]) == 4
    assert torch.equal(model.head.weight, seen[2])
    assert float(ds["metric_at_best"][0]) == float(seen[2].sum())
    assert float(ds["metric"][-1, 0]) == float(seen[-1].sum())


def test_bf16_trains_near_float32(model, data):
    twin = copy.deepcopy(model)
    a, b = run(model, data), run(twin, data, precision="bf16")
    assert all(p.dtype == torch.float32 for p in twin.parameters())
    assert not xr.Dataset.identical(a[["train_loss"]], b[["train_loss"]])
    np.testing.assert_allclose(a["train_loss"][1:], b["train_loss"][1:], rtol=0.02)


def test_gradient_checkpointing_changes_nothing():
    from transformers import BertConfig, BertForSequenceClassification

    config = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
    g = torch.Generator().manual_seed(0)
    data = [{"input_ids": x, "labels": x.sum(dim=1) % 2} for x in torch.randint(20, (3, 8, 6), generator=g)]
    found = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = BertForSequenceClassification(BertConfig(**config, intermediate_size=16))
        options = {"layers": r"layer\.(\d+)\.", "gradient_checkpointing": checkpointing, "steps": 6, "interval": 2}
        run(model, data, policies.fun(), **options)
        assert not model.is_gradient_checkpointing
        found.append(model)
    assert all(torch.equal(a, b) for a, b in zip(*(m.parameters() for m in found), strict=True))


def test_compiled_once_more_each_time_a_layer_opens(data):
    """Ten layers, which is more than the compiler allows by itself before it gives up without a word."""

    class Deep(Tiny):
        def __init__(self):
            super().__init__()
            self.body = nn.ModuleList(nn.Linear(5, 5) for _ in range(10))

        def forward(self, x, labels=None):
            for layer in self.body:
                x = x + torch.tanh(layer(x))
            return SimpleNamespace(logits=self.head(x), loss=self._loss(x, labels))

        def _loss(self, x, labels):
            return None if labels is None else nn.functional.cross_entropy(self.head(x), labels)

    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    counter = CompileCounter()
    torch.manual_seed(0)
    model = Deep()
    twin = copy.deepcopy(model)
    layers = {str(i): (f"body.{i}.weight", f"body.{i}.bias") for i in range(10)}
    options = {"layers": layers, "interval": 2, "record_every": 3, "steps": 22}
    run(model, data, compile=counter, **options)
    assert counter.frame_count == 10
    run(twin, data, **options)
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_an_accelerator_of_one_process_changes_nothing(model, data):
    accelerate = pytest.importorskip("accelerate")
    twin = copy.deepcopy(model)
    a = run(model, data, policies.fun())
    b = run(twin, data, policies.fun(), accelerator=accelerate.Accelerator(cpu=True))
    xr.testing.assert_identical(a, b)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))


TWO = """
import os, sys
sys.path[:0] = [{tests!r}, {root!r}]
import torch
torch.set_num_threads(1)
import accelerate
from test_train import Tiny, run, make_data
from fisherdyn import policies
accelerator = accelerate.Accelerator(cpu=True)
assert accelerator.num_processes == 2
torch.manual_seed(0)
model = Tiny()
how = dict(labels="exact", checkpoint_folder={folder!r}, checkpoint_every=5)
ds = run(model, make_data(), policies.fun(), accelerator=accelerator, **how)
if accelerator.is_main_process:
    torch.save((model.state_dict(), ds.to_dict()), {out!r})
"""


def test_two_processes_do_what_one_does_with_twice_the_batches(model, data, tmp_path):
    pytest.importorskip("accelerate")
    root = Path(__file__).resolve().parent.parent
    out = tmp_path / "out.pt"
    code = TWO.format(tests=str(root / "tests"), root=str(root), folder=str(tmp_path / "runs"), out=str(out))
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    workers = [
        subprocess.Popen([sys.executable, "-c", code], env={**os.environ, **world, "RANK": r, "LOCAL_RANK": r})
        for r in "01"
    ]
    assert [worker.wait(timeout=300) for worker in workers] == [0, 0]
    weights, ds = torch.load(out, weights_only=False)
    two, one = xr.Dataset.from_dict(ds), run(model, data, policies.fun(), labels="exact", accumulate=2)
    assert two["selected"].values.tolist() == one["selected"].values.tolist()
    # tr(F) of each probe input once, shared out: otherwise its standard error would be too small by a root of two.
    for name in ("train_loss", "fisher_trace", "fisher_trace_se"):
        np.testing.assert_allclose(two[name], one[name], rtol=1e-3)
    assert two.attrs["examples"] == one.attrs["examples"]
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(weights[name], weight, rtol=1e-3, atol=1e-5)


class Noisy(Tiny):
    """With dropout, and a batch norm: the global random state and buffers count."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(5)

    def forward(self, x, labels=None):
        return super().forward(nn.functional.dropout(self.norm(x), 0.2, self.training), labels)


def long_run(folder, stop_at=None):
    """FUN, random shuffling from the global state, everything that has a state; killed as step `stop_at` begins."""
    torch.manual_seed(0)
    model = Noisy()
    rows = [{name: batch[name][i] for name in batch} for batch in make_data() for i in range(8)]
    loader = torch.utils.data.DataLoader(rows, batch_size=8, shuffle=True)
    updates = 0

    def counted(m, *_):
        nonlocal updates
        updates += m.training
        if updates == stop_at:
            os.kill(os.getpid(), signal.SIGKILL)

    model.register_forward_pre_hook(counted)
    options = {"evaluate_source": lambda m: m.head.weight.sum().item(), "keep_best": True, "labels": "mc"}
    options |= {"evaluate": {"a": lambda m: m.head.bias.sum().item()}, "evaluate_every": 7, "record_every": 3}
    options |= {"lr_schedule": "linear"} | ({"checkpoint_folder": folder, "checkpoint_every": 2} if folder else {})
    ds = run(model, loader, policies.fun(), probe_loader=make_data(), selection_loader=loader, **options)
    return {name: value.clone() for name, value in model.state_dict().items()}, ds, torch.get_rng_state()


def test_resume_after_sigkill_at_twenty_steps(tmp_path):
    """Killed as each of the 20 steps begins, and taken up: weights, record and random state as if nothing had happened."""
    weights, ds, state = long_run(None)
    for stop_at in range(1, 21):
        folder = tmp_path / str(stop_at)
        child = os.fork()
        if not child:
            long_run(folder, stop_at)
            os._exit(1)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        saved = checkpoints(folder)
        assert (saved[-1].name if saved else "") == (f"step-{(stop_at - 1) // 2 * 2:09d}.pt" if stop_at > 2 else "")
        again, record, after = long_run(folder)
        xr.testing.assert_identical(record, ds)
        assert all(torch.equal(again[name], weights[name]) for name in weights)
        assert torch.equal(after, state)


def test_checkpoints_are_there_whole_or_not_at_all(model, data, tmp_path, monkeypatch):
    """A disk that is full while a checkpoint is written leaves those that were there, and nothing else."""
    run(model, data, steps=7, checkpoint_folder=tmp_path, checkpoint_every=2)
    before = sorted(p.name for p in tmp_path.iterdir())
    assert before == ["step-000000004.pt", "step-000000006.pt"]

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fisherdyn.loop.checkpoint.torch.save", full)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path, 8, {})
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_checkpoints_of_another_run_are_refused(model, data, tmp_path):
    options = {"checkpoint_folder": tmp_path, "checkpoint_every": 2, "steps": 4}
    run(model, data, **options)
    with pytest.raises(ValueError, match=r"checkpoint of another run: it has lr 0.01, not 0.02.*Choose another"):
        run(model, data, lr=0.02, **options)
    other = Tiny()
    other.head = nn.Linear(5, 4)
    with pytest.raises(ValueError, match=r"weight head\.weight of shape"):
        run(other, data, **options)
    (tmp_path / "step-000000004.pt").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"damaged .* delete it to go on from the one before"):
        run(model, data, **options)
    with pytest.raises(ValueError, match="is a file: expected a folder"):
        run(model, data, checkpoint_folder=Path(__file__), steps=4)


def higher(_):
    return 0.5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (lambda data: {"probe_loader": data[:3]}, "measurement.loader of 2 batches, not of 3 batches"),
        (lambda data: {"selection_loader": data[:4]}, "measurement.selection_loader of 6 batches, not of 4 batches"),
        (
            lambda data: {"selection_loader": unsized(data)},
            "measurement.selection_loader of 6 batches, not of None batches",
        ),
        (lambda data: {"evaluate_source": higher}, "evaluation.source None, not a function"),
        (lambda data: {"evaluate_source": higher, "keep_best": True}, "evaluation.keep_best False, not True"),
    ],
)
def test_a_run_that_reads_or_evaluates_otherwise_is_refused_at_its_start(model, data, tmp_path, changes, message):
    options = {"checkpoint_folder": tmp_path, "checkpoint_every": 2, "steps": 4}
    run(model, data, **options)
    with pytest.raises(ValueError, match=f"checkpoint of another run: it has .*{message}"):
        run(model, data, **options, **changes(data))


def test_another_training_set_is_refused(model, data, tmp_path):
    options = {"checkpoint_folder": tmp_path, "checkpoint_every": 2, "steps": 4}
    run(model, data, **options)
    with pytest.raises(ValueError, match="train_loader of 6 batches, not of 5 batches"):
        run(model, data[:5], **options)


def test_loaders_that_do_not_know_their_length_are_resumed(model, data, tmp_path):
    options = {"checkpoint_folder": tmp_path, "checkpoint_every": 2, "steps": 4, "probe_loader": unsized(data[:2])}
    run(model, unsized(data), **options)
    run(model, unsized(data), **options)


def unsized(batches):
    """A DataLoader over a stream, whose len raises."""

    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(batches)

    return torch.utils.data.DataLoader(Stream(), batch_size=None)


def test_optimizer_state_of_frozen_layers_is_empty(model, data, tmp_path):
    """Read from the checkpoint itself: at step 8 of top-down, before that step's selection, layers 2 and 3 are open."""
    run(model, data, steps=9, checkpoint_folder=tmp_path, checkpoint_every=8)
    saved = newest(tmp_path)
    assert saved["step"] == 8
    names = [name for name, _ in model.named_parameters()]
    trained = {names[i] for i in saved["parts"]["optimizer"]["state"]}
    assert trained == {*LAYERS["2"], *LAYERS["3"], "head.weight", "head.bias"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"accumulate": 0}, "accumulate as a whole number of at least 1"),
        ({"checkpoint_folder": "a", "checkpoint_every": 0}, "every as a whole number of at least 1"),
        ({"patience": 2}, r"pass Evaluation\(source=...\)"),
        ({"keep_best": True}, r"pass Evaluation\(source=...\)"),
        ({"patience": 0, "evaluate_source": lambda m: 0.0}, "patience as a whole number of at least 1 or None, got 0"),
        (
            {"labels": "empirical"},
            r"expected labels as one of exact, rademacher, mc \(the labels of the true Fisher\), got 'empirical'",
        ),
        (
            {"labels": "argmax"},
            r"expected labels as one of exact, rademacher, mc \(the labels of the true Fisher\), got 'argmax'",
        ),
        (
            {"labels": "foo"},
            r"expected labels as one of exact, rademacher, mc \(the labels of the true Fisher\), got 'foo'",
        ),
        ({"lr_schedule": "cosine"}, "expected lr_schedule as one of constant, linear, got 'cosine'"),
        ({"precision": "fp16"}, "expected precision as one of float32, bf16, got 'fp16'"),
        ({"gradient_checkpointing": True}, "Tiny has none"),
        ({"policy": "fun"}, "expected a policy"),
        ({"evaluate_source": lambda model: None}, "expected one number for 'source_metric', got None"),
        ({"evaluate": {"de": lambda model: None}}, "expected one number for 'de', got None"),
        ({"accelerator": SimpleNamespace(mixed_precision="fp16")}, r'ask for Execution\(precision="bf16"\)'),
    ],
)
def test_bad_options(model, data, changes, message):
    with pytest.raises(ValueError, match=message):
        run(model, data, **{"policy": policies.top_down(), **changes})


def test_settings_are_of_their_types(model, data):
    made = {"policy": policies.top_down(), "interval": 4, "layers": LAYERS}
    steps, probe = Optimization(steps=2, lr=1e-2), Measurement(loader=data[:2])
    with pytest.raises(
        TypeError, match=r"expected optimization as Optimization\(...\) of fisherdyn.settings, got dict"
    ):
        fit(model, data, **made, optimization={"steps": 2}, measurement=probe)
    with pytest.raises(TypeError, match=r"expected checkpoints as Checkpoints\(...\) of fisherdyn.settings, got str"):
        fit(model, data, **made, optimization=steps, measurement=probe, checkpoints="folder")


def test_nothing_open_is_said(model, data):
    for p in model.head.parameters():
        p.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing is open"):
        run(model, data, policies.linear_probing())


@pytest.mark.parametrize("authors", [False, True])
@pytest.mark.parametrize("name", [name for name in TABLE if name != "fun"])
def test_the_table(model, data, name, authors):
    """The record has what `Unfreezing` promises: open from that step's record on, at the paper's steps and the authors'."""
    policy, *opened = TABLE[name]
    opened = opened[authors]
    interval = authors_steps(policy, 10, 4) if authors else 10
    ds = run(model, data, policy, interval=interval, steps=42, record_every=1, probe_loader=data[:1])
    for step in range(43):
        is_open = {layer for when, layers in opened.items() if when <= step for layer in layers}
        assert ds["trainable"].sel(step=step).values.tolist() == [int(layer in is_open) for layer in "0123"]
