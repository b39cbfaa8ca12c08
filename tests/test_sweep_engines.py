"""The same sweep in this process, in two processes, and on a Dask cluster that loses a worker and then its scheduler."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import lives
import nothing
import pytest
import xarray as xr
from test_sweep_survives import STUDY, begun, states

from fisherdyn.sweep import processes
from fisherdyn.sweep.__main__ import main
from fisherdyn.sweep.cluster import queue
from fisherdyn.sweep.engine import InProcess, Job, run_all
from fisherdyn.sweep.failures import Failure
from fisherdyn.sweep.runs import Run, Settings
from fisherdyn.sweep.studyfile import read

SMALL = """
steps: 4
seeds: 1
languages: ka,te
schedules:
  FUN: {policy: fun, interval: 1, SIZES}
  top-down: {order: [10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0], SIZES}
""".replace("SIZES", "record_every: 2, evaluate_every: 4, train_examples: 32, dev_examples: 8, test_examples: 8")


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> tuple[Path, Path]:
    """A study of real training, and its dataset from this process."""
    folder = tmp_path_factory.mktemp("small")
    study = folder / "small.yaml"
    study.write_text(SMALL)
    assert main([str(study), "--workers", "1", "--out", str(folder / "one")]) == 0
    return study, folder / "one" / "small.nc"


def test_two_processes_give_the_same_dataset(small, tmp_path, capfd):
    study, one = small
    assert main([str(study), "--workers", "2", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "small.nc").read_bytes() == one.read_bytes()
    with xr.open_dataset(one) as ds:
        assert ds.sizes["run"] == 2
        assert not ds["fisher_trace"].isnull().any()
        assert len(set(ds["fisher_trace"].isel(step=-1, layer=0).values.tolist())) == 2  # or equal is no news


# ---- a Dask cluster --------------------------------------------------------------------------------------------------


class DaskCluster:
    """Scheduler and workers of one thread, as processes of their own."""

    def __init__(self, folder: Path, workers: int, port: int = 0) -> None:
        if not port:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
        self.port, self.address = port, f"tcp://127.0.0.1:{port}"
        scheduler = ["scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard", "--no-show"]
        self.scheduler = _dask(folder / "scheduler", *scheduler)
        worker = ["worker", self.address, "--nthreads", "1", "--no-nanny", "--no-dashboard"]
        preload = ["--preload", "fisherdyn.sweep.studyfile", "--local-directory", str(folder)]
        self.workers = [_dask(folder / f"worker-{i}", *worker, *preload) for i in range(workers)]

    def end(self) -> None:
        for process in (*self.workers, self.scheduler):
            process.kill()
            process.wait()


def _dask(said: Path, kind: str, *arguments: str) -> subprocess.Popen[bytes]:
    with said.open("w") as log:
        command = [sys.executable, "-m", f"distributed.cli.dask_{kind}", *arguments]
        # Runs take a moment: else the sweep could be over before anything is lost.
        own = {"LOG": str(said.parent / "log"), "PAUSE": "0.05"}
        return subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | own)


@pytest.fixture
def clusters(tmp_path):
    begun: list[DaskCluster] = []

    def make(*arguments) -> DaskCluster:
        begun.append(DaskCluster(tmp_path, *arguments))
        return begun[-1]

    yield make
    for cluster in begun:
        cluster.end()


def test_a_cluster_that_loses_a_worker_and_then_its_scheduler(small, tmp_path, clusters):
    """The sweep goes on without the worker, ends with one line without the scheduler, and is finished by another cluster."""
    expected, out, log = tmp_path / "one", tmp_path / "out", tmp_path / "log"
    seeds = ["--seeds", "40"]
    cluster = clusters(2)
    lives.Life(tmp_path / "undisturbed", [STUDY, *seeds, "--workers", "1", "--out", str(expected)]).end()
    arguments = [STUDY, *seeds, "--scheduler", cluster.address, "--out", str(out)]
    life = lives.Life(tmp_path / "said", arguments)
    lives.wait_for(lambda: sum(states(out).values()) >= 3 or not life.process.is_alive())
    cluster.workers[0].kill()
    before = sum(states(out).values())
    lives.wait_for(lambda: sum(states(out).values()) >= before + 5)
    cluster.scheduler.kill()
    assert life.end() == 1, (tmp_path / "said").read_text()
    said = (tmp_path / "said").read_text()
    assert "the scheduler is lost; what is finished is kept: repeat the command with a scheduler" in said
    assert "Traceback" not in said
    done, so_far = {name for name, state in states(out).items() if state == 1}, len(begun(log))
    assert 0 < len(done) < 160

    cluster.end()
    clusters(1, cluster.port)
    again = lives.Life(tmp_path / "said", arguments)
    assert again.end() == 0, (tmp_path / "said").read_text()
    assert (out / "nothing.nc").read_bytes() == (expected / "nothing.nc").read_bytes()
    assert not done & set(begun(log)[so_far:])

    study, one = small
    real = [str(study), "--scheduler", cluster.address, "--out", str(tmp_path / "real")]
    assert lives.Life(tmp_path / "said", real).end() == 0, (tmp_path / "said").read_text()
    assert (tmp_path / "real" / "small.nc").read_bytes() == one.read_bytes()


def test_no_scheduler_there(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("fisherdyn.sweep.cluster.PATIENCE", "100ms")
    with pytest.raises(SystemExit) as stop:
        main([STUDY, "--scheduler", "tcp://127.0.0.1:9", "--out", str(tmp_path)])
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert "--scheduler tcp://127.0.0.1:9: no scheduler answers there" in err
    assert err.count("\n") == 1


SLURM = """
jobqueue:
  slurm:
    queue: gpu
    memory: 16GB
    walltime: "24:00:00"
    job_cpu: 4
    job_extra_directives: ["--gres=gpu:1"]
    interface: lo
"""


def test_a_slurm_file_gives_jobs_of_one_thread(tmp_path):
    path = tmp_path / "slurm.yaml"
    path.write_text(SLURM)
    cluster = queue(path)
    try:
        script = cluster.job_script()
    finally:
        cluster.close()
    assert "#SBATCH -p gpu" in script
    assert "#SBATCH --gres=gpu:1" in script
    assert "#SBATCH --cpus-per-task=4" in script
    assert "--nthreads 1" in script
    assert "export DASK_DISTRIBUTED__WORKER__DAEMON=False" in script
    assert "export OMP_NUM_THREADS=1" in script


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "jobqueue: {slurm: {cores: 4, memory: 1GB}}",
            "expected cores equal to processes, got cores 4 and processes 1",
        ),
        ("jobqueue: {cray: {}}", "expected dask-jobqueue's format"),
        ("jobqueue: [", "expected dask-jobqueue's format"),
        ("slurm: {}", "expected dask-jobqueue's format"),
        (None, "No such file"),
    ],
)
def test_a_wrong_cluster_file(tmp_path, text, message):
    path = tmp_path / "slurm.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=message):
        queue(path)


# ---- what engines have in common -------------------------------------------------------------------------------------


def _fails_for_seed_1(run: Run, settings: Settings, on_step) -> xr.Dataset:
    if run.seed == 1:
        raise ValueError("the training loss is nan")
    return xr.Dataset({"x": run.seed})


def _in_process(train, watch):
    return InProcess(train, watch)


def _two(train, watch):
    return processes.Processes(train, watch, 2, start=lives.SERVER)


@pytest.mark.parametrize("engine", [_in_process, _two])
def test_one_failing_run_does_not_stop_the_others(engine):
    jobs = [Job(i, Run("standard", (), i), Settings()) for i in range(4)]
    found = dict(run_all(engine(_fails_for_seed_1, lambda *word: None), jobs))
    assert sorted(found) == [0, 1, 2, 3]
    assert isinstance(found[1], Failure)
    assert found[1].reason == "ValueError: the training loss is nan"
    assert found[3]["x"] == 3


@pytest.mark.parametrize("engine", [_in_process, _two])
def test_progress_comes_from_where_the_run_is(engine):
    said = []
    jobs = [Job(i, Run("s1", (), i), Settings(steps=4)) for i in range(3)]
    list(run_all(engine(nothing.train, lambda *word: said.append(word)), jobs))
    assert sorted(said) == [(i, 4, 0.5) for i in range(3)]


def test_no_more_is_asked_for_than_can_be_done():
    """Memory stays flat whatever the number of runs: what waits is not even made."""
    made, held = 0, 0

    def jobs():
        nonlocal made
        for i in range(1000):
            made += 1
            yield Job(i, Run("s1", (), i), Settings())

    for n, _ in enumerate(run_all(InProcess(_fails_for_seed_1, lambda *word: None), jobs()), start=1):
        held = max(held, made - n)
    assert made == 1000
    assert held <= 1


def test_workers_use_one_thread_and_a_gpu_of_their_own():
    engine = processes.Processes(_environment, lambda *word: None, 3, gpus=2, start=lives.SERVER)
    found = dict(run_all(engine, [Job(i, Run("standard", (), i), Settings()) for i in range(3)]))
    assert [found[i].attrs["gpu"] for i in range(3)] == ["0", "1", "0"]
    assert all(ds.attrs["threads"] == "1" for ds in found.values())


def _environment(run: Run, settings: Settings, on_step) -> xr.Dataset:
    import time

    time.sleep(0.3)  # so that each worker gets one
    return xr.Dataset(attrs={"gpu": os.environ["CUDA_VISIBLE_DEVICES"], "threads": os.environ["OMP_NUM_THREADS"]})


def test_a_python_study_goes_to_workers_as_text(tmp_path):
    import pickle

    path = tmp_path / "mine.py"
    path.write_text(
        "schedules = {'s1': {'policy': 'standard'}}\ndef train(run, settings, on_step):\n    return run.seed\n"
    )
    train = pickle.dumps(read(path).train)
    path.unlink()
    assert pickle.loads(train)(Run("s1", (), 7), Settings(), None) == 7
