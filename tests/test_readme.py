"""What README.md, docs/ and CONTRIBUTING.md say works as it stands: Python, commands, links, and the names they use."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from fisherdyn.sweep.__main__ import main

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
EXPLAINED = [*PAGES, ROOT / "CONTRIBUTING.md"]
"""Pages whose code runs, and whose names are there; the changelog also names what is gone."""
LINKED = [*EXPLAINED, ROOT / "CHANGELOG.md", ROOT / "data" / "README.md"]
MOST_WORDS = 700


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def shell_lines(pages: list[Path]) -> list[str]:
    return [line for page in pages for block in blocks(page, "sh") for line in block.splitlines()]


COMMANDS = [shlex.split(line, comments=True) for line in shell_lines(EXPLAINED)]
SWEEPS = [command[3:] for command in COMMANDS if command[:3] == ["python", "-m", "fisherdyn.sweep"]]
OTHERS = [command for command in COMMANDS if command[:2] == ["python", "-m"] and command[2] != "fisherdyn.sweep"]


def page_id(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def anchors(page: Path) -> set[str]:
    """Those that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_is_short():
    assert len(README.read_text().split()) <= MOST_WORDS


def test_the_readme_links_to_every_page():
    linked = set(re.findall(r"\]\(([^)]+)\)", README.read_text()))
    assert {page_id(page) for page in PAGES[1:]} <= linked


def test_the_probe_is_ten_lines():
    assert 8 <= len(blocks(README, "python")[0].strip().splitlines()) <= 12


@pytest.mark.parametrize("page", [page for page in EXPLAINED if blocks(page, "python")], ids=page_id)
def test_python_runs(page, tmp_path):
    """The blocks of a page, from top to bottom, in a folder that has the committed sweeps."""
    (tmp_path / "data").symlink_to(ROOT / "data")
    completed = subprocess.run(
        [sys.executable, "-W", "error", "-c", "\n".join(blocks(page, "python"))],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr
    if page == README:
        assert completed.stdout
        assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize("arguments", SWEEPS, ids=" ".join)
def test_sweeps_can_be_planned(arguments, tmp_path, monkeypatch, capsys):
    """They are planned, not run. The study file that a page shows is there."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(blocks(ROOT / "docs" / "studies.md", "yaml")[0])
    plan = [argument for argument in arguments if argument not in ("--status", "--dry-run")]
    assert main([*plan, "--dry-run"]) == 0
    assert re.search(r"\d+ runs, \d+ steps", capsys.readouterr().out)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]


def test_a_python_study_file_can_be_planned(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(blocks(ROOT / "docs" / "studies.md", "python")[0])
    assert main(["mine.py", "--dry-run"]) == 0
    assert "smallest" in capsys.readouterr().out


@pytest.mark.parametrize("command", OTHERS, ids=" ".join)
def test_other_commands_run(command):
    completed = subprocess.run([sys.executable, *command[1:]], capture_output=True, text=True, cwd=ROOT, check=False)
    assert completed.returncode == 0, completed.stderr


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    prose = "\n".join(re.findall(r"`make (\w+)`", "\n".join(page.read_text() for page in LINKED)))
    fenced = [command[1] for command in COMMANDS if command[:1] == ["make"]]
    for target in {*prose.split(), *fenced}:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


@pytest.mark.parametrize("page", LINKED, ids=page_id)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


@pytest.mark.parametrize("page", EXPLAINED, ids=page_id)
def test_names_exist(page):
    """`fisherdyn.fit`, `fisherdyn/policies.py`: what a page names in code is there."""
    text = page.read_text()
    for name in re.findall(r"`(fisherdyn(?:\.\w+)+)", text):
        assert resolves(name), name
    for path in re.findall(r"`((?:fisherdyn|tests|paper_figures|benchmarks|data|docs)/[\w./-]*)`", text):
        assert (ROOT / path).exists(), path
    for module, names in re.findall(r"^ *from (fisherdyn[\w.]*) import ([\w, ]+)", text, flags=re.MULTILINE):
        for name in names.split(","):
            assert resolves(f"{module}.{name.strip()}"), f"{module}.{name.strip()}"


def resolves(name: str) -> bool:
    """Whether a dotted name is a module, or an attribute of one."""
    parts = name.split(".")
    for i in range(len(parts), 0, -1):
        try:
            thing = import_module(".".join(parts[:i]))
        except ModuleNotFoundError:
            continue
        for part in parts[i:]:
            if not hasattr(thing, part):
                return False
            thing = getattr(thing, part)
        return True
    return False


def test_the_tree_is_there():
    tree = README.read_text().split("## The tree")[1]
    inside = re.findall(r"^      ([\w.]+(?:, [\w.]+)*|\w+/)  ", tree, flags=re.MULTILINE)
    assert inside
    for name in ", ".join(inside).split(", "):
        assert (ROOT / "fisherdyn" / name).exists(), name
    for name in re.findall(r"^    (\w+/)", tree, flags=re.MULTILINE):
        assert (ROOT / name).exists(), name


def test_nothing_is_left_to_be_filled_in():
    for page in (*LINKED, ROOT / "LOG.md"):
        assert not re.findall(r"^[A-Z_]{4,}$|@@", page.read_text(), flags=re.MULTILINE), page.name
