"""An editor finds a misspelt option: mypy on ten right calls and ten wrong ones."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

BEGIN = """
import torch
import fisherdyn
from fisherdyn import policies
from fisherdyn.settings import Checkpoints, Evaluation, Execution, Measurement, Optimization

model = torch.nn.Linear(2, 2)
loader = [{"input": torch.zeros(1, 2)}]
measurement = Measurement(loader=loader)
optimization = Optimization(steps=1, lr=0.1)
"""

RIGHT = """
fisherdyn.probe(model, loader, labels="exact")
fisherdyn.probe(model, {"en": loader}, method="vmap", num_batches=3)
fisherdyn.fisher_trace(model, loader, labels="mc", check="never")
fisherdyn.fisher_trace(model, loader, target_se=0.05, generator=torch.Generator())
fisherdyn.Recorder(model, loader, every=10, labels="rademacher")
fisherdyn.Recorder(model, loader, steps=fisherdyn.log_spaced(100), method="hooks", path="run.nc")
fisherdyn.fit(model, loader, policy=policies.fun(), interval=5, optimization=optimization, measurement=measurement)
Optimization(steps=10, lr=1e-3, lr_schedule="linear")
Measurement(loader=loader, labels="exact", every=5)
Execution(precision="bf16")
"""

WRONG = """
fisherdyn.probe(model, loader, labels="exct")
fisherdyn.probe(model, loader, label="exact")
fisherdyn.fisher_trace(model, loader, labels="sampled")
fisherdyn.fisher_trace(model, loader, check="second")
fisherdyn.Recorder(model, loader, every="10")
fisherdyn.Recorder(model, loader, labels="class_mix")
fisherdyn.fit(model, loader, policy="fun", interval=5, optimization=optimization, measurement=measurement)
fisherdyn.fit(model, loader, policy=policies.fun(), interval=5, optimization=optimization, measurment=measurement)
Optimization(steps=10, lr=1e-3, lr_schedule="cosine")
Measurement(loader=loader, labels="argmax")
"""


def test_mypy_finds_wrong_options_and_no_others(tmp_path):
    wrong, right = WRONG.strip().splitlines(), RIGHT.strip().splitlines()
    assert (len(wrong), len(right)) == (10, 10)
    file = tmp_path / "calls.py"
    file.write_text("\n".join([*BEGIN.strip().splitlines(), *right, *wrong]))
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), str(file)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    first_wrong = len(BEGIN.strip().splitlines()) + len(right) + 1
    errors = [line for line in done.stdout.splitlines() if "error:" in line]
    lines = {int(line.split(":")[1]) for line in errors}
    assert lines == set(range(first_wrong, first_wrong + 10)), done.stdout
