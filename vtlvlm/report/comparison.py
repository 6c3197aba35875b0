"""Draws comparisons of runs: accuracy over a setting, reliability of the probabilities, change of each class between two runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator
from numpy.typing import NDArray

from vtlvlm.metrics.paired import Difference, paired_difference
from vtlvlm.report.style import COLOURS, FAINT, INK, MUTED, house_style, label, new_figure

BINS = 15
"""Bins of confidence, as in the expected calibration error"""
MOST_CLASSES = 30
"""A figure of changes shows at most this many classes, the most changed ones"""


@dataclass(frozen=True)
class Point:
    """An arm in a chart of accuracy over a setting: the setting's value, and top-1 in percent for each seed."""

    setting: float
    seeds: Sequence[float]


def accuracy_over(points: Sequence[Point], paper: Sequence[tuple[int, float]], setting: str, clips: int) -> Figure:
    """Draw top-1 over a setting on a logarithmic axis: our runs on the left, the paper's figures beside them on other clips.

    Args:
        points: Our arms with results.
        paper: (setting, top-1 in percent) as the paper prints them.
        setting: Label of the horizontal axis.
        clips: Test clips of our runs.
    """
    ours = sorted(points, key=lambda point: point.setting)
    with house_style():
        figure = new_figure(8.4, 3.1)
        left, right = figure.subplots(1, 2)
        places = [point.setting for point in ours]
        means = [float(np.mean(point.seeds)) for point in ours]
        most = max(len(point.seeds) for point in ours)
        left.plot(places, means, color=COLOURS[0], linewidth=1.7, marker="o", markersize=5, zorder=3)
        for point in ours:
            if len(point.seeds) > 1:
                left.plot([point.setting] * len(point.seeds), point.seeds, "o", color=COLOURS[0], alpha=0.35, markersize=4, zorder=2)
        _write_values(left, list(zip(places, means, strict=True)), INK)
        left.set_title(f"this code, {clips:,} test clips, {most} seed{'s' if most > 1 else ''}")
        right.plot(*zip(*paper, strict=True), color=MUTED, linewidth=1.4, linestyle=(0, (5, 3)), marker="s", markersize=4.5)
        _write_values(right, paper, MUTED)
        right.set_title("the paper, NTU RGB+D 60 X-Sub")
        for axes, ticks in ((left, places), (right, [place for place, _ in paper])):
            _log_axis(axes, ticks)
            axes.set(xlabel=setting, ylabel="top-1, %")
            axes.grid(axis="y")
            axes.margins(x=0.16, y=0.2)
    return figure


def _write_values(axes: Axes, points: Sequence[tuple[float, float]], colour: str) -> None:
    """Write each value beside its marker, away from the line to the next one."""
    for number, (place, value) in enumerate(points):
        rises = number + 1 < len(points) and points[number + 1][1] > value
        offset = (7, -11 if rises else 5)
        axes.annotate(f"{value:.1f}", (place, value), offset, textcoords="offset points", fontsize=8.5, color=colour)


def _log_axis(axes: Axes, ticks: Sequence[float]) -> None:
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(list(ticks)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")


def reliability_figure(confidence: NDArray[np.float64], right: NDArray[np.bool_], title: str) -> Figure:
    """Draw accuracy over the probability of the recognised class in 15 bins, and below it how many clips each bin holds.

    Args:
        confidence: (n,) probability of the recognised class.
        right: (n,) whether it was the true class.
        title: Heading.
    """
    rows, counts, mean, accuracy = reliability(confidence, right)
    error = float((np.abs(accuracy - mean) * counts).sum() / max(counts.sum(), 1))
    centres = (rows + 0.5) / BINS
    with house_style():
        figure = new_figure(4.6, 4.4)
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3.2, 1))
        upper.plot([0, 1], [0, 1], color=MUTED, linewidth=1.0, linestyle=(0, (4, 3)), zorder=1)
        upper.bar(centres, accuracy, width=0.92 / BINS, color=COLOURS[0], alpha=0.85, zorder=2)
        upper.plot(mean, accuracy, "o", color=COLOURS[1], markersize=4, zorder=3)
        upper.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="share of right clips")
        upper.set_title(label(title, 58))
        upper.text(0.03, 0.95, f"ECE {error:.3f}\n{len(right):,} clips", transform=upper.transAxes, va="top", fontsize=9)
        lower.bar(centres, counts, width=0.92 / BINS, color=FAINT)
        lower.set(xlabel="probability of the recognised action", ylabel="clips")
        for axes in (upper, lower):
            axes.grid(axis="y")
            axes.set_axisbelow(True)
    return figure


def reliability(
    confidence: NDArray[np.float64], right: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Numbers of the bins that hold clips, their clips, mean probabilities and shares of right clips."""
    place = np.clip((confidence * BINS).astype(np.int64), 0, BINS - 1)
    counts = np.bincount(place, minlength=BINS)
    rows = np.flatnonzero(counts)
    sums = np.bincount(place, weights=confidence, minlength=BINS), np.bincount(place, weights=right, minlength=BINS)
    return rows, counts[rows], sums[0][rows] / counts[rows], sums[1][rows] / counts[rows]


@dataclass(frozen=True)
class Change:
    """A class, its clips, and the accuracy of the second result minus the first on them."""

    name: str
    clips: int
    difference: Difference


def class_changes(first: NDArray[np.bool_], second: NDArray[np.bool_], truth: NDArray[np.str_]) -> list[Change]:
    """The change of each class from one result to another, with a bootstrap over the class's clips. The largest gain comes first.

    Args:
        first: (R, n) whether each clip was right, for each of R seeds.
        second: (R, n) the same for the other result.
        truth: (n,) true classes.
    """
    found = []
    for name in np.unique(truth):
        rows = truth == name
        found.append(Change(str(name), int(rows.sum()), paired_difference(second[:, rows], first[:, rows])))
    return sorted(found, key=lambda change: -change.difference.mean)


def changes_figure(changes: Sequence[Change], first: str, second: str) -> Figure:
    """Draw the change of each class as a bar with its 95 % interval. With many classes, only the most changed ones.

    Args:
        changes: From :func:`class_changes`.
        first: Name of the result that is compared with.
        second: Name of the result whose gain is drawn.
    """
    drawn = list(changes)
    if len(drawn) > MOST_CLASSES:
        kept = sorted(drawn, key=lambda change: -abs(change.difference.mean))[:MOST_CLASSES]
        drawn = [change for change in drawn if change in kept]
    places = np.arange(len(drawn))[::-1]
    with house_style():
        figure = new_figure(7.6, 1.15 + 0.27 * len(drawn))
        axes = figure.subplots()
        for place, change in zip(places, drawn, strict=True):
            gain = 100 * change.difference.mean
            axes.barh(place, gain, height=0.62, color=COLOURS[2] if gain >= 0 else COLOURS[1], alpha=0.75, zorder=2)
            ends = [100 * change.difference.low, 100 * change.difference.high]
            axes.plot(ends, [place, place], color=INK, linewidth=1.2, solid_capstyle="butt", zorder=3)
        axes.axvline(0, color=MUTED, linewidth=1.0)
        axes.set_yticks(places, [f"{label(change.name, 40)} ({change.clips})" for change in drawn])
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x")
        axes.set_axisbelow(True)
        axes.set_ylim(-0.7, len(drawn) - 0.3)
        axes.set_xlabel("change in points of accuracy, with 95 % interval (clips in brackets)")
        some = f"the {len(drawn)} most changed of {len(changes)} classes" if len(drawn) < len(changes) else "each class"
        axes.set_title(label(f"{second} minus {first}: {some}", 96))
    return figure
