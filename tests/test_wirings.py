"""Right, or refused by name: never silently wrong."""

from __future__ import annotations

import copy

import pytest
import torch
from oracle import cast, per_example_trace
from wirings import WIRINGS

from fisherdyn import fisher_trace


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # checkpointing, under no_grad
@pytest.mark.parametrize("method", ["hooks", "vmap"])
@pytest.mark.parametrize("name", WIRINGS)
def test_right_or_refused(name, method):
    wiring = WIRINGS[name]
    torch.manual_seed(0)
    model, x = wiring.make()
    model, x = model.double().eval(), cast(x, torch.float64)
    layers = {parameter: (parameter,) for parameter, _ in model.named_parameters()}
    refusal = getattr(wiring, method)
    if refusal is not None:
        with pytest.raises(ValueError, match=refusal):
            fisher_trace(model, [x], layers=layers, labels="exact", method=method)
        return
    truth = per_example_trace(copy.deepcopy(model), x, layers)
    found = fisher_trace(model, [x], layers=layers, labels="exact", method=method)
    torch.testing.assert_close(found.values, truth, rtol=1e-9, atol=1e-14)
