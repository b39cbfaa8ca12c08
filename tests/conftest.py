"""Shapes are checked under pytest: jaxtyping's annotations, by beartype. Weights come from a short pretraining, once."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from jaxtyping import install_import_hook

with install_import_hook(("fisherdyn.likelihoods", "fisherdyn.fisher"), "beartype.beartype"):
    import fisherdyn.fisher.hooks
    import fisherdyn.fisher.rules
    import fisherdyn.likelihoods  # noqa: F401

torch.set_num_threads(1)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
