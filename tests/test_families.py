"""Every family of models that transformers classifies with, and every method of tuning: right, or refused with a remedy
that is right."""

from __future__ import annotations

import pytest
import transformers
from oracle import per_example_trace
from remedies import follow
from torch import Tensor, nn
from zoo.families import FAMILIES
from zoo.tuned import TUNED

from fisherdyn.layers import find_layers

pytestmark = pytest.mark.filterwarnings("ignore")  # of the models' own


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family(name):
    family = FAMILIES[name]
    if not hasattr(transformers, family.model):
        pytest.skip("this version of transformers does not have it")
    right_or_refused(*family.make(), family.likelihood)


@pytest.mark.parametrize("name", TUNED)
def test_a_method_of_tuning(name):
    pytest.importorskip(TUNED[name].library)
    right_or_refused(*TUNED[name].make())


def right_or_refused(model: nn.Module, inputs: dict[str, Tensor], likelihood: str | None = None) -> None:
    """To 1e-5: many compute softmax or norms in float32 whatever they are given."""
    layers = find_layers(model)
    expected = per_example_trace(model, inputs, layers)
    outcome = follow(model, [inputs], layers, expected, likelihood=likelihood, rtol=1e-5)
    assert outcome.kind in ("right", "refused"), outcome


def test_there_are_more_than_120_specimens():
    from zoo import ZOO

    assert len(FAMILIES) + len(TUNED) + len(ZOO) >= 120
