"""Every family of models that transformers classifies with, and every method of tuning: right, or refused with a remedy
that is right. `make test` runs some, `make test-nightly` the others."""

from __future__ import annotations

import pytest
import transformers
from oracle import per_example_trace
from remedies import follow
from torch import Tensor, nn
from zoo.families import FAMILIES, IN_EVERY_RUN
from zoo.tuned import TUNED

from fisherdyn.layers import find_layers

pytestmark = pytest.mark.filterwarnings("ignore")  # of the models' own


def _some_nightly(specimens: dict, in_every_run: tuple[str, ...]) -> list:
    def marks(name: str) -> list[pytest.MarkDecorator]:
        pending = specimens[name].pending
        nightly = [] if name.startswith(in_every_run) else [pytest.mark.nightly]
        return [*nightly, *([pytest.mark.xfail(strict=True, reason=pending)] if pending else [])]

    return [pytest.param(specimen, id=name, marks=marks(name)) for name, specimen in specimens.items()]


@pytest.mark.parametrize("family", _some_nightly(FAMILIES, IN_EVERY_RUN))
def test_a_family(family):
    if not hasattr(transformers, family.model):
        pytest.skip("this version of transformers does not have it")
    right_or_refused(*family.make(), family.likelihood)


@pytest.mark.parametrize("tuned", _some_nightly(TUNED, ("lora_and", "lora_with", "dora", "ia3", "compacter", "prompt")))
def test_a_method_of_tuning(tuned):
    pytest.importorskip(tuned.library)
    right_or_refused(*tuned.make())


def right_or_refused(model: nn.Module, inputs: dict[str, Tensor], likelihood: str | None = None) -> None:
    """To 1e-5: many compute softmax or norms in float32 whatever they are given."""
    layers = find_layers(model)
    expected = per_example_trace(model, inputs, layers)
    outcome = follow(model, [inputs], layers, expected, likelihood=likelihood, rtol=1e-5)
    assert outcome.kind in ("right", "refused"), outcome


def test_there_are_more_than_120_specimens():
    from zoo import ZOO

    assert len(FAMILIES) + len(TUNED) + len(ZOO) >= 120
