"""What tests run in processes of their own, forked from a server that has imported it: a child starts in milliseconds."""

from __future__ import annotations

import multiprocessing
import os
import socket
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from transformers.modeling_outputs import SequenceClassifierOutput

from fisherdyn import Recorder, fisher_trace
from fisherdyn.fisher.distributed import rank_generator, shard
from fisherdyn.policies import Scoring
from fisherdyn.selection import choose


def context() -> ForkServerContext:
    """The server that children are forked from; Python 3.11's looks for what it preloads on PYTHONPATH only."""
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(["netCDF4", "warm"])
    before = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), before])
    forkserver.ensure_running()
    os.environ["PYTHONPATH"] = before
    return found


def model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


class Answering(nn.Module):
    """That model, answering like Hugging Face's."""

    def __init__(self) -> None:
        super().__init__()
        self.net = model()

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> SequenceClassifierOutput:
        logits = self.net(x)
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


def batches(count: int = 4, size: int = 8) -> list[torch.Tensor]:
    return list(torch.randn(count, size, 4, generator=torch.Generator().manual_seed(0)))


def warm_up() -> None:
    """A step, recorded: what is imported and looked up at the first one only is there for all children."""
    net, (x, *_) = model(), batches()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    with Recorder(net, [x], every=1).attach(optimizer) as recorder:
        net(x).square().mean().backward()
        optimizer.step()
    assert recorder.dataset.sizes["step"] == 2


def record_for_ever(path: Path, news: Connection) -> None:
    """Trains and records at every step, and says so after each update, until it is killed."""
    torch.set_num_threads(1)
    net, (x, *_) = model(), batches()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    recorder = Recorder(net, [x], every=1, path=path).attach(optimizer)
    for step in range(10**9):
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()
        if step == 10:
            recorder.log(late=1.0)  # a variable that comes in the middle
        news.send(step)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def record_together(rank: int, world: int, port: int, path: Path, results: Connection) -> None:
    """Trains one model in several processes, each on its part of every batch, and records it."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=world)
    net = nn.parallel.DistributedDataParallel(model())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with Recorder(net, batches(), every=2, labels="exact", empirical=True, path=path).attach(optimizer) as recorder:
        for x in batches(5):
            own = x[rank * len(x) // world : (rank + 1) * len(x) // world]
            optimizer.zero_grad()
            loss = net(own).logsumexp(dim=1).mean()
            loss.backward()
            optimizer.step()
            recorder.log(train_loss=loss)
    results.send(recorder.dataset)
    dist.destroy_process_group()


def choose_together(rank: int, world: int, port: int, results: Connection) -> None:
    """FUN's measurement of one model by several processes, each with the whole loader; on nine of its batches."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=world)
    layers = {"0": ("0.weight", "0.bias"), "2": ("2.weight", "2.bias")}
    found = {
        labels: choose(
            model(),
            batches(12),
            layers,
            Scoring(labels, batches=9, error_rate=1e-9),
            step=0,
            generator=torch.Generator().manual_seed(5),
        )
        for labels in ("exact", "rademacher")
    }
    torch.manual_seed(rank)  # and still all read one order
    shuffled = DataLoader(TensorDataset(torch.cat(batches(12))), batch_size=8, shuffle=True)
    layer = {"0": ("0.weight", "0.bias")}
    found["shuffled"] = fisher_trace(model(), shard(shuffled), layers=layer, labels="exact").trace.tolist()
    common = torch.Generator().manual_seed(7)
    own = torch.rand(3, generator=rank_generator(common)).tolist()
    results.send((found, own, torch.rand(3, generator=common).tolist()))
    dist.destroy_process_group()
