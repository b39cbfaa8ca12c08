"""The list of a study's runs that --dry-run prints."""

from __future__ import annotations

from collections.abc import Sequence

from .runs import Run, Settings


def listing(runs: Sequence[Run], settings: Settings) -> str:
    """One line a run, and how many steps they are."""
    width = max([12, *(len(run.schedule) for run in runs)])
    lines = [f"{'schedule':{width}}  seed  what is trained  examples  lr        k      steps"]
    steps = 0
    for run in runs:
        own = settings.of(run)
        k = "-" if run.policy in ("standard", "full") else own.interval
        tuning, examples = own.options.get("tuning", "-"), own.options.get("train_examples") or "all"
        lines.append(
            f"{run.schedule:{width}}  {run.seed:4}  {tuning:15}  {examples:>8}  {own.lr:<8g}  {k:<5}  {own.steps}"
        )
        steps += own.steps
    lines.append(f"{len(runs)} runs, {steps} steps")
    if settings.skipped:
        lines.append(f"Skipped: {settings.skipped}.")
    return "\n".join(lines)
