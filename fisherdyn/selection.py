"""FUN's measurement: tr(F) of the frozen layers, sampled until further batches would hardly change the choice.

Paired comparisons of layers on the same examples answer two questions. *Is the best layer really the best?* If not, the
choice is a tie. *Would the rest of the budget change the choice?* If that is unlikely, and if the rest would not break a
tie either, it is not read. Both questions are asked several times while the sample grows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any, cast

import numpy as np
import torch
from scipy import stats
from scipy.optimize import brentq
from torch import nn
from torch.utils.data import DataLoader, Dataset, RandomSampler

from .fisher.batches import Batch, length_of
from .fisher.check import CheckName
from .fisher.distributed import processes, rank_generator, shard
from .fisher.running_mean import RunningMean
from .fisher.trace import LabelName, fisher_trace
from .labels import LabelMode
from .layers import Layers
from .likelihoods import Likelihood
from .policies import Scoring

FEWEST_EXAMPLES = 64
"""Fewest examples to conclude anything from: with fewer, Student's t is too rough for values with such heavy tails."""
HIGHEST = 8.0
"""Leads are capped at this many standard errors."""
GROWTH = 1.25
"""Ratio of the examples at one look to those at the look before."""
NODES = 128
"""Quadrature nodes of the integrals in `stays_within`."""
WORTH_READING = 0.6
"""A settled choice is read on for only if the rest of the budget establishes it with at least this probability."""


@dataclass(frozen=True)
class Selection:
    """What was known when SELECT was asked.

    Attributes:
        step: the optimizer updates made by then.
        scores: candidate -> (tr(F), standard error).
        examples, batches: how many were measured.
        confidence: that the best candidate's tr(F) is the largest: one minus the p-value of its smallest lead, over all
            looks; 1 where there was no other candidate, nan where the method sees no single example ("authors").
        tie: whether that falls short of one minus the error rate.
    """

    step: int
    scores: dict[str, tuple[float, float]]
    examples: int
    batches: int
    confidence: float
    tie: bool


def choose(
    model: nn.Module,
    loader: Iterable[Batch],
    candidates: Layers,
    scoring: Scoring,
    *,
    step: int,
    generator: torch.Generator,
    labels: LabelName | LabelMode = "rademacher",
    likelihood: Likelihood | str | None = None,
    check: CheckName = "first",
) -> Selection:
    """Measures the candidates on up to `scoring.batches` batches.

    From 64 examples on, whenever the sample has grown by a quarter, the best candidate's leads over all others are tested:

    - it is *established* where the smallest, in standard errors, is beyond Pocock's two-sided constant, which holds for all
      the looks together; counted with one more example that is as far against the best as the farthest seen (in a confident
      model tr(F) has heavy tails, and the plain t-test more than twice its nominal error);
    - the choice is *settled* where the predictive probabilities that another one leads after the whole budget add up to at
      most `error_rate`. From n of N examples, with no opinion in advance, the lead after N is Student's t about the lead so
      far, of scale s √(1/n - 1/N). It is right on average over leads of all sizes, not for each: of choices that the whole
      budget would make by a hair, more are changed, and they matter as little.

    It stops when the best is established, or when the choice is settled and the predictive probability that the rest of the
    budget establishes it is below .6 (of the guarded lead, as if it went on as Brownian motion: with light tails more are
    established, with heavy ones fewer). What is not established is a tie. The winner is compared with every other candidate
    at the level for one (Gutmann & Maymin 1987, Hung & Fithian 2019): of several equal ones, only one can lead all. Where
    less than about one example in ten holds all of a layer's tr(F), no test of means keeps its level: two equal layers, one
    of them so, are told apart in 4 % of draws at one in ten, 13 % at one in twenty, half at one in a hundred. Of pairs made
    equal on the embedded world it tells apart 2 and 5 % (learning rates 2e-3 and 8e-3; `benchmarks/fun.json`).

    Args:
        model, loader, generator, labels, likelihood: as for `fisher_trace`; the loader is left where it was, so a loader
            that shuffles by a generator of its own gives what it would have given next. If it has no length and ends
            early, the budget was taken for larger than it was. In several processes each is given the whole loader, or its
            own part of it (DistributedSampler), and a generator in the same state as the others'; each measures its share.
        candidates: at least one; a lone one is not measured.

    Cost: of `fisher_trace` over the batches read; on the embedded world a third (lr 2e-3) to two fifths (8e-3) of them.

    Raises:
        ValueError: as `fisher_trace`; a loader that can be read only once, or whose reading would restart the one that
            training reads.

    Source: Liu et al. 2023, section 6.1 (40 batches); Pocock 1977, Armitage, McPherson & Rowe 1969 (repeated tests);
    Spiegelhalter, Freedman & Blackburn 1986 (predictive probabilities).
    """
    if len(candidates) == 1:
        return Selection(step, dict.fromkeys(candidates, (math.nan, math.nan)), 0, 0, 1.0, tie=False)
    require_shareable(loader)
    mine, budget = shard(loader, scoring.batches), scoring.batches
    if (batches := length_of(loader)) is not None:
        budget = min(budget, max(batches, 1) * (processes() if mine is loader else 1))
    rule = Rule(budget, scoring.error_rate)
    by_example = scoring.method != "authors"
    try:
        trace = fisher_trace(
            model,
            mine,
            layers=candidates,
            likelihood=likelihood,
            labels=cast(LabelName | LabelMode | None, scoring.labels) or labels,
            method=scoring.method,
            num_batches=math.ceil(budget / processes()),
            enough=rule.enough if by_example and scoring.error_rate else None,
            generator=rank_generator(generator),
            check=check,
        )
    except ValueError as error:
        raise ValueError(f"tr(F) at step {step}: {error}") from error
    confidence = rule.confidence(trace.values.numpy()) if by_example else math.nan
    tie = confidence < 1 - scoring.error_rate
    return Selection(step, trace.scores(), trace.examples, trace.batches, confidence, tie)


class Rule:
    """When to stop, and how certain the choice is then.

    Args:
        budget: batches, of all processes.
        error_rate: see `choose`.
    """

    def __init__(self, budget: int, error_rate: float) -> None:
        self.budget, self.error_rate = budget, error_rate
        self.looks = [budget]
        self.next_look: int | None = None

    def enough(self, read: RunningMean) -> bool:
        """Whether to stop, asked at every look: the lead is established, or it is settled and unlikely to be established."""
        if self.next_look is None:
            self.looks = _looks(self.budget, read.examples / read.batches)
            self.next_look = self.looks[0]
        if not self.next_look <= read.batches < self.budget or read.examples < FEWEST_EXAMPLES:
            return False
        self.next_look = next(look for look in self.looks if look > read.batches)
        values, part = read.values.numpy(), read.batches / self.budget
        lead, needed = _smallest_lead(values), _pocock(tuple(self.looks), self.error_rate)
        settled = _changes(values, part) <= self.error_rate
        return lead >= needed or (settled and _establishes(lead, needed, part) < WORTH_READING)

    def confidence(self, values: np.ndarray) -> float:
        """The confidence that the best candidate's expectation is the largest; 0 if there are too few examples."""
        return stays_within(_smallest_lead(values), self.looks) if len(values) >= FEWEST_EXAMPLES else 0.0


def _looks(budget: int, examples: float) -> list[int]:
    """The numbers of batches at which to look, given the examples per batch: a geometric series, and the end."""
    looks, look = [], math.ceil(FEWEST_EXAMPLES / examples)
    while look * (1 + GROWTH) / 2 < budget:  # a look close to the end would add nothing
        looks.append(look)
        look = math.ceil(look * GROWTH)
    return [*looks, budget]


def _changes(values: np.ndarray, part: float) -> float:
    """The predictive probability that the best candidate after this part of the budget is not the best after all of it."""
    return float(stats.t.sf(_leads(values) / math.sqrt(1 - part), len(values) - 1).sum())


def _establishes(lead: float, needed: float, part: float) -> float:
    """The predictive probability that the lead, in standard errors, is beyond `needed` once the budget is read."""
    return float(stats.norm.sf((needed * math.sqrt(part) - lead) / math.sqrt(1 - part)))


@cache
def _pocock(times: tuple[int, ...], error_rate: float) -> float:
    """The bound that Brownian motion exceeds at one of these times, or more, with probability `error_rate`."""
    if 1 - stays_within(HIGHEST, times) >= error_rate:
        return HIGHEST
    return brentq(lambda bound: stays_within(bound, times) - 1 + error_rate, 0.0, HIGHEST)


def _smallest_lead(values: np.ndarray) -> float:
    """The smallest guarded lead, as the standard normal quantile of the same tail probability as its t; capped."""
    t = _leads(values, guarded=True).min()
    return float(np.clip(stats.norm.isf(stats.t.sf(t, len(values) - 1)), 0.0, HIGHEST))


def _leads(values: np.ndarray, *, guarded: bool = False) -> np.ndarray:
    """The paired t statistics of the best column against each other column; of exact equals the highest is the best."""
    best = values.shape[1] - 1 - int(np.argmax(values.mean(axis=0)[::-1]))
    ahead = values[:, [best]] - np.delete(values, best, axis=1)
    if guarded:
        ahead = np.concatenate([ahead, -np.abs(ahead).max(axis=0, keepdims=True)])
    mean, sd = ahead.mean(axis=0), ahead.std(axis=0, ddof=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(mean == 0, 0.0, math.sqrt(len(ahead)) * mean / sd)


def stays_within(bound: float, times: Sequence[int]) -> float:
    """P(|W(s)| < bound √s at every time s) for Brownian motion W, the limit of a sum of independent terms.

    The density of the paths that stayed within the bound is integrated from each time to the next (Armitage, McPherson &
    Rowe 1969). The result is exact to 1e-10 for times that grow by a twentieth or more.
    """
    nodes, weights = _gauss_legendre()
    z, weights = bound * nodes, bound * weights
    density = _normal_density(z)
    for before, now in pairwise(times):
        # In units of √s, W moves from x √(before/now) by a normal step of variance 1 - before/now.
        width = math.sqrt(1 - before / now)
        step = _normal_density((z[:, None] - z[None, :] * math.sqrt(before / now)) / width) / width
        density = step @ (weights * density)
    return min(float(weights @ density), 1.0)


@cache
def _gauss_legendre() -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights on [-1, 1]. To find them takes longer than all the integrals of a choice."""
    return np.polynomial.legendre.leggauss(NODES)


def _normal_density(z: np.ndarray) -> np.ndarray:
    return np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)


def require_shareable(loader: Iterable[Batch]) -> None:
    """Refuses a loader that training and selections cannot both read."""
    if isinstance(loader, Iterator):
        raise ValueError("expected a loader that can be read again and again, got an iterator: pass the loader itself")
    if getattr(loader, "persistent_workers", False) and getattr(loader, "num_workers", 0):
        raise ValueError(
            "a DataLoader with persistent_workers starts again wherever it is read: give the selections a loader of "
            "their own (selection_loader= of fit's Measurement, loader= of attach and of the callbacks)"
        )


def reshuffled(dataloader: Any, batch: int | None, seed: int) -> DataLoader:
    """A trainer's data in an order of its own: reading the trainer's own loader would change the order of training.

    Args:
        dataloader: a DataLoader over a data set with indices.
        batch: examples per batch; None: as many as in the trainer's loader.
        seed: of the order, which is the same at every reading.

    Raises:
        ValueError: a data set without indices.
    """
    data = getattr(dataloader, "dataset", None)
    if not hasattr(data, "__getitem__") or not isinstance(data, Sized):
        raise ValueError("selections need a training set that can be read in another order: pass loader=")
    sampler = RandomSampler(data, generator=torch.Generator().manual_seed(seed))
    size = batch or dataloader.batch_size or getattr(dataloader.batch_sampler, "batch_size", None) or 1
    return DataLoader(cast(Dataset, data), batch_size=size, sampler=sampler, collate_fn=dataloader.collate_fn)
