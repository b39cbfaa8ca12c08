"""The wheel: it carries the weights, and finds them when it is installed."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_an_installed_wheel_finds_its_weights(tmp_path):
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    assert sum(f.stat().st_size for f in site.rglob("*.safetensors")) < 6e6
    code = (
        "import fisherdyn, sys; from fisherdyn import tasks; "
        "m = tasks.load('world').build_model(0); print(fisherdyn.__file__)"
    )
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(site / "fisherdyn" / "__init__.py")


def test_constraints_name_no_place():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert all(line.count("==") == 1 and "/" not in line and "+" not in line for line in lines), lines


def test_the_top_level_is_lazy():
    code = "import sys, fisherdyn; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_no_public_function_shares_its_name_with_a_file():
    """`import fisherdyn.probe` would otherwise put a module where users expect the function."""
    import fisherdyn

    files = {path.stem for path in (ROOT / "fisherdyn").iterdir()}
    assert not files & {name for name in fisherdyn.__all__ if callable(getattr(fisherdyn, name))}
