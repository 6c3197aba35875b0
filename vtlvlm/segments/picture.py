"""Draws the actions of a video over time."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from vtlvlm.report.style import COLOURS, FAINT, INK, MUTED, house_style, label, new_figure
from vtlvlm.segments.formats import clock
from vtlvlm.segments.timeline import Segment

ROWS = 14
"""Actions that get a row of their own; others share the last one"""


def timeline_figure(rows: Sequence[tuple[str, Sequence[Segment]]], seconds: float, title: str) -> Figure:
    """Segments as bars over time, a row for each action.

    Args:
        rows: Name and segments of each layer, such as the truth and the found ones. The layers of an action stand one above the other, the
            first on top.
        seconds: Length of the video.
        title: Of the figure.
    """
    actions = _by_first(rows)
    shown = actions if len(actions) <= ROWS else [*actions[: ROWS - 1], f"{len(actions) - ROWS + 1} other actions"]
    layers = max(1, len(rows))
    with house_style():
        figure = new_figure(10.5, 1.1 + 0.34 * max(1, len(shown)) * (1 + 0.35 * (layers - 1)))
        axes = figure.add_subplot()
        axes.set_title(label(title, 110))
        for layer, (name, segments) in enumerate(rows):
            height = 0.72 / layers
            for one in segments:
                row = min(actions.index(one.label), len(shown) - 1)
                place = row - 0.36 + height * (layer + 0.5)
                colour = COLOURS[layer % len(COLOURS)]
                axes.barh(-place, one.seconds, height=0.9 * height, left=one.start, color=colour, alpha=0.35 + 0.65 * one.score)
            axes.plot([], [], color=COLOURS[layer % len(COLOURS)], linewidth=6, label=name)
        axes.set_yticks([-row for row in range(len(shown))], [label(name, 34) for name in shown])
        axes.set_ylim(-max(1, len(shown)) + 0.4, 0.6)
        axes.set_xlim(0, max(seconds, 1e-3))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: clock(value, ".")[3 if seconds < 3600 else 0 : 8]))
        axes.set_xlabel("minutes and seconds" if seconds < 3600 else "hours, minutes and seconds")
        axes.grid(axis="x", color=FAINT)
        axes.set_axisbelow(True)
        axes.tick_params(colors=MUTED)
        if not actions:
            axes.text(0.5, 0.5, "no action of the list", transform=axes.transAxes, ha="center", va="center", color=INK)
        elif layers > 1:
            axes.legend(loc="upper right", ncols=layers, fontsize=8, frameon=False)
    return figure


def _by_first(rows: Sequence[tuple[str, Sequence[Segment]]]) -> list[str]:
    """The actions, by the start of their first segment."""
    first: dict[str, float] = {}
    for _, segments in rows:
        for one in segments:
            first[one.label] = min(one.start, first.get(one.label, one.start))
    return sorted(first, key=lambda name: (first[name], name))
