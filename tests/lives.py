"""Sweeps in processes that can be killed: forked from a server that has imported everything once."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["fisherdyn.sweep.__main__", "fisherdyn.tasks.world.inference", "nothing"])


class Life:
    """`python -m fisherdyn.sweep ARGUMENTS`, as the leader of a process group of its own.

    Attributes:
        said: the file that gets stdout and stderr.
    """

    def __init__(self, said: Path, arguments: Sequence[str], environment: dict[str, str] | None = None) -> None:
        self.said = said
        self.begun, there = multiprocessing.Pipe(duplex=False)
        self.process = SERVER.Process(target=_live, args=(there, said, list(arguments), environment or {}))
        self.process.start()
        self.begun.recv()

    def kill(self, how: int = signal.SIGKILL) -> None:
        """The whole group, workers too; returns when none of it is left."""
        assert self.process.pid is not None
        try:
            os.killpg(self.process.pid, how)
        except ProcessLookupError:
            return
        self.process.join(60)
        wait_for(lambda: not self._group_lives())

    def _group_lives(self) -> bool:
        """Whether a process of the group is left that is no zombie: who reaps orphans is not ours to say."""
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                state, _, group = stat.read_text().rpartition(")")[2].split()[:3]
            except OSError:  # it has just ended
                continue
            if int(group) == self.process.pid and state != "Z":
                return True
        return False

    def end(self) -> int | None:
        """Waits for its exit code."""
        self.process.join(120)
        return self.process.exitcode


def _live(there, said: Path, arguments: list[str], environment: dict[str, str]) -> None:
    os.setsid()
    os.environ.update(environment)
    out = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    from fisherdyn.sweep import __main__ as command
    from fisherdyn.sweep import processes

    # Workers are forked too: this process has imported everything, and is as young as a server of its own.
    processes.context = lambda: multiprocessing.get_context("fork")  # type: ignore[assignment]
    there.send("begun")
    try:
        code = command.main(arguments)
    except SystemExit as stop:
        code = int(stop.code or 0)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def wait_for(condition, seconds: float = 60, pause: float = 0.02) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(pause)
