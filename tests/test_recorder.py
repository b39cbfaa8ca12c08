"""Recorder: what a record at step t says, and what is refused."""

from __future__ import annotations

import copy
import warnings

import children
import numpy as np
import pytest
import torch
import xarray as xr
from accelerate import Accelerator
from children import batches
from oracle import per_example_gradients
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, IterableDataset
from zoo import specimen

import fisherdyn
from fisherdyn import Recorder, fisher_trace, probing
from fisherdyn.fisher import distributed
from fisherdyn.layers import resolve_layers


@pytest.fixture
def model():
    return children.model()


@pytest.fixture
def optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.1)


def update(model, optimizer, x=None):
    optimizer.zero_grad()
    loss = model(batches()[0] if x is None else x).square().mean()
    loss.backward()
    optimizer.step()
    return loss.detach()


def test_a_record_at_step_t_is_the_state_before_update_t_and_what_the_update_did(model, optimizer):
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    layers = resolve_layers(model)
    expected = []
    with Recorder(model, batches(), every=1).attach(optimizer) as recorder:
        for step in range(4):
            model[2].requires_grad_(step >= 2)  # a schedule that opens before the forward pass
            trace = fisher_trace(model, batches(), layers=layers)
            before = [p.detach().clone() for p in model.parameters()]
            update(model, optimizer)
            rate = schedule.get_last_lr()[0]
            schedule.step()
            gradients = [None if p.grad is None else p.grad.norm().item() for p in model.parameters()]
            expected.append((trace, before, gradients, rate))
    ds = recorder.dataset
    assert ds["step"].values.tolist() == [0, 1, 2, 3, 4]
    assert ds["trainable"].values.tolist() == [[1, 0], [1, 0], [1, 1], [1, 1], [1, 1]]
    for step, (trace, before, gradients, rate) in enumerate(expected):
        one = ds.sel(step=step)
        assert one["fisher_trace"].values.tolist() == trace.trace.tolist()
        assert one["fisher_trace_se"].values.tolist() == trace.se.tolist()
        norms = [np.hypot(*(p.norm().item() for p in before[i : i + 2])) for i in (0, 2)]
        assert one["weight_norm"].values == pytest.approx(norms)
        assert one["learning_rate"].values == pytest.approx([rate, rate])
        known = [np.hypot(*gradients[i : i + 2]) if gradients[i] is not None else np.nan for i in (0, 2)]
        assert one["gradient_norm"].values == pytest.approx(known, nan_ok=True)
        assert one["total_gradient_norm"].item() == pytest.approx(np.sqrt(np.nansum(np.square(known))))
        moved = [0.0 if np.isnan(norm) else norm * rate for norm in known]
        assert one["update_norm"].values == pytest.approx(moved, abs=1e-6)
    end = ds.sel(step=4)
    assert end["fisher_trace"].values.tolist() == fisher_trace(model, batches(), layers=layers).trace.tolist()
    for name in ("gradient_norm", "total_gradient_norm", "update_norm", "learning_rate"):
        assert end[name].isnull().all(), name


def test_learning_rates_of_several_groups_and_of_none(model):
    optimizer = torch.optim.SGD([{"params": model[0].weight, "lr": 0.1}, {"params": model[0].bias, "lr": 0.4}])
    recorder = Recorder(model, batches(), every=1).attach(optimizer)
    update(model, optimizer)
    # 24 weights at 0.1 and 6 biases at 0.4; the second layer is in no group.
    assert recorder.dataset["learning_rate"].values[0] == pytest.approx([0.16, np.nan], nan_ok=True)


@pytest.mark.parametrize(
    ("when", "updates", "expected"),
    [
        ({"every": 3}, 7, [0, 3, 6, 7]),
        ({"every": 3}, 6, [0, 3, 6]),
        ({}, 3, [0, 3]),
        ({"steps": [0, 2, 5]}, 7, [0, 2, 5]),
        ({"steps": [4, 7]}, 7, [4, 7]),
        ({"steps": fisherdyn.log_spaced(9, 3)}, 12, [0, 1, 2, 4, 9]),
    ],
)
def test_which_steps_are_recorded(model, optimizer, when, updates, expected):
    with Recorder(model, batches(), **when).attach(optimizer) as recorder:
        for _ in range(updates):
            update(model, optimizer)
    assert recorder.dataset["step"].values.tolist() == expected


def test_log_spaced():
    steps = fisherdyn.log_spaced(10_000)
    assert steps[:8] == (0, 1, 2, 3, 4, 5, 6, 8)
    assert steps[-1] == 10_000
    assert len(steps) < 42
    assert fisherdyn.log_spaced(1) == (0, 1)
    with pytest.raises(ValueError, match="last as a whole number of at least 1, got 0"):
        fisherdyn.log_spaced(0)


def test_what_is_logged_is_the_mean_since_the_last_record(model, optimizer):
    with Recorder(model, batches(), every=2).attach(optimizer) as recorder:
        losses = []
        for step in range(5):
            losses.append(update(model, optimizer))
            recorder.log(train_loss=losses[-1])
            if step == 2:
                recorder.log(accuracy=0.25, gap=np.float32(1))
                recorder.log(accuracy=torch.tensor([0.75]))
    ds = recorder.dataset
    means = [np.nan, *(np.mean([float(x) for x in losses[a:b]]) for a, b in ((0, 2), (2, 4), (4, 5)))]
    assert ds["train_loss"].values == pytest.approx(means, nan_ok=True)
    assert ds["accuracy"].values == pytest.approx([np.nan, np.nan, 0.5, np.nan], nan_ok=True)
    assert ds["accuracy"].attrs == {"long_name": "accuracy, mean since the last record", "units": "as logged"}
    assert ds["train_loss"].attrs["units"] == "nat"


class Wrapping(torch.optim.SGD):
    """An optimizer of one's own, whose step() calls torch's: torch runs the hooks for both calls."""

    fails = False

    def step(self, closure=None):
        if self.fails:
            raise ZeroDivisionError
        return super().step(closure)


def test_nested_steps_of_an_optimizer_are_one_update(model):
    torch.optim.SGD([torch.zeros(1)], lr=0.1)  # from here on, torch's own step runs hooks too
    optimizer = Wrapping(model.parameters(), lr=0.1)
    with Recorder(model, batches(), every=1).attach(optimizer) as recorder:
        for _ in range(3):
            update(model, optimizer)
    assert recorder.dataset["step"].values.tolist() == [0, 1, 2, 3]
    assert (recorder.dataset["update_norm"][:3] > 0).all()


def test_a_step_that_fails_is_no_update(model):
    optimizer = Wrapping(model.parameters(), lr=0.1)
    with Recorder(model, batches(), every=1).attach(optimizer) as recorder:
        update(model, optimizer)
        optimizer.fails = True
        with pytest.raises(ZeroDivisionError):
            update(model, optimizer)
        optimizer.fails = False
        update(model, optimizer)
    assert recorder.dataset["step"].values.tolist() == [0, 1, 2]


def test_a_generator_draws_on_from_record_to_record(model):
    def traces(**options):
        recorder = Recorder(model, batches(), every=1, labels="mc", **options)
        for _ in range(3):
            recorder.step()  # of a model that does not change
        return recorder.dataset["fisher_trace"].values

    fixed, drawn = traces(seed=3), traces(generator=torch.Generator().manual_seed(3))
    assert (fixed == fixed[0]).all()
    assert len(np.unique(drawn[:, 0])) == 3
    assert drawn[0].tolist() == fixed[0].tolist()
    with pytest.raises(ValueError, match=r"expected seed= .* or generator= .*got both"):
        traces(seed=3, generator=torch.Generator())


def test_the_estimator_is_checked_at_the_1st_2nd_4th_8th_record(model, monkeypatch):
    checks, measure = [], probing.measure
    monkeypatch.setattr(
        probing, "measure", lambda *a, **options: checks.append(options["check"]) or measure(*a, **options)
    )
    recorder = Recorder(model, batches(), every=1)
    for _ in range(9):
        recorder.step()
    assert checks == ["first", "brief", "never", "brief", *["never"] * 3, "brief", "never"]


def test_layers_that_could_not_be_compared_are_checked_at_every_record(model, monkeypatch):
    checks, measure = [], probing.measure
    monkeypatch.setattr(
        probing, "measure", lambda *a, **options: checks.append(options["check"]) or measure(*a, **options)
    )
    with torch.no_grad():
        model[2].weight.zero_()  # nothing reaches the layer below
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        recorder = Recorder(model, batches(), every=1)
        for _ in range(6):
            recorder.step()
        assert checks == ["first", *["brief"] * 5]
        recorder = Recorder(model, batches(), every=1, check="never")
        recorder.step()
    assert checks[6:] == ["never"]
    assert ["tr(F) is exactly 0" in str(warning.message) for warning in caught] == [True]  # and not at every record


def test_a_recorder_goes_on_from_its_state(tmp_path):
    """As in fit's checkpoints: through a file, records, position, logged numbers and label noise."""

    def train(model, optimizer, recorder, steps):
        for step in steps:
            recorder.log(train_loss=update(model, optimizer), accuracy=step / 10)

    def made():
        model = children.model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        recorder = Recorder(model, batches(), every=3, labels="mc", generator=torch.Generator().manual_seed(1))
        return model, optimizer, recorder.attach(optimizer)

    model, optimizer, whole = made()
    train(model, optimizer, whole, range(5))
    torch.save((model.state_dict(), whole.state_dict()), tmp_path / "state.pt")
    train(model, optimizer, whole, range(5, 8))
    again, optimizer, resumed = made()
    weights, state = torch.load(tmp_path / "state.pt", weights_only=True)
    again.load_state_dict(weights)
    resumed.load_state_dict(state)
    train(again, optimizer, resumed, range(5, 8))
    whole.close(), resumed.close()
    xr.testing.assert_identical(resumed.dataset, whole.dataset)
    assert {name: v.dtype for name, v in resumed.dataset.items()} == {
        name: v.dtype for name, v in whole.dataset.items()
    }


@pytest.mark.parametrize("name", ["fisher_trace", "layer", "step"])
def test_names_of_the_records_own_cannot_be_logged(model, name):
    with pytest.raises(ValueError, match="is a name of the record's own"):
        Recorder(model, batches()).log(**{name: 1.0})


def test_only_numbers_are_logged(model):
    with pytest.raises(ValueError, match=r"expected one number for 'a', got shape \(2,\)"):
        Recorder(model, batches()).log(a=torch.ones(2))


def test_a_loop_of_ones_own(model):
    recorder = Recorder(model, batches(), every=2)
    layers = resolve_layers(model)
    traces = []
    for _ in range(3):
        traces.append(fisher_trace(model, batches(), layers=layers).trace.tolist())
        model(batches()[0]).square().mean().backward()
        recorder.step()
        with torch.no_grad():
            for p in model.parameters():
                p -= 0.1 * p.grad
                p.grad = None
    recorder.close()
    ds = recorder.dataset
    assert ds["step"].values.tolist() == [0, 2, 3]
    assert ds["fisher_trace"].values[:2].tolist() == [traces[0], traces[2]]
    assert (ds["gradient_norm"][:2] > 0).all()
    assert "update_norm" not in ds


def test_several_loaders_are_a_dimension(model, optimizer):
    loaders = {"so": batches(), "te": batches(2)}
    with Recorder(model, loaders, every=2).attach(optimizer) as recorder:
        for _ in range(3):
            update(model, optimizer)
    ds = recorder.dataset
    assert ds["fisher_trace"].dims == ds["fisher_trace_se"].dims == ("step", "loader", "layer")
    assert ds["weight_norm"].dims == ("step", "layer")
    assert ds.attrs["examples"] == [32, 16]
    last = fisher_trace(model, loaders["te"]).trace.tolist()
    assert ds["fisher_trace"].sel(step=3, loader="te").values.tolist() == last


def loss_of(output, y):
    return nn.functional.cross_entropy(getattr(output, "logits", output), y)


@pytest.mark.parametrize("name", ["mlp", "bag_of_tokens", "repeated", "windows", "bert_whole"])
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_the_empirical_fisher_of_the_training_pass(name, micro_batches):
    """Against a loop over examples, one backward pass each, with the batch in one piece and accumulated."""
    found = specimen(name)
    model, x = found.model, found.inputs
    n = 4
    x = x[:n] if isinstance(x, torch.Tensor) else {key: value[:n] for key, value in x.items()}
    y = torch.arange(n) % 3
    layers = resolve_layers(model, found.layers)
    expected = per_example_gradients(model, x, y, layers)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recorder = Recorder(model, [x], layers=layers, every=1, empirical=True).attach(optimizer)
    for part in torch.arange(n).chunk(micro_batches):
        one = x[part] if isinstance(x, torch.Tensor) else {key: value[part] for key, value in x.items()}
        output = model(one) if isinstance(one, torch.Tensor) else model(**one)
        (loss_of(output, y[part]) / micro_batches).backward()
    optimizer.step()
    ds = recorder.dataset.isel(step=0)
    assert ds["empirical_trace"].values == pytest.approx(expected.mean(dim=0).numpy(), rel=1e-4)
    se = expected.std(dim=0) / n**0.5
    assert ds["empirical_trace_se"].values == pytest.approx(se.numpy(), rel=1e-3)
    assert not np.allclose(ds["empirical_trace"], ds["fisher_trace"], rtol=0.05)  # it is no Fisher


def test_losses_that_go_back_one_after_the_other_add_up(model):
    found = []
    for shares in ((1.0,), (0.9, 0.1)):
        trained = copy.deepcopy(model)
        optimizer = torch.optim.SGD(trained.parameters(), lr=0.1)
        recorder = Recorder(trained, batches(), every=1, empirical=True).attach(optimizer)
        loss = trained(batches()[0]).square().mean()
        for share in shares:
            (share * loss).backward(retain_graph=True)
        optimizer.step()
        found.append(recorder.dataset["empirical_trace"].values)
    np.testing.assert_allclose(found[1], found[0], rtol=1e-5)


def test_a_closure_that_is_evaluated_again_and_again_is_refused(model):
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=4)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model(batches()[0]).square().mean()
        loss.backward()
        return loss

    Recorder(model, batches(), every=1, empirical=True).attach(optimizer)
    with pytest.raises(ValueError, match=r"evaluates its closure several times an update, as LBFGS does"):
        optimizer.step(closure)


def test_layers_below_all_that_is_trained_have_no_empirical_fisher(model):
    model[0].requires_grad_(False)
    optimizer = torch.optim.SGD(model[2].parameters(), lr=0.1)
    recorder = Recorder(model, batches(), every=1, empirical=True).attach(optimizer)
    with torch.no_grad():
        model(batches()[1])  # an evaluation in between is no training pass
    update(model, optimizer)
    assert recorder.dataset["empirical_trace"].isnull().values.tolist() == [[True, False]]
    assert recorder.dataset["fisher_trace"].notnull().all()


class NoRule(nn.Module):
    """A module that no rule is for."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(6))

    def forward(self, x):
        return x * self.weight


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (nn.BatchNorm1d(6), "'1' .BatchNorm1d. mixes the examples of a training batch"),
        (NoRule(), "'1' .NoRule. has no rule"),
    ],
)
def test_modules_that_the_training_pass_does_not_tell_of(body, message):
    with pytest.raises(ValueError, match=message):
        Recorder(nn.Sequential(nn.Linear(4, 6), body, nn.Linear(6, 3)), batches(), empirical=True)


def test_an_output_that_is_changed_in_place_is_named():
    found = specimen("inplace_after_view")
    optimizer = torch.optim.SGD(found.model.parameters(), lr=0.1)
    Recorder(found.model, [found.inputs], layers=found.layers, empirical=True).attach(optimizer)
    found.model(found.inputs).sum().backward()
    with pytest.raises(ValueError, match="module 'body': its input or output is changed in place"):
        optimizer.step()


def test_the_empirical_fisher_of_a_model_that_is_not_called(model, optimizer):
    Recorder(model, batches(), empirical=True).attach(optimizer)
    sum(p.sum() for p in model.parameters()).backward()
    with pytest.raises(ValueError, match="no training pass of the model was seen"):
        optimizer.step()


def test_accelerate(model):
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(torch.cat(batches()), 8))
    with Recorder(model, batches(), every=1, empirical=True).attach(optimizer) as recorder:
        for x in loader:
            with accelerator.accumulate(model):
                accelerator.backward(model(x).square().mean())
                optimizer.step()
                optimizer.zero_grad()
    ds = recorder.dataset
    assert ds["step"].values.tolist() == [0, 1, 2]  # four batches, two updates
    assert ds["empirical_trace"].notnull().values.tolist() == [[True, True], [True, True], [False, False]]
    assert (ds["update_norm"][:2] > 0).all()


@pytest.fixture(scope="module")
def by_processes(tmp_path_factory) -> dict[int, list[xr.Dataset]]:
    """Number of processes -> the records of their ranks; that rank 0 alone writes its own is checked."""
    context = children.context()

    def together(world: int) -> list[xr.Dataset]:
        port = children.free_port()
        pipes = [context.Pipe(duplex=False) for _ in range(world)]
        paths = [tmp_path_factory.mktemp("ranks") / f"{rank}.nc" for rank in range(world)]
        processes = [
            context.Process(target=children.record_together, args=(rank, world, port, paths[rank], send))
            for rank, (_, send) in enumerate(pipes)
        ]
        for process, (_, send) in zip(processes, pipes, strict=True):
            process.start()
            send.close()
        found = [receive.recv() for receive, _ in pipes]
        for process in processes:
            process.join()
        assert [path.exists() for path in paths] == [True] + [False] * (world - 1)
        with xr.open_dataset(paths[0]) as ds:
            xr.testing.assert_identical(ds.load(), found[0])
        return found

    return {world: together(world) for world in (1, 2)}


TRACES = ["fisher_trace", "fisher_trace_se"]


def test_two_processes_record_what_one_records(by_processes):
    """All but tr(F): norms of the common gradient, and losses and empirical gradients of all parts of the batch."""
    (one,), two = by_processes[1], by_processes[2]
    assert one["step"].values.tolist() == [0, 2, 4, 5]
    for ds in two:
        xr.testing.assert_allclose(ds.drop_vars(TRACES), one.drop_vars(TRACES), rtol=1e-5)


def test_two_processes_measure_what_one_measures(by_processes):
    (one,), two = by_processes[1], by_processes[2]
    for ds in two:
        xr.testing.assert_allclose(ds[TRACES], one[TRACES], rtol=1e-5)
        assert ds.attrs["examples"] == one.attrs["examples"]


def test_a_loader_that_is_sharded_already_is_left_as_it_is(monkeypatch):
    monkeypatch.setattr(distributed, "several", lambda: True)
    monkeypatch.setattr(distributed.dist, "get_rank", lambda: 1)
    monkeypatch.setattr(distributed.dist, "get_world_size", lambda: 2)
    data = torch.arange(8)
    split = DataLoader(data, 2, sampler=DistributedSampler(data, num_replicas=2, rank=1, shuffle=False))
    assert [x.tolist() for x in distributed.shard(split)] == [[1, 3], [5, 7]]
    deep = BatchSampler(DistributedSampler(data, num_replicas=2, rank=1, shuffle=False), 2, False)
    assert [x.tolist() for x in distributed.shard(DataLoader(data, batch_sampler=deep))] == [[1, 3], [5, 7]]
    dispatcher = type("DataLoaderDispatcher", (), {})()
    with pytest.raises(ValueError, match="dispatch_batches=False"):
        distributed.shard(dispatcher)
    monkeypatch.setattr(distributed, "all_gather", lambda value: [value])
    whole = distributed.shard(DataLoader(data, 2))
    assert [x.tolist() for x in whole] == [[2, 3], [6, 7]]
    assert [x.tolist() for x in distributed.shard(DataLoader(data, 2), 3)] == [[2, 3]]
    assert whole.batch_size == 2  # in all else it is the loader


def test_records_of_seeds_combine_with_xarray_alone():
    def run(seed: int) -> xr.Dataset:
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with Recorder(model, batches(), every=2, attrs={"seed": seed}).attach(optimizer) as recorder:
            for _ in range(4):
                recorder.log(train_loss=update(model, optimizer))
        return recorder.dataset

    runs = [run(seed) for seed in range(3)]
    both = xr.combine_nested(runs, concat_dim="run", combine_attrs="drop_conflicts")
    assert both["fisher_trace"].dims == ("run", "step", "layer")
    assert "seed" not in both.attrs
    by_seed = xr.concat(
        [ds.assign_coords(seed=ds.attrs["seed"]) for ds in runs], "seed", combine_attrs="drop_conflicts"
    )
    assert by_seed["fisher_trace"].sel(seed=2).values.tolist() == runs[2]["fisher_trace"].values.tolist()
    table = by_seed["fisher_trace"].to_dataframe().reset_index()
    assert table.columns.tolist() == ["seed", "step", "layer", "fisher_trace"]
    assert len(table) == 3 * 3 * 2
    assert runs[0].to_dataframe().reset_index().columns[:2].tolist() == ["step", "layer"]


def test_the_record_is_published_as_netcdf(model, optimizer, tmp_path):
    with Recorder(model, {"a": batches(), "b": batches()}, every=2, attrs={"lr": 0.1}).attach(optimizer) as recorder:
        update(model, optimizer)
    recorder.dataset.to_netcdf(tmp_path / "run.nc")
    with xr.open_dataset(tmp_path / "run.nc") as ds:
        xr.testing.assert_equal(ds.load(), recorder.dataset)
        assert ds.attrs["lr"] == 0.1


def test_every_variable_says_what_it_is_and_the_view_is_readable(model, optimizer):
    with Recorder(model, batches(), every=2, empirical=True, attrs={"seed": 1}).attach(optimizer) as recorder:
        recorder.log(train_loss=update(model, optimizer), mine=1.0)
    ds = recorder.dataset
    for variable in ds.variables.values():
        assert set(variable.attrs) == {"long_name", "units"}
        assert len(variable.attrs["long_name"]) <= 70
    assert all(len(str(value)) <= 100 for value in ds.attrs.values())
    wanted = {"estimator", "likelihood", "mode", "batches", "examples", "seed", "label_seed", "revision", "device"}
    assert wanted <= set(ds.attrs)
    html = ds._repr_html_()
    assert "tr(F)" in html
    assert "categorical" in html


class Endless(IterableDataset):
    """A stream that is its own iterator: what one reader takes, no other gets."""

    def __iter__(self):
        return self

    def __next__(self):
        return torch.zeros(4)


def in_use(data):
    loader = DataLoader(data, 8, num_workers=1, persistent_workers=True)
    loader._iterator = object()  # as it is while an epoch runs
    return loader


@pytest.mark.parametrize(
    ("misuse", "message"),
    [
        (lambda m, o: Recorder(m, batches(), every=0), "every as a whole number of at least 1, got 0"),
        (lambda m, o: Recorder(m, batches(), every=2.5), "every as a whole number of at least 1, got 2.5"),
        (lambda m, o: Recorder(m, batches(), every=True), "every as a whole number of at least 1, got True"),
        (lambda m, o: Recorder(m, batches(), every=5, steps=[1]), "every= or steps=, got both"),
        (lambda m, o: Recorder(m, batches(), steps=[]), "at least one step to record"),
        (lambda m, o: Recorder(m, batches(), steps=5), r"steps as whole numbers, such as log_spaced\(10_000\), got 5"),
        (lambda m, o: Recorder(m, batches(), labels="monte"), "unknown labels='monte': choose one of exact"),
        (lambda m, o: Recorder(m, batches(), method="hook"), "unknown method='hook': choose"),
        (
            lambda m, o: Recorder(m, batches(), num_batches=0),
            "num_batches as a whole number of at least 1 or None, got 0",
        ),
        (lambda m, o: Recorder(m, batches()).log(loss="a"), "expected one number for 'loss', got 'a'"),
        (lambda m, o: Recorder(m, batches()).log(loss=None), "expected one number for 'loss', got None"),
        (
            lambda m, o: Recorder(m, batches(), steps=[0, -1]),
            "a step to record as a whole number of at least 0, got -1",
        ),
        (lambda m, o: Recorder(nn.DataParallel(m), batches()), "pass the model inside, model.module"),
        (
            lambda m, o: Recorder(m, iter(batches())),
            "got list_iterator, which is used up by reading: if it is training's",
        ),
        (
            lambda m, o: Recorder(m, iter(DataLoader(torch.zeros(8, 4)))),
            "_SingleProcessDataLoaderIter, which is used up",
        ),
        (lambda m, o: Recorder(m, {"a": (x for x in batches())}), "got generator, which is used up"),
        (lambda m, o: Recorder(m, DataLoader(Endless(), 8)), "a loader whose dataset can be read anew"),
        (lambda m, o: Recorder(m, in_use(torch.zeros(8, 4))).attach(o).close(), "persistent workers and is being read"),
        (lambda m, o: Recorder(m, batches()[0]).attach(o).close(), "single batch: wrap it as"),
        (lambda m, o: Recorder(m, {"a": batches(), "b": []}).attach(o).close(), "loader 'b': the loader gave no batch"),
        (lambda m, o: Recorder(m, {}), "at least one loader in the dict"),
        (lambda m, o: Recorder(m, batches(), layers=r"^(x)"), "no layer has a parameter"),
        (lambda m, o: Recorder(m, batches(), empirical=True, method="vmap"), 'needs method="hooks"'),
        (lambda m, o: Recorder(m, batches(), empirical=True).step(), "must know when they begin: attach"),
        (lambda m, o: Recorder(m, batches()).attach(o).attach(o), "attached already: detach"),
        (lambda m, o: Recorder(m, batches()).attach(o).step(), "leave out recorder.step"),
        (lambda m, o: Recorder(m, batches()).attach(m), "expected a torch optimizer, got Sequential"),
        (
            lambda m, o: Recorder(m, batches()).attach(torch.optim.SGD(children.model().parameters())),
            "holds no parameter of the layers",
        ),
        (lambda m, o: Recorder(m, batches()).dataset, "nothing is recorded yet"),
        (lambda m, o: Recorder(m, batches()).close(), r"nothing was attached.*attach\(optimizer\).*recorder\.step\(\)"),
        (
            lambda m, o: Recorder(m, batches(), path="a", resume=True),
            "expected resume= to be the path of a file, got True",
        ),
        (lambda m, o: Recorder(m, batches(), path=3), "expected path= to be the path of a file, got 3"),
    ],
)
def test_misuse_is_told_what_to_do(model, optimizer, misuse, message):
    with pytest.raises(ValueError, match=message):
        misuse(model, optimizer)


def test_a_recorder_that_nothing_was_attached_to_records_nothing(model, optimizer, tmp_path):
    recorder = Recorder(model, batches(), every=2, path=tmp_path / "run.nc")

    def forgotten() -> None:
        with recorder:
            for _ in range(4):
                recorder.log(train_loss=update(model, optimizer))

    with pytest.raises(ValueError, match="nothing was attached"):
        forgotten()
    assert not (tmp_path / "run.nc").exists()
    with pytest.raises(ValueError, match="nothing is recorded yet"):
        _ = recorder.dataset


@pytest.mark.parametrize(
    ("told", "steps"),
    [
        (lambda recorder, optimizer: recorder.attach(optimizer), [0]),
        (lambda recorder, optimizer: recorder.attach(optimizer, step=6), [6]),
        (lambda recorder, optimizer: recorder.attach(optimizer).detach(), [0]),
        (lambda recorder, optimizer: recorder.go_on_at(6), [6]),
        (lambda recorder, optimizer: recorder.step(), [0, 1]),
    ],
)
def test_who_was_told_of_updates_may_close(model, optimizer, told, steps):
    """Also where training had no update left to make."""
    recorder = Recorder(model, batches(), every=4)
    told(recorder, optimizer)
    recorder.close()
    assert recorder.dataset["step"].values.tolist() == steps


def test_a_wrapped_model_is_measured_inside(model):
    class DistributedDataParallel(nn.Module):
        """As torch's, which needs a process group."""

        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

    recorder = Recorder(DistributedDataParallel(model), batches())
    assert list(recorder.layers) == ["0", "2"]


def test_an_error_in_training_keeps_what_was_recorded_and_takes_off_the_hooks(model, optimizer):
    recorder = Recorder(model, batches(), every=2)

    def interrupted() -> None:
        with recorder.attach(optimizer):
            for _ in range(4):
                update(model, optimizer)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        interrupted()
    assert recorder.dataset["step"].values.tolist() == [0, 2]
    update(model, optimizer)
    assert recorder.updates == 4
    recorder.attach(optimizer)  # and it can go on
    update(model, optimizer)
    assert recorder.dataset["step"].values.tolist() == [0, 2, 4]


def test_a_finished_file_is_opened_to_be_read(tmp_path):
    """Nothing is attached, and nothing is to be recorded."""
    model = children.model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(model, batches(), every=1, path=tmp_path / "run.nc").attach(optimizer) as recorder:
        model(batches()[0]).sum().backward()
        optimizer.step()
    with Recorder(model, batches(), every=1, resume=tmp_path / "run.nc") as again:
        assert again.dataset["step"].values.tolist() == recorder.dataset["step"].values.tolist() == [0, 1]


def test_a_misspelt_option_is_refused_when_the_recorder_is_made():
    with pytest.raises(TypeError, match=r"Recorder has no option evry: expected some of .*every"):
        Recorder(torch.nn.Linear(2, 2), [torch.zeros(1, 2)], evry=5)
