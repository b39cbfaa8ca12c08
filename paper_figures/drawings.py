"""Figures 1 and 6, which are drawings."""

from __future__ import annotations

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from fisherdyn import plots

OPEN, FROZEN, INK, CHOSEN = plots.COLOURS[0], "0.88", "0.25", plots.COLOURS[1]
TINT = "#BFD9EA"
LAYERS, TIMES = 4, ("0", "k", "2k", "3k")


def fig1() -> Figure:
    """Which task adapters are open at which step, under standard training, gradual unfreezing, and unfreezing by tr(F)."""
    with matplotlib.rc_context(plots.STYLE):
        figure = Figure(figsize=(plots.ACL_PAGE, 1.95), layout="constrained")
        panels = figure.subplots(1, 3, width_ratios=(1, 1, 1.45))
        everything = [set(range(LAYERS))] * len(TIMES)
        top_down = [set(range(LAYERS - 1 - i, LAYERS)) for i in range(len(TIMES))]
        by_trace = [{3}, {3, 1}, {3, 1, 2}, {3, 1, 2, 0}]
        titles = ("a) standard", "b) gradual unfreezing", "c) unfreezing by tr(F)")
        for ax, title, is_open in zip(panels, titles, (everything, top_down, by_trace), strict=True):
            _stack(ax, is_open)
            ax.set_title(title)
        _traces(panels[2])
        panels[0].set_ylabel("layer")
        handles = [Rectangle((0, 0), 1, 1, facecolor=c, edgecolor=INK, linewidth=0.6) for c in (OPEN, FROZEN)]
        figure.legend(
            handles, ["task adapter is trained", "task adapter is frozen"], loc="outside lower center", ncols=2
        )
        return figure


def _stack(ax: Axes, is_open: list[set[int]]) -> None:
    """A column of layers for every k steps; each layer is frozen but for its task adapter, if that is open."""
    for column, opened in enumerate(is_open):
        for layer in range(LAYERS):
            ax.add_patch(_box(column - 0.4, layer - 0.36, 0.8, 0.72, "white"))
            colour = OPEN if layer in opened else FROZEN
            ax.add_patch(_box(column - 0.28, layer - 0.2, 0.56, 0.4, colour))
    ax.set_xlim(-0.6, len(is_open) - 0.4)
    ax.set_ylim(-0.6, LAYERS - 0.4)
    ax.set_xticks(range(len(TIMES)), TIMES, style="italic")
    ax.set_yticks(range(LAYERS), ["0", "1", "2", "L-1"])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set_xlabel("step")


def _traces(ax: Axes) -> None:
    """Draws, beside the stack, tr(F) of the frozen adapters before step k and marks the largest, which opens."""
    heights, chosen, left, right = (0.45, 1.15, 0.7), 1, 4.2, 6.4
    ax.set_xlim(-0.6, right)
    ax.set_xlabel("step", x=(1.5 + 0.6) / (right + 0.6))
    for layer, height in enumerate(heights):
        ax.add_patch(Rectangle((left, layer - 0.22), height, 0.44, facecolor=FROZEN, edgecolor=INK, linewidth=0.6))
    ax.plot([left, left], [-0.45, 2.45], color=INK, linewidth=0.8)
    ax.text(left, 2.62, "tr(F) of the frozen\nadapters before k", fontsize=6.5, va="bottom", color=INK)
    for x, y, width, height in ((left, chosen - 0.22, heights[chosen], 0.44), (1 - 0.28, chosen - 0.2, 0.56, 0.4)):
        ax.add_patch(Rectangle((x, y), width, height, facecolor="none", edgecolor=CHOSEN, linewidth=1.8, zorder=4))
    ax.text(left + heights[chosen] + 0.1, chosen, "largest:\nopens at k", fontsize=6.5, va="center", color=INK)


def fig6() -> Figure:
    """Where MAD-X puts its adapters in a Transformer layer, and what an adapter consists of."""
    with matplotlib.rc_context(plots.STYLE):
        figure = Figure(figsize=(plots.ACL_COLUMN, 3.0), layout="constrained")
        ax = figure.subplots()
        ax.set_xlim(0, 10)
        ax.set_ylim(-0.9, 11.2)
        ax.set_axis_off()
        parts = [
            (0.2, "multi-head attention", FROZEN), (1.9, "add and normalise", "white"), (3.6, "feed-forward", FROZEN),
            (5.3, "language adapter", TINT), (7.0, "task adapter", OPEN), (8.7, "add and normalise", "white"),
        ]  # fmt: skip
        for bottom, name, colour in parts:
            ax.add_patch(_box(0.3, bottom, 4.3, 1.1, colour))
            ax.text(
                2.45,
                bottom + 0.55,
                name,
                ha="center",
                va="center",
                fontsize=7,
                color="white" if colour == OPEN else "0",
            )
        for bottom, _, _ in parts:
            ax.add_patch(_arrow((2.45, bottom - 0.6), (2.45, bottom)))
        ax.add_patch(_arrow((2.45, 9.8), (2.45, 10.6)))
        ax.text(2.45, -0.62, "layer below", ha="center", va="top", fontsize=6.5, color=INK)
        ax.text(2.45, 10.65, "layer above", ha="center", va="bottom", fontsize=6.5, color=INK)
        _adapter(ax)
        return figure


def _adapter(ax: Axes) -> None:
    """Draws the adapter, a bottleneck with a residual connection, to the right of the layer."""
    for left, right in ((8.1, 9.2), (5.3, 2.0)):
        ax.plot([4.6, 5.7], [left, right], color="0.6", linewidth=0.6)
    ax.add_patch(_box(5.7, 2.0, 4.1, 7.2, "white"))
    for bottom, width, name in ((2.9, 3.0, "down"), (4.75, 1.6, "ReLU"), (6.6, 3.0, "up")):
        ax.add_patch(_box(7.45 - width / 2, bottom, width, 1.0, FROZEN if name == "ReLU" else TINT))
        ax.text(7.45, bottom + 0.5, name, ha="center", va="center", fontsize=7)
    for low, high in ((1.4, 2.9), (3.9, 4.75), (5.75, 6.6), (7.6, 9.75)):
        ax.add_patch(_arrow((7.45, low), (7.45, high)))
    ax.text(
        7.45,
        8.35,
        "+",
        ha="center",
        va="center",
        fontsize=8,
        bbox={"boxstyle": "circle,pad=0.12", "fc": "white", "ec": INK},
    )
    ax.plot([7.45, 9.4, 9.4], [2.4, 2.4, 8.35], color=INK, linewidth=0.7)
    ax.add_patch(_arrow((9.4, 8.35), (7.85, 8.35)))
    ax.text(7.45, 9.8, "either adapter", ha="center", va="bottom", fontsize=6.5, color=INK)


def _box(x: float, y: float, width: float, height: float, colour: str) -> FancyBboxPatch:
    style = "round,pad=0,rounding_size=0.12"
    return FancyBboxPatch((x, y), width, height, boxstyle=style, facecolor=colour, edgecolor=INK, linewidth=0.6)


def _arrow(start: tuple[float, float], end: tuple[float, float]) -> FancyArrowPatch:
    return FancyArrowPatch(
        start, end, arrowstyle="-|>", mutation_scale=6, linewidth=0.7, color=INK, shrinkA=0, shrinkB=0
    )
