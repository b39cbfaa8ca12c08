"""Shapes are checked under pytest: jaxtyping's annotations, by beartype."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from jaxtyping import install_import_hook

# Not the front door: beartype draws from Python's `random` to choose what it checks, and a test asserts that we do not.
CHECKED = ("fisherdyn.likelihoods", "fisherdyn.fisher.hooks", "fisherdyn.fisher.rules", "fisherdyn.fisher.vmap")
with install_import_hook(CHECKED, "beartype.beartype"):
    import fisherdyn.fisher.trace  # noqa: F401

torch.set_num_threads(1)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the hub would give, tiny: folders xlmr and mbert, each with model and adapters, and data."""
    import tiny

    folder = tmp_path_factory.mktemp("hub")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tiny.make_xlmr(folder / "xlmr", tiny.ADAPTERS)
        tiny.make_mbert(folder / "mbert", tiny.ADAPTERS)
    tiny.make_data(folder / "data")
    return folder
