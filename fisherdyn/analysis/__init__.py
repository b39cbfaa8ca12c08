"""From records to numbers: curves of tr(F), their shape, transfer, schedules, and what goes with what.

Everything takes xarray and gives xarray or plain numbers; nothing here needs torch. One question a file: curves and
shape (what did tr(F) do), results (where did it lead), schedules (which layer when), compare (is one better),
correlations and between (what goes with what, between schedules), power (could this study have seen it).
"""

from __future__ import annotations

from .compare import compare, mean_interval, order_effect, over_seeds, paired_difference
from .correlations import correlation, rank_correlation
from .curves import learning_curve, learning_curve_se, per_open_layer, smooth, to_unit
from .interval import Interval, adjusted
from .power import detectable, points_needed, power, seeds_needed
from .results import FINAL, GROUP_WIDTH, by_schedule, groups, result, results, summarise, transfer
from .schedule_correlation import across_schedules, mixed_correlation, reliability, transfer_correlations
from .schedules import averaged_schedule, distance_from_top_down, opening_order
from .shape import area, learning_period, peak, shape, shape_from_errors, width

__all__ = [
    "smooth",
    "per_open_layer",
    "learning_curve",
    "learning_curve_se",
    "to_unit",
    "peak",
    "width",
    "area",
    "learning_period",
    "shape",
    "shape_from_errors",
    "FINAL",
    "GROUP_WIDTH",
    "result",
    "results",
    "transfer",
    "summarise",
    "by_schedule",
    "groups",
    "opening_order",
    "distance_from_top_down",
    "averaged_schedule",
    "Interval",
    "adjusted",
    "mean_interval",
    "over_seeds",
    "paired_difference",
    "compare",
    "order_effect",
    "correlation",
    "rank_correlation",
    "across_schedules",
    "mixed_correlation",
    "reliability",
    "transfer_correlations",
    "power",
    "seeds_needed",
    "detectable",
    "points_needed",
]
