"""Shapes are checked under pytest: jaxtyping's annotations, by beartype."""

from __future__ import annotations

import os

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
