"""Every family of models that transformers classifies with: right, or refused with a remedy that is."""

from __future__ import annotations

import pytest
import transformers
from oracle import per_example_trace
from remedies import follow
from zoo.families import FAMILIES, IN_EVERY_RUN, Family

from fisherdyn.layers import find_layers


def _marks(family: Family) -> list[pytest.MarkDecorator]:
    marks = [] if family.model.startswith(IN_EVERY_RUN) else [pytest.mark.nightly]
    if family.pending:
        marks.append(pytest.mark.xfail(strict=True, reason=family.pending))
    return marks


@pytest.mark.parametrize("family", [pytest.param(f, id=name, marks=_marks(f)) for name, f in FAMILIES.items()])
@pytest.mark.filterwarnings("ignore")  # of the models' own
def test_right_or_refused_with_a_remedy(family):
    """To 1e-5: many compute softmax or norms in float32 whatever they are given."""
    if not hasattr(transformers, family.model):
        pytest.skip("this version of transformers does not have it")
    model, inputs = family.make()
    layers = find_layers(model)
    expected = per_example_trace(model, inputs, layers)
    outcome = follow(model, [inputs], layers, expected, likelihood=family.likelihood, rtol=1e-5)
    assert outcome.kind in ("right", "refused"), outcome
