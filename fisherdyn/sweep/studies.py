"""The project's studies: each is an entry at the end of this file, a list of rows. A file of your own makes another one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from .. import policies
from ..policies import Policy
from .engine import Train
from .execute import execute
from .options import IntervalOptions, Options, PermutationOptions
from .orders import FIGURE_4, parse_order, random_orders
from .recipes import LOW_RESOURCE, MAIN, Recipe
from .runs import Row, Run, Settings

STANDARD = Row("standard", "standard")
RANDOM = Row("random", "random")
TOP_DOWN = Row("top-down", "top_down")
LPFT = Row("LPFT", "linear_probing")
FUN = Row("FUN", "fun")
REVERSE = Row("reverse", "bottom_up")
FULL = Row("full", "full", changes={"tuning": "full"})


@dataclass(frozen=True)
class Study:
    """Rows that are trained alike, with every seed.

    Runs of one seed share initial weights, data order and label noise: schedules are compared within a seed.

    Attributes:
        name: of its command and its files.
        about: what its rows are, in a line.
        rows: its schedules.
        recipe: MAIN or LOW_RESOURCE: which recipe of the task it is trained with.
        policies: those that a row may name, by id.
        defaults: options that come before those of the command line.
        train: how a run is trained.
        trained_by: what identifies that; "" for `execute`.
        on_tasks: whether runs are trained on tasks of `fisherdyn.tasks`.
        file: path of the file that it is from.
    """

    name: str
    about: str
    rows: tuple[Row, ...] = ()
    recipe: str = MAIN
    policies: Mapping[str, Policy] = field(default_factory=lambda: policies.NAMED)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    train: Train = execute
    trained_by: str = ""
    on_tasks: bool = True
    file: str = ""

    options: ClassVar[type[Options]] = Options
    """What its command takes."""

    def runs(self, options: Options, recipe: Recipe, shared: Settings) -> list[Run]:
        """Every row, for every seed.

        Args:
            recipe: the hyperparameters.
            shared: settings that rows have unless they change them.
        """
        rows = list(self.make_rows(options, recipe, shared))
        seeds = range(options.first_seed, options.first_seed + options.seeds)
        return [row.run(seed, self.policies) for seed in seeds for row in rows]

    def make_rows(self, options: Options, recipe: Recipe, shared: Settings) -> Iterator[Row]:
        yield from self.rows


class Comparison(Study):
    """Rows each trained by its own recipe, at each number of training examples where the recipe has several."""

    def make_rows(self, options: Options, recipe: Recipe, shared: Settings) -> Iterator[Row]:
        common = {**shared.options, **vars(shared)}
        for size in recipe.sizes or (options.train_examples,):
            for row in self.rows:
                settings = {**recipe.of(row.policy, size, options), "train_examples": size, **row.changes}
                changes = {key: value for key, value in settings.items() if common.get(key) != value}
                yield Row(row.schedule, row.policy, row.order, changes)


class Permutations(Study):
    """Standard training, top-down and orders: Figure 4's, or random ones, and orders of the user's own."""

    options = PermutationOptions

    def make_rows(self, options: Options, recipe: Recipe, shared: Settings) -> Iterator[Row]:
        assert isinstance(options, PermutationOptions)
        rows = self._rows(options)
        known = {FIGURE_4[0]} if TOP_DOWN in rows else set()
        known |= {row.order for row in rows}
        for text in options.order:
            order = parse_order(text)
            if order in known:
                raise ValueError(f"order {text} is there already")
            known.add(order)
            rows.append(Row("-".join(map(str, order)), "permutation", order))
        yield from rows

    def _rows(self, options: PermutationOptions) -> list[Row]:
        if options.random_orders is not None:
            orders = random_orders(options.random_orders)
            drawn = [Row(f"random-order/{i}", "permutation", order) for i, order in enumerate(orders, start=1)]
            return [STANDARD, TOP_DOWN, *drawn]
        schedules = len(FIGURE_4) if options.schedules is None else options.schedules
        if schedules > len(FIGURE_4):
            raise ValueError(f"schedules {schedules}: Figure 4 has {len(FIGURE_4)}; choose 0 to {len(FIGURE_4)}")
        return list(self.rows[: 1 + schedules])


class Intervals(Study):
    """Every row that opens layers step by step, with several k."""

    options = IntervalOptions

    SHARES: ClassVar[Sequence[float]] = (0.25, 0.5, 1, 1.5)
    """What is tried, of the recipe's k."""

    def make_rows(self, options: Options, recipe: Recipe, shared: Settings) -> Iterator[Row]:
        assert isinstance(options, IntervalOptions)
        intervals = options.intervals or sorted({max(1, round(part * shared.interval)) for part in self.SHARES})
        for row in self.rows:
            if row == STANDARD:
                yield row
                continue
            for k in intervals:
                yield Row(f"{row.schedule}, k = {k}", row.policy, changes={"interval": k})


_STUDIES: tuple[Study, ...] = (
    Permutations(
        "permutations",
        "standard training and the ten schedules of the paper's Figure 4",
        (
            STANDARD,
            TOP_DOWN,
            *(Row(f"figure-4/{i}", "permutation", order) for i, order in enumerate(FIGURE_4) if i > 0),
        ),
    ),
    Comparison(
        "compare",
        "the rows of Table 2: standard, random, GU, LPFT, FUN, reverse, full fine-tuning",
        (STANDARD, RANDOM, TOP_DOWN, LPFT, FUN, REVERSE, FULL),
    ),
    Comparison(
        "low-resource",
        "the rows of Tables 1 and 12: standard, GU and FUN with few training examples",
        (STANDARD, TOP_DOWN, FUN),
        recipe=LOW_RESOURCE,
    ),
    Comparison("reverse", "the rows of Table 11: GU, and from the bottom up", (TOP_DOWN, REVERSE)),
    Intervals("interval", "standard training, and GU and FUN with several k", (STANDARD, TOP_DOWN, FUN)),
)
STUDIES = {study.name: study for study in _STUDIES}
"""The project's own studies, by name."""
