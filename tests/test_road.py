"""The road of a batch: few files, in one direction."""

from __future__ import annotations

import sys
from pathlib import Path

from zoo import specimen

import fisherdyn

HOME = Path(fisherdyn.__file__).parent


class Traced:
    """A loader that notes which files of fisherdyn run between its second batch and the third one."""

    def __init__(self, batch):
        self.batch, self.files = batch, set()

    def __iter__(self):
        yield self.batch
        sys.setprofile(self._note)
        try:
            yield self.batch
        finally:
            sys.setprofile(None)

    def _note(self, frame, event, argument):
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(HOME):
            self.files.add(path.relative_to(HOME).as_posix())


def test_a_batch_meets_few_files(monkeypatch):
    """From the loader to its examples' norms.

    The first batch of a measurement is also run by plain autograd, and a module without a rule by `replay`. `running_mean`
    takes the norms, not the batch.
    """
    monkeypatch.setattr("fisherdyn.fisher.batches.JOINED_WORK", 0)
    it = specimen("bert")
    loader = Traced(it.inputs)
    fisherdyn.probe(it.model, loader, layers=it.layers)
    road = {f"fisher/{name}.py" for name in ("trace", "batches", "hooks", "capture", "rules", "check")}
    road |= {"labels.py", "likelihoods.py", "outputs.py"}
    assert loader.files - {"fisher/running_mean.py"} == road
