"""Recorder: tr(F) of every layer while a model trains, and nothing about the training changed by a bit."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from .. import probing, record
from ..fisher.distributed import all_gather, rank, rank_generator, shard
from ..fisher.model_state import device_of, preserve_state, unwrap
from ..fisher.trace import FisherTrace
from ..fisher.training import TrainingPass
from ..layers import LayerChoice, resolve_layers
from ..likelihoods import Likelihood
from ..model_index import ModelIndex
from . import gauges
from .cadence import Cadence
from .ledger import RecordBuffer


class Recorder:
    """Records a training run along `step`, the number of updates made so far.

    A record at step t holds the state before update t (tr(F), weight norms, which layers are open), what update t then did
    (gradient norms after any clipping, learning rates, size), and the mean of whatever was logged since the record before.
    Step 0 is the model as it was when training began. `close` adds the state after the last update, which none follows.

        with fisherdyn.Recorder(model, loader, every=100).attach(optimizer) as rec:
            ...  # train as you always do
        rec.dataset

    Training is left as it was to the bit: weights, optimizer, random states, order of the data.

    Args:
        model: the one that is trained. What DistributedDataParallel or torch.compile wrapped is measured without it.
        loader: what tr(F) is measured on, read anew at every record: batches of inputs, labels unused; or a dict of
            loaders, which adds the dimension `loader`. In several processes each is given the whole loader and measures
            its share, and rank 0 writes.
        every: steps between records, 100 if nothing is said; the state at `close` is recorded too.
        steps: instead of `every`, the steps to record, such as `log_spaced(10_000)`.
        layers, likelihood, labels, method, num_batches: of `fisher_trace`.
        empirical: also record the empirical Fisher's trace on the training batch, from training's own backward pass; for
            losses that are means over examples and are not scaled (GradScaler); see `fisher.training`.
        seed: of the label noise, which is the same at every record: curves differ by the model alone.
        path: a zarr store, saved to as it grows. A killed run loses at most the record being written.
        resume: such a store, to go on from; then say where training goes on: `attach(optimizer, step=...)`.
        attrs: what else made the run, such as {"seed": 3, "lr": 1e-3}, for the record's attributes.

    Cost: what `fisher_trace` costs at each record, with a copy of the measured weights for the length of an update; at all
    other steps two calls that count.

    Raises:
        ValueError: wrong arguments, each with what to do; a loader that can be read only once; a path that is a file or
            holds something; a record to resume that has other layers or another configuration.
    """

    def __init__(
        self,
        model: nn.Module,
        loader: probing.Loaders,
        *,
        every: int | None = None,
        steps: Iterable[int] | None = None,
        layers: LayerChoice = None,
        likelihood: Likelihood | str | None = None,
        labels: str = "rademacher",
        method: str = "hooks",
        num_batches: int | None = None,
        empirical: bool = False,
        seed: int = 0,
        path: str | Path | None = None,
        resume: str | Path | None = None,
        attrs: Mapping[str, Any] | None = None,
    ) -> None:
        self.cadence = Cadence.of(every, steps)
        self.model = unwrap(model)
        self.layers = resolve_layers(self.model, layers)
        self.updates = 0
        """Updates made so far: the step that is now."""
        self._loaders = probing.loaders_by_name(loader)
        for one in self._loaders.values():
            probing.require_reiterable(one)
        self._options: dict[str, Any] = {
            "likelihood": likelihood,
            "labels": labels,
            "method": method,
            "num_batches": num_batches,
        }
        if empirical and method != "hooks":
            raise ValueError(f'empirical=True needs method="hooks", which checks the same modules, got {method!r}')
        self._training = TrainingPass(self.model, self.layers) if empirical else None
        self._seed = seed
        self._parameters = [[self.model.get_parameter(name) for name in names] for names in self.layers.values()]
        self._logged = _Means()
        self._lost = resume is not None
        """Whether a record goes on, and nobody has said where."""
        self._told = False
        """Whether anybody has told of updates: by attach, step or go_on_at."""
        self._handles: list[RemovableHandle] = []
        self._row: dict[str, Any] | None = None
        self._how: dict[str, Any] = {}
        self._weights: gauges.Groups = []
        self._ledger = RecordBuffer(
            {name: sum(p.numel() for p in group) for name, group in zip(self.layers, self._parameters, strict=True)},
            [name for name in self._loaders if name != probing.UNNAMED],
            {
                **dict(attrs or {}),
                "recorded": str(self.cadence),
                "label_seed": seed,
                "device": str(device_of(self.model)),
            },
            _place("path", path),
            _place("resume", resume),
            writes=rank() == 0,
        )

    def attach(self, optimizer: Optimizer, *, step: int | None = None) -> Recorder:
        """Records from now on, by hooks on the optimizer.

        Args:
            optimizer: torch's, or one that accelerate or Lightning wrapped.
            step: updates made before, where training goes on (`go_on_at`).

        Raises:
            ValueError: attached already; an optimizer that trains none of the layers; a resumed record and no `step`.
        """
        if self._handles:
            raise ValueError("this recorder is attached already: detach() it first, or make another one")
        optimizer = _torch_optimizer(optimizer)
        if not {id(p) for p in gauges.held(optimizer)} & {id(p) for group in self._parameters for p in group}:
            raise ValueError("the optimizer holds no parameter of the layers: attach the one that trains this model")
        if step is not None:
            self.go_on_at(step)
        self._refuse_if_lost()
        self._handles = [
            optimizer.register_step_pre_hook(self._before_update),
            optimizer.register_step_post_hook(self._after_update),
        ]
        self._told = True
        self._listen()
        return self

    def go_on_at(self, step: int) -> None:
        """Says that `step` updates were made before; later records are forgotten and made again."""
        self.updates = step
        self._ledger.cut(step)
        self._lost, self._told = False, True

    def step(self) -> None:
        """For loops whose optimizer cannot be attached to: call it right before each update."""
        if self._handles:
            raise ValueError(
                "this recorder is attached to an optimizer, which calls it by itself: leave out rec.step()"
            )
        if self._training is not None:
            raise ValueError(
                "empirical=True listens to training's passes and must know when they begin: attach(optimizer)"
            )
        self._refuse_if_lost()
        if self.cadence.due(self.updates):
            self._row = self._state()
            self._finish({"gradient_norm": gauges.norms(gauges.gradients(self._parameters))})
        self.updates += 1
        self._told = True

    def log(self, **values: float | Tensor) -> None:
        """Numbers to be recorded along `step`, by name: `train_loss`, or a metric of your own.

        A record has the mean of what was logged since the record before, NaN where nothing was. Tensors stay on their
        device until then: logging at every step costs no synchronisation.

        Raises:
            ValueError: a name that the record has for something else, or a value that is not one number.
        """
        for name, value in values.items():
            if name != "train_loss" and (name in record.VARIABLES or name in record.COORDINATES):
                raise ValueError(f"{name!r} is a name of the record's own: log it under another")
            self._logged.add(name, value)

    @property
    def dataset(self) -> xr.Dataset:
        """What was recorded so far: fisher_trace, fisher_trace_se, trainable, norms and rates over (step, layer)."""
        return self._ledger.dataset

    def detach(self) -> None:
        """Takes the hooks off; nothing more is recorded until it is attached again."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._row = None
        if self._training is not None:
            self._training.stop()

    def close(self) -> None:
        """Records the state after the last update and detaches. In several processes, all of them call it.

        Raises:
            ValueError: nobody has told it of updates; the model's state now would be recorded as that of step 0.
        """
        self.detach()
        if not self._told and not self._ledger.rows:
            raise ValueError(
                "nothing was attached to this recorder, so it saw no update: use Recorder(...).attach(optimizer) before "
                "training, or call rec.step() right before each update"
            )
        if self._told and self.cadence.due_at_the_end(self.updates) and self._ledger.last_step < self.updates:
            self._row = self._state()
            self._finish({})
        self._ledger.close()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Closes; after an error it only detaches, and what was recorded is kept."""
        self.close() if kind is None else self.detach()

    def _refuse_if_lost(self) -> None:
        if self._lost:
            raise ValueError(
                f"the record goes on after step {self._ledger.last_step}: say at which step training does, by "
                "attach(optimizer, step=...) or go_on_at(step)"
            )

    def _before_update(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._row = None
        if not self.cadence.due(self.updates):
            return
        # With a closure the passes of this update are still to come: nothing is heard yet.
        closure = any(callable(x) for x in (*args, *kwargs.values()))
        empirical = {} if closure else self._heard()
        self._row = {**self._state(), **empirical}
        self._weights = gauges.copies(self._parameters)
        if closure:
            self._listen()

    def _after_update(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._row is not None:
            with_closure = self._training is not None and "empirical_trace" not in self._row
            if with_closure and self._training is not None and self._training.evaluations > 1:
                raise ValueError(
                    "the optimizer evaluates its closure several times an update, as LBFGS does: there is no one training "
                    "pass that empirical=True could take; leave it out"
                )
            heard = self._heard() if with_closure else {}
            self._finish({**heard, **self._update(optimizer)})
        self.updates += 1
        self._listen()

    def _state(self) -> dict[str, Any]:
        """What the model is before the update."""
        if not self._ledger.rows:
            for loader in self._loaders.values():
                probing.refuse_loader_in_use(loader)
        traces: dict[str, FisherTrace] = {}
        for name, loader in self._loaders.items():
            # The same label noise for every loader and at every step, apart in every process.
            noise = rank_generator(torch.Generator().manual_seed(self._seed))
            mine = {name: shard(loader, self._options["num_batches"])}
            try:
                traces |= probing.measure(self.model, mine, layers=self.layers, generator=noise, **self._options)
            except ValueError as error:
                raise ValueError(f"tr(F) at step {self.updates}: {error}") from error
        one = next(iter(traces.values()))
        self._how = probing.provenance(traces)
        return {
            "step": self.updates,
            **probing.as_variables(traces)[1],
            "trainable": record.flags(one.trainable),
            "weight_norm": gauges.norms(self._parameters),
        }

    def _update(self, optimizer: Optimizer) -> dict[str, Any]:
        """What the update did; its gradients are still there."""
        return {
            "learning_rate": gauges.learning_rates(optimizer, self._parameters),
            "gradient_norm": gauges.norms(gauges.gradients(self._parameters)),
            "total_gradient_norm": gauges.norms(gauges.gradients([gauges.held(optimizer)]))[0],
            "update_norm": gauges.norms(gauges.changes(self._weights, self._parameters)),
        }

    def _listen(self) -> None:
        """To the passes that the next update is made from, where they are wanted."""
        if self._training is not None and self.cadence.due(self.updates):
            self._training.start()

    def _heard(self) -> dict[str, Any]:
        if self._training is None:
            return {}
        self._training.stop()
        with preserve_state(ModelIndex(self.model), ()), torch.no_grad():
            own = self._training.take().cpu().numpy()
        values = np.concatenate(all_gather(own))
        n = len(values)
        se = values.std(axis=0, ddof=1) / np.sqrt(n) if n > 1 else np.full(values.shape[1], np.nan)
        return {"empirical_trace": values.mean(axis=0), "empirical_trace_se": se}

    def _finish(self, more: Mapping[str, Any]) -> None:
        assert self._row is not None
        row, self._row, self._weights = {**self._row, **more, **self._logged.take()}, None, []
        self._ledger.add({name: np.asarray(value) for name, value in row.items()}, self._how)


class _Means:
    """Means of numbers that come one by one."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[float | Tensor, int]] = {}

    def add(self, name: str, value: float | Tensor) -> None:
        if np.prod(np.shape(value)) != 1:
            raise ValueError(f"expected one number for {name!r}, got shape {tuple(np.shape(value))}")
        one = value.detach().double().reshape(()) if isinstance(value, Tensor) else float(value)
        total, count = self._sums.get(name, (0.0, 0))
        self._sums[name] = (total + one, count + 1)

    def take(self) -> dict[str, float]:
        """The means over everything since the last time, over all processes."""
        pairs: dict[str, list[tuple[float, int]]] = {}
        for sums in all_gather({name: (float(total), count) for name, (total, count) in self._sums.items()}):
            for name, pair in sums.items():
                pairs.setdefault(name, []).append(pair)
        self._sums = {}
        return {name: sum(t for t, _ in found) / sum(n for _, n in found) for name, found in pairs.items()}


def _place(name: str, value: Any) -> Path | None:
    """The path of a store; resume=True, a flag elsewhere, is none."""
    if value is not None and not isinstance(value, str | os.PathLike):
        raise ValueError(
            f"expected {name}= to be the path of a store, got {value!r}: path=PLACE begins one, resume=PLACE (without "
            "path=) goes on with it"
        )
    return None if value is None else Path(value)


def _torch_optimizer(optimizer: Any) -> Optimizer:
    """The optimizer inside accelerate's or Lightning's wrapper, which is the one that makes the updates."""
    inside = getattr(optimizer, "optimizer", None)
    if isinstance(inside, Optimizer):
        return _torch_optimizer(inside)
    if not isinstance(optimizer, Optimizer):
        raise ValueError(
            f"expected a torch optimizer, got {type(optimizer).__name__}: call rec.step() in the loop instead"
        )
    return optimizer
