"""The report's charts: confusion matrix, curves, accuracy bars. Each function returns a free-standing matplotlib figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from vtlvlm.report.runs import Confusion, Curve
from vtlvlm.report.style import COLOURS, FAINT, INK, MUTED, house_style, new_figure
from vtlvlm.report.tables import ResultRow

MANY_CLASSES = 24
"""From here on a confusion matrix shows numbers only in its most confused pairs."""


@dataclass(frozen=True)
class Panel:
    """One chart of learning curves."""

    title: str
    curves: Sequence[Curve]
    names: Sequence[str]
    """what the legend calls them"""
    unit: str = ""
    """label of the vertical axis"""
    share: bool = False
    """values are shares in [0, 1]"""


def confusion_figure(confusion: Confusion, title: str = "Confusion matrix", worst: int = 8) -> Figure:
    """Draw a confusion matrix; colour = share of the true class's clips.

    The figure grows with the classes. Up to ``MANY_CLASSES`` every non-zero count is printed; beyond, only the ``worst`` confused
    pairs are marked, and named beside the matrix.

    Args:
        confusion: Counts (A, A) and class names.
        title: Heading.
        worst: How many pairs to name, largest count first.
    """
    counts, classes = confusion.matrix, confusion.classes
    num = len(classes)
    small = num <= MANY_CLASSES
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    pairs = most_confused(confusion, worst)
    with house_style():
        side = num * (0.46 if small else 0.155)
        figure = new_figure(max(4.0, side + 1.6) + (0.0 if small else 3.6), max(3.4, side + 1.6))
        axes = figure.subplots()
        image = axes.imshow(share, cmap="Blues", norm=PowerNorm(1.0 if small else 0.5, vmin=0, vmax=1))
        size = 8.5 if small else 6.0
        slant: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if small else {"rotation": 90, "ha": "center"}
        axes.set_xticks(range(num), classes, **slant)
        axes.set_yticks(range(num), classes)
        axes.tick_params(length=0, labelsize=size)
        axes.set(xlabel="recognised as", ylabel="true action")
        axes.set_title(title)
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.set_xticks(np.arange(num + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(num + 1) - 0.5, minor=True)
        axes.grid(which="minor", color="white", linewidth=1.2 if small else 0.3)
        axes.tick_params(which="minor", length=0)
        if small:
            for row, column in np.argwhere(counts > 0):
                dark = share[row, column] > 0.55
                axes.text(column, row, f"{counts[row, column]:d}", ha="center", va="center", fontsize=8.5, color="white" if dark else INK)
        else:
            for row, column, _ in pairs:
                axes.add_patch(Rectangle((column - 0.7, row - 0.7), 1.4, 1.4, fill=False, edgecolor=COLOURS[1], linewidth=1.1))
            lines = [f"{count} x  {classes[row]}\n       as {classes[column]}" for row, column, count in pairs]
            heading = "Most confused (marked)\n\n" if lines else "Nothing confused"
            axes.text(1.02, 1.0, heading + "\n\n".join(lines), transform=axes.transAxes, va="top", fontsize=8)
        bar = figure.colorbar(
            image, ax=axes, location="bottom", shrink=0.5 if small else 0.2, aspect=36, pad=0.02, label="share of the true action's clips"
        )
        bar.outline.set_visible(False)
    return figure


def most_confused(confusion: Confusion, number: int) -> list[tuple[int, int, int]]:
    """The largest off-diagonal entries as (true row, recognised column, count), largest first, zeros left out."""
    wrong = confusion.matrix * (1 - np.eye(len(confusion.classes), dtype=np.int64))
    order = np.argsort(-wrong, axis=None, kind="stable")[:number]
    rows, columns = np.unravel_index(order, wrong.shape)
    return [(int(r), int(c), int(wrong[r, c])) for r, c in zip(rows, columns, strict=True) if wrong[r, c]]


def learning_curves(panels: Sequence[Panel]) -> Figure:
    """Draw curves over optimiser steps, up to three panels a row.

    A curve of more than 60 points is drawn faintly as logged and boldly as its running mean.
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
                axes.plot(curve.steps, values, color=colour, linewidth=1.7, marker=few, markersize=3.5, label=name)
            if panel.share:
                axes.set_ylim(0, 1.02)
            axes.set(xlabel="step", ylabel=panel.unit)
            axes.set_title(panel.title)
            axes.grid(axis="y")
            axes.margins(x=0.02)
            if panel.curves:
                axes.legend(loc="best")
        for axes in grid.flat[len(panels) :]:
            axes.set_visible(False)
    return figure


def running_mean(values: np.ndarray, window: int | None = None) -> np.ndarray:
    """Centred running mean (n,) -> (n,), the window cut short at both ends; by default a twentieth of the points, at least 5."""
    half = (window or max(5, len(values) // 20)) // 2
    total = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    low = np.maximum(np.arange(len(values)) - half, 0)
    high = np.minimum(np.arange(len(values)) + half + 1, len(values))
    return (total[high] - total[low]) / (high - low)


def accuracy_bars(rows: Sequence[ResultRow], chance: float) -> Figure:
    """Draw top-1 of each row as a bar with its 95 % interval (Wilson), top-5 as a ring, and chance as a dashed line.

    Args:
        rows: In the order of the table; those marked ``ours`` are coloured.
        chance: Accuracy of guessing, in [0, 1].
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
        axes.set_yticks(places, [row.name for row in rows])
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


def wilson_interval(share: float, number: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of a share of ``number`` independent trials (Wilson 1927), within [0, 1]."""
    centre = (share + z * z / (2 * number)) / (1 + z * z / number)
    half = z / (1 + z * z / number) * np.sqrt(share * (1 - share) / number + z * z / (4 * number * number))
    return float(max(0.0, centre - half)), float(min(1.0, centre + half))
