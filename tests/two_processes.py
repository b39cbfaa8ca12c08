"""What one of two processes does in `test_measure`: in a file of its own, so that a process starts quickly."""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from fisherdyn import fisher_trace


def model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        made = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 4)).double()
    return made


def batches() -> list[torch.Tensor]:
    x = torch.randn(50, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return [*x[:40].split(8), *x[40:].split(5)]


def work(rank: int, port: int, found: MutableMapping[tuple[int, str], Any]) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    try:
        mine = batches()[rank::2]
        found[rank, "all"] = fisher_trace(model(), mine, labels="exact")
        found[rank, "same inputs"] = fisher_trace(model(), batches()[:5])
        found[rank, "target_se"] = fisher_trace(model(), mine, labels="exact", target_se=0.5)
        if rank == 1:
            mine[1] = mine[1].clone()
            mine[1][0] = torch.nan
        try:
            fisher_trace(model(), mine)
        except Exception as error:
            found[rank, "failing"] = f"{type(error).__name__}: {error}"
    finally:
        dist.destroy_process_group()
