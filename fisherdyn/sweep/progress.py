"""The progress of a sweep: which runs are under way, their steps and losses, and the time left.

A terminal shows one bar for the sweep and one for each run under way. A log file gets a line for each run that ends and,
once a minute, a line with the runs under way.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

import xarray as xr
from tqdm import tqdm

HEARTBEAT = 60.0
"""Seconds between two lines about the runs under way."""


class Progress:
    """Prints the progress of a sweep as lines.

    Args:
        steps: number of each run to be trained -> its steps.
        names: number of each of these runs -> its name.
    """

    def __init__(self, steps: Mapping[int, int], names: Mapping[int, str]) -> None:
        self.steps, self.names = steps, names
        self.total = sum(steps.values())
        self.under_way: dict[int, tuple[int, float]] = {}
        self.ended, self.steps_done = 0, 0
        self.started = self.reported = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def say(self, line: str) -> None:
        print(line, flush=True)

    def watch(self, index: int, step: int, loss: float) -> None:
        """Reports that a run has reached a step."""
        if index in self.steps:
            self.under_way[index] = step, loss
        if time.monotonic() - self.reported > HEARTBEAT:
            self.reported = time.monotonic()
            self.say(f"under way: {'; '.join(map(self._where, self.under_way))}")

    def _where(self, index: int) -> str:
        step, loss = self.under_way[index]
        return f"{self.names[index]} at step {step} of {self.steps[index]}, loss {loss:.3g}"

    def end(self, index: int, how: str) -> None:
        """Reports that a run has ended, with success or not."""
        self._count(index)
        left = f"; about {duration(self.left())} left" if self.ended < len(self.steps) else ""
        self.say(f"{self.ended}/{len(self.steps)} {self.names[index]}: {how}{left}")

    def _count(self, index: int) -> None:
        self.under_way.pop(index, None)
        self.ended += 1
        self.steps_done += self.steps[index]

    def left(self) -> float:
        """Seconds left, at the present rate of steps."""
        now = self.steps_done + sum(step for step, _ in self.under_way.values())
        return (time.monotonic() - self.started) * (self.total - now) / max(now, 1)


class Bars(Progress):
    """Shows the progress of a sweep as bars on a terminal."""

    def __init__(self, steps: Mapping[int, int], names: Mapping[int, str]) -> None:
        super().__init__(steps, names)
        form = "{desc} {bar} {percentage:3.0f} % of all steps, {elapsed} gone, {remaining} left"
        self.sweep: tqdm[None] = tqdm(total=self.total, bar_format=form, desc=self._count_of_runs(), leave=False)
        self.rows: dict[int, tqdm[None]] = {}

    def _count_of_runs(self) -> str:
        return f"{self.ended}/{len(self.steps)} runs"

    def __exit__(self, *_: object) -> None:
        for bar in (*self.rows.values(), self.sweep):
            bar.close()

    def say(self, line: str) -> None:
        tqdm.write(line, file=sys.stdout)

    def watch(self, index: int, step: int, loss: float) -> None:
        if index not in self.steps:
            return
        self.under_way[index] = step, loss
        if index not in self.rows and len(self.rows) < shutil.get_terminal_size().lines - 3:
            form = "  {desc} {bar} step {n_fmt} of {total_fmt}{postfix}, {remaining} left"
            self.rows[index] = tqdm(total=self.steps[index], desc=self.names[index], bar_format=form, leave=False)
        if row := self.rows.get(index):
            row.n = step
            row.set_postfix_str(f"loss {loss:.3g}")
        self._refresh()

    def end(self, index: int, how: str) -> None:
        super().end(index, how)
        if row := self.rows.pop(index, None):
            row.close()
        self._refresh()

    def _refresh(self) -> None:
        self.sweep.n = self.steps_done + sum(step for step, _ in self.under_way.values())
        self.sweep.set_description_str(self._count_of_runs())


def progress(steps: Mapping[int, int], names: Mapping[int, str]) -> Progress:
    """Bars on a terminal, lines elsewhere."""
    return (Bars if sys.stderr.isatty() else Progress)(steps, names)


def duration(seconds: float) -> str:
    """ "40 s", "12 min", "3.5 h" """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def result(ds: xr.Dataset) -> str:
    """The last loss and source metric of a run, in a few words."""
    parts = []
    for name, words in (("train_loss", "loss"), ("source_metric", "source")):
        if name in ds and ds[name].size:
            parts.append(f"{words} {float(ds[name].values.ravel()[-1]):.3g}")
    return ", ".join(parts) or "done"
