"""Draws the report's charts: confusion matrix, curves, accuracy bars. Each function returns a matplotlib figure outside of pyplot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from vtlvlm.report.runs import Confusion, Curve
from vtlvlm.report.style import COLOURS, FAINT, INK, MUTED, house_style, label, new_figure
from vtlvlm.report.tables import ResultRow

MANY_CLASSES = 24
"""With more classes, a confusion matrix shows no numbers and marks its most confused pairs."""
LABELLED_CLASSES = 120
"""With more classes, a confusion matrix stops growing. It names at most this many classes."""
LONGEST = 52
"""Characters of a class name, at most"""
DRAWN_CELLS = 600
"""With more classes, each cell stands for a block of classes, because single cells would be too small."""


@dataclass(frozen=True)
class Panel:
    """One chart of learning curves."""

    title: str
    curves: Sequence[Curve]
    names: Sequence[str]
    """names in the legend"""
    unit: str = ""
    """label of the vertical axis"""
    share: bool = False
    """values are shares in [0, 1]"""


def confusion_figure(confusion: Confusion, title: str = "Confusion matrix", worst: int = 8) -> Figure:
    """Draw a confusion matrix; colour = share of the true class's clips.

    The figure grows with the number of classes up to ``LABELLED_CLASSES``. Above, it names every second, third, ... class. Above
    ``DRAWN_CELLS``, a cell stands for a block of classes and shows the largest share of the block. Up to ``MANY_CLASSES``, every non-zero
    count is printed. Above, only the ``worst`` confused pairs are marked, and named beside the matrix.

    Args:
        confusion: Counts (A, A) and class names.
        title: Heading.
        worst: Number of pairs to name, largest count first.
    """
    counts, classes = confusion.matrix, confusion.classes
    num = len(classes)
    small, huge = num <= MANY_CLASSES, num > LABELLED_CLASSES
    block = -(-num // DRAWN_CELLS)
    share = shares(counts, block)
    pairs = most_confused(confusion, worst)
    with house_style():
        side = 0.46 * num if small else 0.155 * min(num, LABELLED_CLASSES)
        size = 8.5 if small else 6.0
        named = range(0, num, -(-num // LABELLED_CLASSES))
        names = [label(classes[row], LONGEST) for row in named]
        wide = max(0.0, 0.01 * size * max(map(len, names), default=0) - 1.2)  # extra inches for long names
        figure = new_figure(max(4.0, side + 1.6) + (0.0 if small else 3.6) + wide, max(3.4, side + 1.6) + (0.7 if small else 1.0) * wide)
        axes = figure.subplots()
        image = axes.imshow(
            share,
            interpolation="nearest" if huge else None,
            cmap="Blues",
            norm=PowerNorm(1.0 if small else 0.5, vmin=0, vmax=1),
            extent=(-0.5, num - 0.5, num - 0.5, -0.5),
        )
        slant: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if small else {"rotation": 90, "ha": "center"}
        axes.set_xticks(named, names, **slant)
        axes.set_yticks(named, names)
        axes.tick_params(length=2 if huge else 0, labelsize=size)
        some = f" (one of {named.step} named)" if huge else ""
        axes.set(xlabel=f"recognised as{some}", ylabel=f"true action{some}")
        axes.set_title(label(title, 100))
        for spine in axes.spines.values():
            spine.set_visible(False)
        if not huge:
            edges = np.arange(num + 1) - 0.5  # lines are drawn faster than a grid of minor ticks
            white: dict[str, Any] = {"color": "white", "linewidth": 1.2 if small else 0.3, "zorder": 1.5}
            axes.hlines(edges, -0.5, num - 0.5, **white)
            axes.vlines(edges, -0.5, num - 0.5, **white)
        if small:
            for row, column in np.argwhere(counts > 0):
                dark = share[row, column] > 0.55
                axes.text(column, row, f"{counts[row, column]:d}", ha="center", va="center", fontsize=8.5, color="white" if dark else INK)
        else:
            reach = max(0.7, 0.006 * num)
            for row, column, _ in pairs:
                corner = (column - reach, row - reach)
                axes.add_patch(Rectangle(corner, 2 * reach, 2 * reach, fill=False, edgecolor=COLOURS[1], linewidth=1.1))
            lines = [f"{count} x  {label(classes[row])}\n       as {label(classes[column])}" for row, column, count in pairs]
            heading = "Most confused (marked)\n\n" if lines else "Nothing confused"
            axes.text(1.02, 1.0, heading + "\n\n".join(lines), transform=axes.transAxes, va="top", fontsize=8)
        bar = figure.colorbar(
            image, ax=axes, location="bottom", shrink=0.5 if small else 0.2, aspect=36, pad=0.02, label="share of the true action's clips"
        )
        bar.outline.set_visible(False)
    return figure


def shares(counts: np.ndarray, block: int = 1) -> np.ndarray:
    """Counts (A, A) -> shares of each row's clips (B, B), float32, with B = A / ``block`` rounded up. A cell is the largest of its
    block."""
    num = len(counts)
    starts = range(0, num, block)
    pooled = np.zeros((len(starts), len(starts)), dtype=np.float32)
    for place, start in enumerate(starts):
        rows = counts[start : start + block]
        share = (rows / np.maximum(rows.sum(1, keepdims=True), 1)).max(0)
        pooled[place] = np.maximum.reduceat(share, np.fromiter(starts, dtype=np.int64)) if block > 1 else share
    return pooled


def most_confused(confusion: Confusion, number: int) -> list[tuple[int, int, int]]:
    """The largest non-zero off-diagonal entries as (true row, recognised column, count), largest first."""
    rows, columns = np.nonzero(confusion.matrix)
    wrong = rows != columns
    rows, columns = rows[wrong], columns[wrong]
    counts = confusion.matrix[rows, columns]
    order = np.argsort(-counts, kind="stable")[:number]
    return [(int(rows[i]), int(columns[i]), int(counts[i])) for i in order]


def learning_curves(panels: Sequence[Panel]) -> Figure:
    """Draw curves over optimiser steps, up to three panels in a row.

    A curve of more than 60 points is drawn twice: faintly as logged, and boldly as its running mean.
    """
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    with house_style():
        figure = new_figure(4.0 * columns, 2.8 * rows)
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes, panel in zip(grid.flat, panels, strict=False):
            for number, (curve, name) in enumerate(zip(panel.curves, panel.names, strict=True)):
                colour = COLOURS[number % len(COLOURS)]
                many = len(curve.steps) > 60
                few = "o" if len(curve.steps) <= 12 else None
                if many:
                    axes.plot(curve.steps, curve.values, color=colour, linewidth=0.7, alpha=0.35)
                values = running_mean(curve.values) if many else curve.values
                axes.plot(curve.steps, values, color=colour, linewidth=1.7, marker=few, markersize=3.5, label=label(name))
            if panel.share:
                axes.set_ylim(0, 1.02)
            axes.set(xlabel="step", ylabel=panel.unit)
            axes.set_title(label(panel.title, 60))
            axes.grid(axis="y")
            axes.margins(x=0.02)
            if panel.curves:
                axes.legend(loc="best")
        for axes in grid.flat[len(panels) :]:
            axes.set_visible(False)
    return figure


def running_mean(values: np.ndarray, window: int | None = None) -> np.ndarray:
    """Centred running mean (n,) -> (n,). The window is shorter at both ends; its default is a twentieth of the points, at least 5."""
    half = (window or max(5, len(values) // 20)) // 2
    total = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    low = np.maximum(np.arange(len(values)) - half, 0)
    high = np.minimum(np.arange(len(values)) + half + 1, len(values))
    return (total[high] - total[low]) / (high - low)


def accuracy_bars(rows: Sequence[ResultRow], chance: float) -> Figure:
    """Draw top-1 of each row as a bar with its 95 % interval (Wilson), top-5 as a ring, and chance as a dashed line.

    Args:
        rows: Rows in the order of the table. Rows marked ``ours`` are coloured.
        chance: Accuracy of a random guess, in [0, 1].
    """
    with house_style():
        figure = new_figure(7.6, 0.9 + 0.42 * len(rows))
        axes = figure.subplots()
        places = np.arange(len(rows))[::-1]
        for place, row in zip(places, rows, strict=True):
            axes.barh(place, row.top1, height=0.62, color=COLOURS[0] if row.ours else "#aab4c0", zorder=2)
            if row.num_clips:
                axes.plot(
                    wilson_interval(row.top1, row.num_clips), [place, place], color=INK, linewidth=1.2, solid_capstyle="butt", zorder=3
                )
            axes.text(1.04, place, f"{row.top1:.3f}", va="center", fontsize=9, fontweight="bold" if row.ours else "normal")
            if row.top5 is not None:
                axes.plot(row.top5, place, marker="o", markersize=6, markerfacecolor="white", markeredgecolor=COLOURS[1], zorder=4)
        axes.plot([chance, chance], [-0.6, len(rows) - 0.5], color=MUTED, linestyle=(0, (4, 3)), linewidth=1.1, zorder=2.5)
        axes.text(chance, len(rows) - 0.46, "chance", ha="center", va="bottom", fontsize=8, color=MUTED)
        axes.text(1.04, len(rows) - 0.46, "top-1", va="bottom", fontsize=8, color=MUTED)
        axes.set_yticks(places, [label(row.name, 60) for row in rows])
        axes.tick_params(axis="y", length=0)
        axes.set_xlim(0, 1.13)
        axes.set_xticks(np.linspace(0, 1, 6))
        axes.set_ylim(-0.6, len(rows) - 0.05)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x", zorder=0)
        axes.set_axisbelow(True)
        axes.set_xlabel("top-1 accuracy (bar, with 95 % interval) and top-5 (ring)")
        axes.spines["bottom"].set_color(FAINT)
    return figure


def wilson_interval(share: float, number: int) -> tuple[float, float]:
    """The 95 % confidence interval of a share of ``number`` independent trials (Wilson 1927), within [0, 1]."""
    from scipy.stats import binomtest  # takes a second

    found = binomtest(round(share * number), number).proportion_ci(0.95, method="wilson")
    return float(found.low), float(found.high)
