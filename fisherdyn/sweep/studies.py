"""What runs: a study is a list of runs made from data."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from .recipes import Recipe

FIGURE_4: tuple[tuple[int, ...], ...] = (
    (10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0),
    (10, 2, 6, 5, 8, 3, 7, 0, 1, 9, 4),
    (9, 6, 2, 4, 5, 8, 7, 10, 1, 3, 0),
    (9, 7, 0, 10, 5, 8, 2, 4, 1, 3, 6),
    (10, 5, 4, 7, 1, 9, 0, 8, 3, 2, 6),
    (10, 8, 1, 6, 7, 2, 0, 5, 4, 9, 3),
    (10, 4, 7, 5, 3, 0, 6, 2, 9, 8, 1),
    (10, 1, 0, 3, 9, 6, 8, 2, 5, 7, 4),
    (10, 9, 3, 5, 0, 4, 1, 8, 6, 7, 2),
    (10, 7, 0, 3, 4, 8, 1, 2, 6, 5, 9),
)
"""The schedules of the paper's Figure 4: layer 11 is open from the start, then one of these every k steps."""

LAYERS = 12
"""Of the models that Figure 4's schedules are for."""

STANDARD, TOP_DOWN = "standard", "top-down"
METHODS: dict[str, str] = {
    STANDARD: "standard",
    "random": "random",
    TOP_DOWN: "top_down",
    "LPFT": "linear_probing",
    "FUN": "fun",
    "reverse": "bottom_up",
    "full": "standard",
}
"""Row of a table -> its policy. "full" is standard training of every weight."""
LOW_RESOURCE_METHODS, REVERSE_METHODS = (STANDARD, TOP_DOWN, "FUN"), (TOP_DOWN, "reverse")
INTERVAL_METHODS = (TOP_DOWN, "FUN")
INTERVALS = (0.25, 0.5, 1, 1.5)
"""What `interval` tries, of the recipe's k."""


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        schedule: the name of its row.
        order: of opening, for policy "permutation".
        policy: "permutation", or a name in `policies.NAMED`; by default the first where there is an order, else "standard".
        changes: settings and task options that are this run's own.
    """

    schedule: str
    order: tuple[int, ...]
    seed: int
    policy: str = ""
    changes: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.schedule}, seed {self.seed}"


@dataclass(frozen=True)
class Settings:
    """What all runs of a study share, but for their `changes`; equal settings and runs give the same numbers.

    Attributes:
        options: of the task: model, data, tuning, ...
        skipped: targets without a language adapter, said in the record.
        device: that torch trains on.
        fit: further arguments of fit().
    """

    task: str = "world"
    steps: int = 140
    interval: int = 7
    lr: float = 8e-3
    record_every: int = 9
    evaluate_every: int = 35
    options: Mapping[str, Any] = field(default_factory=dict)
    skipped: str = ""
    device: str = "cpu"
    fit: Mapping[str, Any] = field(default_factory=dict)

    def asdict(self) -> dict[str, Any]:
        """Flat and in plain values, as a file's attributes must be."""
        own = asdict(self)
        flat = {**own.pop("options"), **own.pop("fit")}
        return {key: _plain(value) for key, value in {**own, **flat}.items() if value not in ("", None)}

    def of(self, run: Run) -> Settings:
        """The settings of one run."""
        names = {one.name for one in fields(self)}
        own = {key: value for key, value in run.changes.items() if key in names}
        options = {key: value for key, value in run.changes.items() if key not in names}
        return replace(self, **own, options={**self.options, **options})

    def record_steps(self) -> list[int]:
        """The steps at which fit() records."""
        return _every(self.steps, self.record_every, first=0)

    def evaluation_steps(self) -> list[int]:
        """The steps at which fit() evaluates the targets."""
        return _every(self.steps, self.evaluate_every, first=self.evaluate_every)

    def selection_steps(self, layers: int) -> list[int]:
        """The steps at which SELECT may be asked."""
        return list(range(self.interval, min(self.steps, self.interval * layers) + 1, self.interval))


def _plain(value: Any) -> Any:
    """NetCDF knows neither truth values nor lists of texts."""
    if isinstance(value, bool):
        return int(value)
    return ", ".join(value) if isinstance(value, list) else value


def _every(steps: int, interval: int, first: int) -> list[int]:
    return sorted({*range(first, steps, interval), steps})


def parse_order(text: str, layers: int = LAYERS) -> tuple[int, ...]:
    """ "10,9,...,0" -> a permutation of the layers below the top one.

    Raises:
        ValueError: it is not one; the message says what is missing, unknown or there twice.
    """
    try:
        order = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"--order {text}: expected layer numbers separated by commas") from None
    below = range(layers - 1)
    faults = {
        "missing": sorted(set(below) - set(order)),
        "unknown": sorted(set(order) - set(below)),
        "repeated": sorted({layer for layer in order if order.count(layer) > 1}),
    }
    said = "; ".join(f"{fault} {', '.join(map(str, found))}" for fault, found in faults.items() if found)
    if said:
        raise ValueError(
            f"--order {text}: expected each of 0 to {layers - 2} once (layer {layers - 1} is open from the start); {said}"
        )
    return order


def random_orders(n: int, layers: int = LAYERS) -> list[tuple[int, ...]]:
    """n different orders under the rule of the paper's footnote 8: the first layer to open is one of the two below the top.

    They are the first n of one random sequence, the same always; top-down, which the paper adds itself, is not among them.
    """
    draw = random.Random(0)
    below = range(layers - 1)
    found: dict[tuple[int, ...], None] = {}
    while len(found) < n:
        order = tuple(draw.sample(below, layers - 1))
        if order[0] >= layers - 3 and order != tuple(reversed(below)):
            found[order] = None
    return list(found)


def permutations(
    seeds: Sequence[int], schedules: int = 10, orders: Sequence[tuple[int, ...]] = (), drawn: int | None = None
) -> list[Run]:
    """Standard training, the first `schedules` of Figure 4's ten, and orders of one's own, for every seed.

    Runs of one seed share initial weights, data order and label noise: schedules are compared within a seed.

    Args:
        drawn: so many `sampled` orders, and top-down, in the place of Figure 4's.

    Raises:
        ValueError: schedules not in 0..10, no seed, or an order given twice.
    """
    if not 0 <= schedules <= len(FIGURE_4):
        raise ValueError(f"--schedules {schedules}: Figure 4 has {len(FIGURE_4)}; choose 0 to {len(FIGURE_4)}")
    if not seeds:
        raise ValueError("expected at least one seed")
    named: dict[str, tuple[int, ...]] = {STANDARD: ()}
    if drawn is None:
        papers = [(TOP_DOWN if i == 0 else f"figure-4/{i}", order) for i, order in enumerate(FIGURE_4)]
        named.update(papers[:schedules])
    else:
        named[TOP_DOWN] = FIGURE_4[0]
        named.update((f"random-order/{i}", order) for i, order in enumerate(random_orders(drawn), start=1))
    for order in orders:
        if order in named.values():
            raise ValueError(f"--order {','.join(map(str, order))} is there already")
        named["-".join(map(str, order))] = order
    return [Run(name, order, seed) for seed in seeds for name, order in named.items()]


def intervals(recipe: Recipe, seeds: Sequence[int], ks: Sequence[int], given: Mapping[str, Any]) -> list[Run]:
    """Standard training, and GU and FUN with each k, for every seed.

    Args:
        ks: steps between openings; by default `INTERVALS` of the recipe's own.
        given: steps, lr and interval that the user wants instead of the recipe's.
    """
    own = recipe.of(TOP_DOWN, None, given)["interval"]
    ks = ks or sorted({max(1, round(share * own)) for share in INTERVALS})
    rows = {STANDARD: Run(STANDARD, (), 0, METHODS[STANDARD])}
    for method in INTERVAL_METHODS:
        for k in ks:
            name = f"{method}, k = {k}"
            rows[name] = Run(name, (), 0, METHODS[method], {"interval": k})
    return [replace(row, seed=seed) for seed in seeds for row in rows.values()]


def of_recipe(
    recipe: Recipe, seeds: Sequence[int], methods: Iterable[str], given: Mapping[str, Any], base: Mapping[str, Any]
) -> list[Run]:
    """A run for each seed, number of training examples (where the recipe has several) and method.

    Args:
        recipe: the hyperparameters of each row.
        given: steps, lr and interval that the user wants instead.
        base: settings and task options that all runs share; what a row has otherwise becomes its `changes`.
    """
    runs = []
    for seed in seeds:
        for size in recipe.sizes or (base.get("train_examples"),):
            for method in methods:
                own: dict[str, Any] = recipe.of(method, size, given)
                own |= {} if size is None else {"train_examples": size}
                own |= {"tuning": "full"} if method == "full" else {}
                changes = {key: value for key, value in own.items() if base.get(key) != value}
                runs.append(Run(method, (), seed, METHODS[method], changes))
    return runs
