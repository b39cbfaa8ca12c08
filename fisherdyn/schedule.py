"""Unfreezing: a policy and the steps at which it is asked -> the layers open at step t (Algorithm 1's S, lines 5 to 8).

The classifier and what the policy starts with are open at step 0; every k steps SELECT is asked for more, before that
step's forward pass, until no layer is frozen or the policy has been asked as often as there are layers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Self, cast

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from .fisher.batches import Batch
from .fisher.check import check_of_repeat
from .fisher.model_state import unwrap
from .fisher.trace import LabelName
from .labels import LabelMode
from .layers import Layers, resolve_layers
from .likelihoods import Likelihood
from .policies import Policy, SelectionContext
from .selection import Selection, choose, require_shareable
from .validation import Count, Natural, Whole, check


class Unfreezing:
    """The schedule of one run, and the decisions made so far.

    In a loop of one's own, with an optimizer that holds every layer's parameters:

        unfreezing = Unfreezing(policies.fun(), layers, interval=50).attach(model, optimizer, loader)
        for batch in loader:
            unfreezing.step()  # before the forward pass
            ...

    Args:
        policy: SELECT.
        layers: layer -> its parameters' names, bottom first.
        interval: k: SELECT is asked before the forward pass of steps k, 2k, ..., as the paper says. Or the very steps,
            increasing; `authors_steps` gives those of the authors' code.
        seed: of a policy that draws, and, apart from it, of tr(F)'s label noise.

    Attributes:
        due_steps: the steps at which SELECT is asked, while a layer is frozen.
        decisions: (step, layers opened), in order. Which layers are open at any step up to now follows from it alone.
        selections: what was measured at each step at which the policy asked for scores.

    Raises:
        ValueError: an interval or step that is no whole number or below 1, steps that do not increase;
            what the policy refuses.
    """

    def __init__(self, policy: Policy, layers: Layers, interval: int | Sequence[int], *, seed: int = 0) -> None:
        if not isinstance(policy, Policy):
            raise ValueError(f"expected a policy such as fisherdyn.policies.fun(), got {policy!r}")
        if not isinstance(layers, Mapping):
            raise ValueError(f"expected layers as a dict, such as fisherdyn.layers.find_layers(model), got {layers!r}")
        self.policy = policy
        self.layers = layers
        self.interval = _interval(interval)
        self.due_steps = _expand(self.interval, len(layers))
        self.decisions: list[tuple[int, tuple[str, ...]]] = [(0, self._validated(policy.start(tuple(layers)), ()))]
        self.selections: list[Selection] = []
        seed = check("seed", seed, Whole)
        # Two generators: what is measured must not depend on what is drawn.
        self._chance, self._noise = (torch.Generator().manual_seed(seed) for _ in range(2))
        self._steps = 0
        self._answered = -1
        self._together = False
        self._model: nn.Module | None = None

    def open_at(self, step: int) -> tuple[str, ...]:
        """Layers open at a step, in the order in which they opened."""
        return tuple(layer for when, opened in self.decisions if when <= step for layer in opened)

    def due(self, step: int) -> bool:
        """Whether SELECT is to be asked before this step's forward pass."""
        return step in self.due_steps and step > self._answered and len(self.open_at(step)) < len(self.layers)

    def select(self, step: int, selection: Selection | None = None) -> tuple[str, ...]:
        """Asks SELECT, with what was measured for it, and keeps its answer.

        Raises:
            ValueError: the policy answered with a layer that is open, unknown or there twice.
        """
        before = self.open_at(step)
        scores = selection.scores if selection else {}
        context = SelectionContext(step, tuple(self.layers), before, scores, self._chance)
        try:
            opened = self._validated(self.policy.select(context), before)
        except KeyError as error:
            if not scores:
                error.add_note(
                    f"policy {self.policy.id!r} gets no scores: pass scoring=Scoring() to its Policy to have tr(F)"
                )
            raise
        if self._together:
            # Other processes may have measured other examples, or rounded otherwise.
            agreed = [(opened, selection)]
            torch.distributed.broadcast_object_list(agreed, src=0)
            opened, selection = agreed[0]
        self._answered = step
        if opened:
            self.decisions.append((step, opened))
        if selection is not None:
            self.selections.append(selection)
        return opened

    def _validated(self, answer: Any, before: tuple[str, ...]) -> tuple[str, ...]:
        """A policy's answer, of start or select: layers that are known, not open yet, and each once."""
        if isinstance(answer, str) or not isinstance(answer, Iterable):
            raise ValueError(f"policy {self.policy.id!r}: expected a tuple of layers to open, got {answer!r}")
        opened = tuple(answer)
        if wrong := [x for x in opened if x in before or x not in self.layers or opened.count(x) > 1]:
            raise ValueError(f"policy {self.policy.id!r} chose {wrong}, which are open already, unknown or there twice")
        return opened

    def apply(self, model: nn.Module, step: int) -> None:
        """Sets requires_grad of every layer's parameters to whether it is open, and drops gradients of frozen ones.

        A gradient of None (not zero) is what keeps AdamW from decaying or moving a frozen weight, and from counting its
        steps before it opens.
        """
        is_open = set(self.open_at(step))
        for layer, names in self.layers.items():
            for name in names:
                parameter = model.get_parameter(name)
                parameter.requires_grad_(layer in is_open)
                if layer not in is_open:
                    parameter.grad = None

    def attach(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        loader: Iterable[Batch] | None = None,
        *,
        labels: LabelName | LabelMode = "rademacher",
        likelihood: Likelihood | str | None = None,
        together: bool = False,
    ) -> Self:
        """Binds what `step` works on.

        Args:
            model: may be wrapped in DistributedDataParallel or compiled.
            optimizer: holds every layer's parameters, also those that are frozen now: its state and its learning rate,
                scheduled or not, are then right whenever a layer opens.
            loader: what a policy that asks for scores is measured on, such as the training loader.
            labels, likelihood: see `fisher_trace`; labels that the policy names come first.
            together: several processes train one model, so that the first one's choice holds for all; known by itself
                where the model is a DistributedDataParallel.

        Raises:
            ValueError: layers that `resolve_layers` refuses; the optimizer lacks parameters; no loader for a policy that
                needs one; a DistributedDataParallel that does not look for unused parameters, has a static graph, or was
                made while layers were frozen.
        """
        inside = unwrap(model)
        self.layers = resolve_layers(inside, self.layers)
        self._model, self._optimizer, self._together = inside, optimizer, together
        self._loader, self._labels, self._likelihood = loader, labels, likelihood
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if lacking := self._layers_of(lambda p: id(p) not in held):
            raise ValueError(
                f"the optimizer lacks parameters of layer(s) {', '.join(lacking)}, so they would never train: make it while "
                "all layers have requires_grad=True (a schedule freezes by itself; do not freeze before)"
            )
        if self.policy.scoring is not None and loader is None:
            raise ValueError(f"policy {self.policy.id!r} measures tr(F): pass the loader to measure it on")
        if self.policy.scoring is not None and loader is not None:
            require_shareable(loader)
        while not isinstance(model, DistributedDataParallel) and hasattr(model, "_orig_mod"):
            model = cast(nn.Module, model._orig_mod)  # compiled around the reducer
        if isinstance(model, DistributedDataParallel):
            self._together = True
            self.check_reducer(model)
        return self

    def step(self, step: int | None = None) -> tuple[str, ...]:
        """Call before the forward pass of every update: asks SELECT where it is due, and freezes what is not open.

        Args:
            step: optimizer updates so far; counted by itself if left out. A step that comes twice (gradient accumulation) is
                asked once.

        Returns:
            The layers that opened now.

        Raises:
            ValueError: not attached; a step beyond one at which SELECT should have been asked.
        """
        if self._model is None:
            raise ValueError("expected unfreezing.attach(model, optimizer, loader) before unfreezing.step()")
        step = self._steps if step is None else step
        self._refuse_jump(step)
        opened: tuple[str, ...] = ()
        if self.due(step):
            opened = self.select(step, self._measure(step))
        self.apply(self._model, step)
        self._steps = step + 1
        return opened

    def _refuse_jump(self, step: int) -> None:
        """A due step that never comes would leave its layer frozen, and nobody would see it."""
        if missed := [due for due in self.due_steps if due < step and self.due(due)]:
            raise ValueError(
                f"unfreezing.step({step}) jumps over step {missed[0]}, at which {self.policy.id!r} was to be asked: call "
                "it before every update, with the number of updates so far (or nothing, and it counts by itself); "
                "where training goes on after a resume, load_state_dict() first"
            )

    def _measure(self, step: int) -> Selection | None:
        if self.policy.scoring is None:
            return None
        assert self._model is not None
        assert self._loader is not None
        is_open = self.open_at(step)
        return choose(
            self._model,
            self._loader,
            {layer: names for layer, names in self.layers.items() if layer not in is_open},
            self.policy.scoring,
            step=step,
            generator=self._noise,
            labels=self._labels,
            likelihood=self._likelihood,
            check=check_of_repeat(len(self.selections) + 1),
        )

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs to go on, in types that JSON has."""
        return {
            **self._identity(),
            "steps": self._steps,
            "answered": self._answered,
            "decisions": [[step, list(layers)] for step, layers in self.decisions],
            "selections": [vars(selection) for selection in self.selections],
            "generators": [g.get_state().numpy().tobytes().hex() for g in (self._chance, self._noise)],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state_dict` was taken. The decisions are taken over and checked, the mask follows from them.

        Raises:
            ValueError: the state is of another policy, other layers or times; or, once attached, the optimizer has a state
                for a layer that is frozen by these decisions.
        """
        own = self._identity()
        if differing := [f"{key} {state.get(key)!r}, not {own[key]!r}" for key in own if state.get(key) != own[key]]:
            raise ValueError(f"the saved schedule is another one: it has {'; '.join(differing)}")
        self._steps, self._answered = state["steps"], state["answered"]
        self.decisions = [(step, tuple(layers)) for step, layers in state["decisions"]]
        self.selections = [
            # A trainer may have sorted the names.
            Selection(**{**s, "scores": {k: tuple(s["scores"][k]) for k in self.layers if k in s["scores"]}})
            for s in state["selections"]
        ]
        for generator, saved in zip((self._chance, self._noise), state["generators"], strict=True):
            generator.set_state(torch.frombuffer(bytearray.fromhex(saved), dtype=torch.uint8))
        if self._model is not None:
            self.check_optimizer()

    def check_optimizer(self) -> None:
        """Refuses an optimizer that has moved a layer which is frozen by the decisions: it is of another run."""
        is_open = self.open_at(max(self._answered, 0))
        moved = self._layers_of(lambda p: bool(self._optimizer.state.get(p)))
        if wrong := [layer for layer in moved if layer not in is_open]:
            raise ValueError(
                f"layer(s) {', '.join(wrong)} are frozen by the saved schedule, but the optimizer has trained them: the "
                "schedule and the optimizer are not of the same checkpoint"
            )

    def _identity(self) -> dict[str, Any]:
        interval = list(self.interval) if isinstance(self.interval, tuple) else self.interval
        return {"policy": self.policy.id, "layers": list(self.layers), "interval": interval}

    def _layers_of(self, condition: Any) -> list[str]:
        """Layers with a parameter for which the condition holds."""
        assert self._model is not None
        return [
            layer
            for layer, names in self.layers.items()
            if any(condition(self._model.get_parameter(name)) for name in names)
        ]

    def check_reducer(self, model: DistributedDataParallel) -> None:
        """Refuses a DistributedDataParallel that would wait for frozen layers, or never average those that open."""
        if model.static_graph or not model.find_unused_parameters:
            raise ValueError(
                "frozen layers have no gradient, and the set of open ones grows: wrap the model as "
                "DistributedDataParallel(..., find_unused_parameters=True), static_graph=False"
            )
        assert self._model is not None  # `model` may be a larger one that holds it
        needed = {id(self._model.get_parameter(name)) for names in self.layers.values() for name in names}
        needed |= {id(p) for p in unwrap(model).parameters() if p.requires_grad}
        # The reducer does not tell which parameters it was made for, only how many.
        reduced = model._get_ddp_logging_data()["num_parameter_tensors"]
        if reduced < len(needed):
            raise ValueError(
                f"DistributedDataParallel was made while {len(needed) - reduced} parameters of the schedule's layers "
                "were frozen, and would never average their gradients: wrap it while all layers have requires_grad=True"
            )


def _interval(interval: Any) -> int | tuple[int, ...]:
    """k, or the steps at which SELECT is asked, as Python's ints."""
    try:
        if isinstance(interval, str) or not isinstance(interval, Iterable):
            return check("interval", interval, Count)
        steps = check("interval", tuple(interval), tuple[Natural, ...])
    except ValueError:
        steps = ()
    if not steps or any(a >= b for a, b in pairwise(steps)):
        raise ValueError(
            "expected an interval that is a whole number of at least 1 update, such as 50, or whole steps of at least 0 "
            f"that increase, such as (50, 80), got {interval!r}"
        )
    return steps


def _expand(interval: int | tuple[int, ...], layers: int) -> tuple[int, ...]:
    """The steps at which SELECT is asked: once for every layer at most."""
    return tuple(interval * i for i in range(1, layers + 1)) if isinstance(interval, int) else interval


def authors_steps(policy: Policy | str, interval: int | Sequence[int], layers: int) -> tuple[int, ...]:
    """The steps at which the authors' code asks SELECT, for `interval=`: after k - 1, 2k - 1, ... updates.

    Args:
        policy: SELECT, or its name. Gradual unfreezing ("top_down") loses its first turn to the top layer, which is open
            already.
        interval: k, or the steps at which the paper's text would have it asked.
        layers: how many the model has.

    Example:
        >>> authors_steps(policies.top_down(), 50, layers=4)
        (99, 149, 199)
    """
    name = policy.id if isinstance(policy, Policy) else policy
    steps = tuple(step - 1 for step in _expand(_interval(interval), check("layers", layers, Count)))
    return steps[1:] if name == "top_down" else steps
