"""Several processes that train one model: FUN measures each example once, and all take one choice."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import children
import numpy as np
import pytest
import torch
import trained_by_two

from fisherdyn import fisher_trace


def test_two_processes_choose_as_one_does():
    """A loader that each has whole is shared out: with exact labels scores and errors are those of one process."""
    context = children.context()

    def chosen(world):
        port, pipes = children.free_port(), [context.Pipe(duplex=False) for _ in range(world)]
        processes = [
            context.Process(target=children.choose_together, args=(rank, world, port, send))
            for rank, (_, send) in enumerate(pipes)
        ]
        for process in processes:
            process.start()
        assert all(receive.poll(120) for receive, _ in pipes)
        found = [receive.recv() for receive, _ in pipes]
        for process in processes:
            process.join()
        return found

    [(one, own, _)], of_two = chosen(1), chosen(2)
    two = [found for found, _, _ in of_two]
    whole = one.pop("shuffled")
    for rank in two:
        np.testing.assert_allclose(rank.pop("shuffled"), whole, rtol=1e-5)  # each example once, in any order
    for label, alone in one.items():
        for mine in (rank[label] for rank in two):
            assert (mine.examples, mine.batches, mine.tie) == (alone.examples, alone.batches, alone.tie)
            if label == "exact":
                np.testing.assert_allclose(list(mine.scores.values()), list(alone.scores.values()), rtol=1e-5)
                assert mine.confidence == pytest.approx(alone.confidence, abs=1e-5)
        assert two[0][label] == two[1][label]
    assert one["exact"].examples == 9 * 8  # of twelve batches it may read nine
    assert own == torch.rand(3, generator=torch.Generator().manual_seed(7)).tolist()
    (_, first, after), (_, second, later) = of_two
    assert first != second  # label noise is each one's own, and the common generator moves in step
    assert after == later


@pytest.mark.parametrize("trainer", ["trainer", "lightning"])
def test_fun_under_a_trainer_of_two_processes(trainer, tmp_path):
    """Really in two: same choices and weights in both, scores and errors as one process has them, and frozen layers stay."""
    script = Path(__file__).with_name("trained_by_two.py")
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(children.free_port())}
    world |= {"PYTHONPATH": str(script.parent.parent), "PYTHONWARNINGS": "ignore"}
    world |= {"TORCHELASTIC_RUN_ID": "test", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0"}  # as torchrun would
    command = [sys.executable, str(script), trainer, str(tmp_path)]
    processes = [
        subprocess.Popen(command, env={**os.environ, **world, "RANK": r, "LOCAL_RANK": r}, stderr=subprocess.PIPE)
        for r in "01"
    ]
    said = [process.communicate(timeout=300)[1].decode() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    one, two = (torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in "01")
    layers, decisions, selections, moved, weights, chosen_with = one
    assert [step for step, _ in decisions] == [0, 2, 4, 6]
    is_open = {name for _, opened in decisions for layer in opened for name in layers[layer]}
    frozen = {name for names in layers.values() for name in names} - is_open
    assert not moved & frozen
    assert moved & is_open
    assert len(selections) == len(chosen_with) == 3
    task = trained_by_two.world()
    for selection, state in zip(selections, chosen_with, strict=True):
        model = task.build_model(0)
        model.load_state_dict({name.removeprefix("model."): x for name, x in state.items()})
        candidates = {name: [p.removeprefix("model.") for p in layers[name]] for name in selection.scores}
        alone = fisher_trace(model, [task.split(0)], layers=candidates, labels="exact")
        assert (selection.examples, selection.batches) == (alone.examples, 12)
        np.testing.assert_allclose(list(selection.scores.values()), list(alone.scores().values()), rtol=1e-4)
    assert (two[1], two[2]) == (decisions, selections)
    assert all(torch.equal(weight, two[4][name]) for name, weight in weights.items())
