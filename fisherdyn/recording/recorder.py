"""Recorder: tr(F) of every layer while a model trains. Training stays the same, bit for bit."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, Unpack

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from .. import probing, record
from ..fisher.check import CheckName, check_of_repeat
from ..fisher.distributed import all_gather, rank_generator, shard
from ..fisher.methods import find_method
from ..fisher.model_state import device_of, preserve_state, unwrap
from ..fisher.trace import FisherTrace, TraceOptions
from ..fisher.training import TrainingPass
from ..labels import find_labels
from ..layers import resolve_layers
from ..model_index import ModelIndex
from ..outputs import different_likelihoods
from ..validation import Count, Natural, Whole, check
from . import gauges
from .buffer import RecordBuffer
from .cadence import Cadence
from .file import RecordFile
from .logged import LoggedMeans


class RecorderOptions(TraceOptions, total=False):
    """Options of `Recorder` that callbacks pass on."""

    every: int | None
    steps: Iterable[int] | None
    empirical: bool
    seed: int | None
    path: str | Path | None
    resume: str | Path | None
    attrs: Mapping[str, Any] | None


class Recorder:
    """Records a training run along `step`, the number of updates made so far.

    A record at step t holds the state before update t (tr(F), weight norms, which layers are open), what update t then did
    (gradient norms after any clipping, learning rates, size), and the mean of whatever was logged since the record before.
    Step 0 is the model as it was when training began. `close` adds the state after the last update.

        with fisherdyn.Recorder(model, loader, every=100).attach(optimizer) as recorder:
            ...  # train as you always do
        recorder.dataset

    Training stays the same to the bit: weights, optimizer, random states, order of the data.

    Args:
        model: the model that is trained. Inside DistributedDataParallel or torch.compile it is measured without the wrapper.
        loader: what tr(F) is measured on, read anew at every record: batches of inputs; or a dict of
            loaders, which adds the dimension `loader`. In several processes each is given the whole loader and measures
            its share, and rank 0 writes.
        every: steps between records (default 100); the state at `close` is recorded too.
        steps: instead of `every`, the steps to record, such as `log_spaced(10_000)`.
        empirical: also record the empirical Fisher's trace on the training batch, from training's own backward pass; for
            losses that are means over examples and are not scaled (GradScaler); see `fisher.training`.
        seed: of the label noise (default 0), which is then the same at every record: curves differ by the model alone.
        path: a NetCDF file, saved at every record. A killed run loses at most the record being written.
        resume: such a file, to go on from; then say where training goes on: `attach(optimizer, step=...)`.
        attrs: what else made the run, such as {"seed": 3, "lr": 1e-3}, for the record's attributes.
        **options: see `fisher_trace`: layers, likelihood, labels, method, num_batches, check, generator. A `generator`
            takes the place of `seed`; its label noise is new at every record. By default, `check` compares the estimator
            with plain autograd at the 1st, 2nd, 4th, 8th, ... record, and at every record while a layer is not compared.

    Cost: what `fisher_trace` costs at each record, and a copy of the measured weights during that update; at all other
    steps two calls that count.

    Raises:
        ValueError: wrong arguments, each with what to do; a loader that can be read only once; a path that does not end in
            .nc or is taken; a record to resume that has other layers or another configuration.
    """

    def __init__(
        self,
        model: nn.Module,
        loader: probing.Loaders,
        *,
        every: int | None = None,
        steps: Iterable[int] | None = None,
        empirical: bool = False,
        seed: int | None = None,
        path: str | Path | None = None,
        resume: str | Path | None = None,
        attrs: Mapping[str, Any] | None = None,
        **options: Unpack[TraceOptions],
    ) -> None:
        self.cadence = Cadence.of(every, steps)
        self.model = unwrap(model)
        self.layers = options["layers"] = resolve_layers(self.model, options.get("layers"))
        self.updates = 0
        """Updates made so far: the step that is now."""
        self._loaders = probing.loaders_by_name(loader)
        for source in self._loaders.values():
            probing.require_reiterable(source)
        if unknown := sorted(options.keys() - TraceOptions.__annotations__.keys()):
            raise TypeError(
                f"Recorder has no option {', '.join(unknown)}: expected some of {', '.join(RecorderOptions.__annotations__)}"
            )
        find_labels(options.get("labels", "rademacher"))
        find_method(options.get("method", "hooks"))
        check("num_batches", options.get("num_batches"), Count | None)
        self._options = options
        self._seed, self._generator = _label_noise(seed, options.pop("generator", None))
        self._uncompared = set(self.layers)
        method = options.get("method", "hooks")
        if empirical and method != "hooks":
            raise ValueError(f'empirical=True needs method="hooks", which checks the same modules, got {method!r}')
        self._training = TrainingPass(self.model, self.layers) if empirical else None
        self._parameters = [[self.model.get_parameter(name) for name in names] for names in self.layers.values()]
        self._logged = LoggedMeans()
        self._position_unknown = resume is not None
        self._saw_updates = False
        """Whether anybody has told of updates: by attach, step or go_on_at."""
        self._handles: list[RemovableHandle] = []
        self._update: FrameType | None = None
        """The call of the optimizer's step that is running."""
        self._row: dict[str, Any] | None = None
        self._provenance: dict[str, Any] = {}
        self._weights: gauges.Groups = []
        self._buffer = RecordBuffer(
            {name: sum(p.numel() for p in group) for name, group in zip(self.layers, self._parameters, strict=True)},
            [name for name in self._loaders if name != probing.UNNAMED],
            {
                **dict(attrs or {}),
                "recorded": str(self.cadence),
                "label_seed": self._seed,
                "device": str(device_of(self.model)),
            },
            _file(path, resume),
            resume=resume is not None,
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
        self._require_position()
        self._handles = [
            optimizer.register_step_pre_hook(self._before_update),
            optimizer.register_step_post_hook(self._after_update),
        ]
        self._saw_updates = True
        self._listen()
        return self

    def go_on_at(self, step: int) -> None:
        """Says that `step` updates were made before; later records are forgotten and made again."""
        self.updates = check("step", step, Natural)
        self._buffer.cut(self.updates)
        self._position_unknown, self._saw_updates = False, True

    def step(self) -> None:
        """For loops whose optimizer cannot be attached to: call it right before each update."""
        if self._handles:
            raise ValueError(
                "this recorder is attached to an optimizer, which calls it by itself: leave out recorder.step()"
            )
        if self._training is not None:
            raise ValueError(
                "empirical=True listens to training's passes and must know when they begin: attach(optimizer)"
            )
        self._require_position()
        self._saw_updates = True
        step, self.updates = self.updates, self.updates + 1  # counted also where the record cannot be saved
        if self.cadence.due(step):
            self._row = self._state(step)
            self._finish({"gradient_norm": gauges.norms(gauges.gradients(self._parameters))})

    def log(self, **values: float | Tensor) -> None:
        """Numbers to be recorded along `step`, by name: `train_loss`, or a metric of your own.

        A record has the mean of what was logged since the record before, NaN where nothing was. Tensors stay on their
        device until then: logging at every step costs no synchronisation.

        Raises:
            ValueError: a name that is no identifier ("val/loss"), or that the record has for something else; a value that is
                not one number.
        """
        for name, value in values.items():
            self._logged.add(name, value)

    @property
    def dataset(self) -> xr.Dataset:
        """What was recorded so far: fisher_trace, fisher_trace_se, trainable, norms and rates over (step, layer)."""
        return self._buffer.dataset

    def detach(self) -> None:
        """Takes the hooks off; nothing more is recorded until it is attached again."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._row = self._update = None
        if self._training is not None:
            self._training.stop()

    def close(self) -> None:
        """Records the state after the last update and detaches. In several processes, all of them call it.

        Raises:
            ValueError: nobody has told it of updates; the model's state now would be recorded as that of step 0.
        """
        self.detach()
        if not self._saw_updates and not self._buffer.rows:
            raise ValueError(
                "nothing was attached to this recorder, so it saw no update: use Recorder(...).attach(optimizer) before "
                "training, or call recorder.step() right before each update"
            )
        ends_here = self.cadence.due_at_the_end(self.updates) and self._buffer.last_step < self.updates
        if self._saw_updates and ends_here:
            self._row = self._state(self.updates)
            self._finish({})
        self._buffer.save()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Closes; after an error it only detaches, and what was recorded is kept."""
        self.close() if kind is None else self.detach()

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint: the records, the position, what was logged since, and the generator of label noise."""
        return {
            "updates": self.updates,
            "records": self._buffer.state_dict(),
            "logged": self._logged.state_dict(),
            "uncompared": sorted(self._uncompared),
            "generator": None if self._generator is None else self._generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state_dict` was taken."""
        self._buffer.load_state_dict(state["records"])
        self._logged.load_state_dict(state["logged"])
        self._uncompared = set(state["uncompared"])
        if self._generator is not None:
            self._generator.set_state(state["generator"])
        self.go_on_at(state["updates"])

    def _require_position(self) -> None:
        if self._position_unknown:
            raise ValueError(
                f"the record goes on after step {self._buffer.last_step}: say at which step training does, by "
                "attach(optimizer, step=...) or go_on_at(step)"
            )

    def _before_update(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # An optimizer whose step() calls super().step() runs its hooks for both. The outer call is the update. A frame, not
        # a count of depth, tells them apart: after an exception in step(), no hook would count down again.
        call = sys._getframe(1)
        if self._update is not None and _is_running(self._update):
            return
        self._update, self._row = call, None
        if not self.cadence.due(self.updates):
            return
        # With a closure the passes of this update are still to come: nothing is heard yet.
        closure = any(callable(x) for x in (*args, *kwargs.values()))
        empirical = {} if closure else self._empirical_trace()
        self._row = {**self._state(self.updates), **empirical}
        self._weights = gauges.copies(self._parameters)
        if closure:
            self._listen()

    def _after_update(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if sys._getframe(1) is not self._update:
            return
        self._update = None
        self.updates += 1  # first, so that the steps stay right where the record cannot be saved
        if self._row is not None:
            with_closure = self._training is not None and "empirical_trace" not in self._row
            if with_closure and self._training is not None and self._training.evaluations > 1:
                raise ValueError(
                    "the optimizer evaluates its closure several times an update, as LBFGS does: there is no one training "
                    "pass that empirical=True could take; leave it out"
                )
            empirical = self._empirical_trace() if with_closure else {}
            self._finish({**empirical, **self._gauge_update(optimizer)})
        self._listen()

    def _state(self, step: int) -> dict[str, Any]:
        """What the model is before the update."""
        if not self._buffer.rows:
            for loader in self._loaders.values():
                probing.refuse_loader_in_use(loader)
        try:
            traces = self._measure()
            self._provenance = probing.provenance(traces)
            now = self._provenance["likelihood"]
            if (before := self._buffer.attrs.get("likelihood", now)) != now:
                raise different_likelihoods(before, now)
        except ValueError as error:
            raise ValueError(f"tr(F) at step {step}: {error}") from error
        return {
            "step": step,
            **probing.as_variables(traces)[1],
            "trainable": record.flags(next(iter(traces.values())).trainable),
            "weight_norm": gauges.norms(self._parameters),
        }

    def _measure(self) -> dict[str, FisherTrace]:
        when: CheckName = check_of_repeat(len(self._buffer.rows) + 1)
        if when == "never" and self._uncompared:
            when = "brief"
        options: TraceOptions = {"check": when, **self._options}
        traces: dict[str, FisherTrace] = {}
        for name, loader in self._loaders.items():
            # The same label noise for every loader and at every step, apart in every process; a user's generator draws on.
            generator = self._generator or torch.Generator().manual_seed(self._seed or 0)
            options["generator"] = rank_generator(generator)
            part = {name: shard(loader, options.get("num_batches"))}
            traces |= probing.measure(self.model, part, **options)
        self._uncompared -= {layer for trace in traces.values() for layer in trace.compared}
        return traces

    def _gauge_update(self, optimizer: Optimizer) -> dict[str, Any]:
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

    def _empirical_trace(self) -> dict[str, Any]:
        if self._training is None:
            return {}
        self._training.stop()
        with preserve_state(ModelIndex(self.model), ()), torch.no_grad():
            mine = self._training.take().cpu().numpy()
        values = np.concatenate(all_gather(mine))
        n = len(values)
        se = values.std(axis=0, ddof=1) / np.sqrt(n) if n > 1 else np.full(values.shape[1], np.nan)
        return {"empirical_trace": values.mean(axis=0), "empirical_trace_se": se}

    def _finish(self, more: Mapping[str, Any]) -> None:
        assert self._row is not None
        row, self._row, self._weights = {**self._row, **more, **self._logged.take()}, None, []
        self._buffer.add({name: np.asarray(value) for name, value in row.items()}, self._provenance)


def _label_noise(seed: int | None, generator: torch.Generator | None) -> tuple[int | None, torch.Generator | None]:
    """A seed for label noise that is the same at every record, or a generator that draws on."""
    if generator is None:
        return check("seed", 0 if seed is None else seed, Whole), None
    if seed is not None:
        raise ValueError(
            "expected seed= (label noise that is the same at every record) or generator= (new at every record), got both"
        )
    return None, generator


def _file(path: Any, resume: Any) -> RecordFile | None:
    """The file that is begun (path=) or gone on with (resume=)."""
    for name, value in {"path": path, "resume": resume}.items():
        if value is not None and not isinstance(value, str | os.PathLike):
            raise ValueError(
                f"expected {name}= to be the path of a file, got {value!r}: path=PLACE begins one, resume=PLACE (without "
                "path=) goes on with it"
            )
    if path is not None and resume is not None:
        raise ValueError("expected path= for a new record or resume= to go on with one, got both")
    place = path if resume is None else resume
    return None if place is None else RecordFile(Path(place), resume=resume is not None)


def _is_running(call: FrameType) -> bool:
    """Whether a call is among those that led here."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame is not call:
        frame = frame.f_back
    return frame is not None


def _torch_optimizer(optimizer: Any) -> Optimizer:
    """The optimizer inside accelerate's or Lightning's wrapper, which is the one that makes the updates."""
    inside = getattr(optimizer, "optimizer", None)
    if isinstance(inside, Optimizer):
        return _torch_optimizer(inside)
    if not isinstance(optimizer, Optimizer):
        raise ValueError(
            f"expected a torch optimizer, got {type(optimizer).__name__}: call recorder.step() in the loop instead"
        )
    return optimizer
