"""What README says works as it stands: its Python, its commands, its picture."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from fisherdyn.sweep.__main__ import parse, plan

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = [shlex.split(c.split("#")[0]) for c in re.findall(r"^    (python -m .*)$", README, flags=re.MULTILINE)]


def test_the_probe_is_ten_lines():
    assert 8 <= len(BLOCKS[0].strip().splitlines()) <= 12


@pytest.mark.parametrize("block", range(len(BLOCKS)))
def test_python_runs(block, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", BLOCKS[block]], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_commands_are_understood(command):
    """A sweep is planned, not run; everything else is run."""
    if command[2] == "fisherdyn.sweep":
        runs, _ = plan(parse(command[3:]))
        assert runs
        return
    done = subprocess.run([sys.executable, *command[1:]], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^    make (\w+)", README, flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_nothing_is_left_to_be_filled_in():
    for name in ("README.md", "LOG.md", "CHANGELOG.md"):
        assert not re.findall(r"^[A-Z_]{4,}$|@@", (ROOT / name).read_text(), flags=re.MULTILINE), name


def test_pictures_and_files_exist():
    for path in re.findall(r"\[[^\]]*\]\(([^)#:]+)\)", README):
        assert (ROOT / path).is_file(), path
    tree = README.split("## The tree")[1]
    for name in re.findall(r"^      (\w+\.py|\w+/)", tree, flags=re.MULTILINE):
        assert (ROOT / "fisherdyn" / name).exists(), name
