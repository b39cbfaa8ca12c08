"""From records to numbers: curves of tr(F) and their shape, results, schedules, comparisons, correlations and power.

Every function takes xarray objects or numbers and returns xarray objects or numbers; nothing here needs torch. Each file
answers one question:

    curves, shape                       what did tr(F) do?
    results                             how well did each run transfer?
    schedules                           which layer opened when?
    intervals, compare                  is one schedule better than another?
    correlations, schedule_correlation  what goes with what, between schedules?
    power                               could this study have seen it?
"""

from __future__ import annotations

from .compare import compare, order_effect, paired_difference
from .correlations import correlation, partial_correlation
from .curves import learning_curve, learning_curve_se, smooth, to_unit
from .intervals import Interval, adjusted, mean_interval, over_seeds, trace_interval
from .power import detectable, points_needed, power, seeds_needed
from .results import by_schedule, groups, result, results, summarise, transfer, tuned
from .schedule_correlation import (
    across_schedules,
    mixed_correlation,
    partial_across_schedules,
    reliability,
    transfer_correlations,
)
from .schedules import averaged_schedule, distance_from_top_down, opening_order
from .shape import area, learning_period, peak, shape, shape_from_errors, width

__all__ = [
    "smooth",
    "learning_curve",
    "learning_curve_se",
    "to_unit",
    "peak",
    "width",
    "area",
    "learning_period",
    "shape",
    "shape_from_errors",
    "result",
    "results",
    "transfer",
    "tuned",
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
    "trace_interval",
    "paired_difference",
    "compare",
    "order_effect",
    "correlation",
    "partial_correlation",
    "across_schedules",
    "partial_across_schedules",
    "mixed_correlation",
    "reliability",
    "transfer_correlations",
    "power",
    "seeds_needed",
    "detectable",
    "points_needed",
]
