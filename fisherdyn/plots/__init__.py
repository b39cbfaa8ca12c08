"""Pictures of datasets. Each function takes an Axes and a dataset, draws, and returns the Axes. Nothing here needs torch."""

from __future__ import annotations

from .schedules import averaged_schedules, openings
from .style import ACL_COLUMN, ACL_PAGE, COLOURS, DASHES, STYLE, labels, look, marks, save
from .traces import by_layer, curves, heat_map, learning_period
from .transfer import correlations, figure_4, forest, groups, transfer_by_distance, transfer_groups

__all__ = [
    "by_layer",
    "heat_map",
    "curves",
    "learning_period",
    "openings",
    "averaged_schedules",
    "transfer_by_distance",
    "transfer_groups",
    "groups",
    "forest",
    "correlations",
    "figure_4",
    "labels",
    "look",
    "marks",
    "save",
    "ACL_COLUMN",
    "ACL_PAGE",
    "STYLE",
    "COLOURS",
    "DASHES",
]
