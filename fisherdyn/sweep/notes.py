"""Notes about a study's openings, printed before it runs."""

from __future__ import annotations

from collections.abc import Iterable

from .. import policies
from ..policies import Policy, SelectionContext
from .orders import LAYERS
from .runs import Run, Settings

LATE = 0.6
"""Share of the steps after which there is little time to train with all open."""


def openings(runs: Iterable[Run], settings: Settings) -> list[str]:
    """A line for each row and length of training whose last layer opens late, or too late to be trained.

    Policies of the user's own are left out: nothing is known of when they open layers.
    """
    known = [run for run in runs if run.order or run.policy in policies.NAMED]
    notes = dict.fromkeys((run.schedule, _late(run, settings.of(run))) for run in known)  # seeds have the same
    return [f"note: {schedule}: {late}" for schedule, late in notes if late]


def _late(run: Run, own: Settings) -> str:
    turns = _turns(policies.permutation(run.order) if run.order else policies.NAMED[run.policy])
    if turns == 0:
        return ""
    taken = (own.steps - 1) // own.interval  # after the last step nothing is trained
    if taken == 0:
        return f"nothing ever opens: interval {own.interval}, {own.steps} steps"
    if taken < turns:
        return f"only {taken} of {turns} layers open in time to be trained: interval {own.interval}, {own.steps} steps"
    if (last := turns * own.interval) > LATE * own.steps:
        return f"the last layer opens at step {last} of {own.steps}: little or no time to train with all open"
    return ""


def _turns(policy: Policy) -> int:
    """How often SELECT is asked until nothing more opens."""
    layers = tuple(map(str, range(LAYERS)))
    scores = dict.fromkeys(layers, (0.0, 0.0))
    is_open, turns = policy.start(layers), 0
    while len(is_open) < LAYERS and (opened := policy.select(SelectionContext(0, layers, is_open, scores))):
        is_open, turns = (*is_open, *opened), turns + 1
    return turns
