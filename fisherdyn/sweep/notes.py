"""What is odd about a study's openings, said before it runs."""

from __future__ import annotations

from collections.abc import Iterable

from .. import policies
from . import studies
from .studies import Run, Settings

LATE = 0.6
"""Share of the steps after which there is little time to train with all open."""


def openings(runs: Iterable[Run], settings: Settings) -> list[str]:
    """A line for each row and length of training whose last layer opens late, or not in time to be trained.

    Policies of one's own are passed over: when they open what is theirs to know.
    """
    ours = [run for run in runs if run.order or run.policy in policies.NAMED]
    said = dict.fromkeys((run.schedule, _late(run, settings.of(run))) for run in ours)  # seeds say the same
    return [f"note: {schedule}: {late}" for schedule, late in said if late]


def _late(run: Run, own: Settings) -> str:
    if run.policy == "standard":
        return ""
    turns = 1 if run.policy == "linear_probing" else len(run.order) or studies.LAYERS - 1
    taken = (own.steps - 1) // own.interval  # after the last step nothing is trained
    if taken == 0:
        return f"nothing ever opens: interval {own.interval}, {own.steps} steps"
    if taken < turns:
        return f"only {taken} of {turns} layers open in time to be trained: interval {own.interval}, {own.steps} steps"
    if (last := turns * own.interval) > LATE * own.steps:
        return f"the last layer opens at step {last} of {own.steps}: little or no time to train with all open"
    return ""
