"""Draws how a video becomes an event sentence: frames, windows of equal salience, and the codes of each window's cells."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Polygon, Rectangle

from vtlvlm.report.style import COLOURS, FAINT, INK, MUTED, bare, code_colour, house_style, label, new_figure, text_on


@dataclass(frozen=True)
class Sentence:
    """One clip and its event sentence."""

    title: str
    """for instance the true action, the recognised one, and its probability"""
    frames: np.ndarray
    """(T, H, W, 3) uint8 RGB"""
    times: np.ndarray
    """(T,) seconds, non-decreasing"""
    spans: np.ndarray
    """(W, 2) seconds: start and end of each window"""
    ids: np.ndarray
    """(W, S) code numbers; -1 (a continuous token) is drawn as a grey box"""
    salience: np.ndarray | None = None
    """(T', 2) seconds and salience of each feature step, drawn as a curve; None for no curve"""


def sentence_figure(sentence: Sentence, thumbnails: int = 12) -> Figure:
    """Draw a clip's event sentence.

    From top to bottom: evenly spaced frames; the salience curve, if given; each window's span as a segment of the time
    axis, widened to a column; the codes of the window's cells as coloured, numbered boxes.

    Args:
        sentence: The clip.
        thumbnails: Number of frames to show, at most.
    """
    windows, cells = sentence.ids.shape
    start = float(min(sentence.times[0], sentence.spans[0, 0]))
    end = float(max(sentence.times[-1], sentence.spans[-1, 1], start + 1e-3))
    number = min(thumbnails, len(sentence.frames))
    width = 11.0
    height, wide = sentence.frames.shape[1:3]
    strip = width / number * height / wide
    fan, boxes = 0.55, cells * min(0.30, width / windows)
    with house_style():
        figure = new_figure(width, 0.35 + strip + (0.5 if sentence.salience is not None else 0.0) + 0.35 + fan + boxes)
        figure.set_layout_engine("none")
        ratios = [strip, *([0.5] if sentence.salience is not None else []), fan + 0.30, boxes]
        grid = figure.add_gridspec(
            len(ratios), 1, height_ratios=ratios, hspace=0.0, left=0.055, right=0.995, bottom=0.01, top=1 - 0.3 / figure.get_figheight()
        )
        figure.text(0.055, 1 - 0.08 / figure.get_figheight(), label(sentence.title, 150), va="top", fontsize=10.5, fontweight="bold")
        rows = [figure.add_subplot(cell) for cell in (grid[i, 0] for i in range(len(ratios)))]
        _draw_frames(rows[0], sentence, start, end, number)
        if sentence.salience is not None:
            _draw_salience(rows[1], sentence.salience, start, end)
        _draw_fan(rows[-2], sentence.spans, start, end, share=0.30 / (fan + 0.30))
        _draw_codes(rows[-1], sentence.ids)
    return figure


def _draw_frames(axes: Axes, sentence: Sentence, start: float, end: float, number: int) -> None:
    """Show the frames nearest to the centres of ``number`` equal segments of time, side by side."""
    bare(axes)
    edges = np.linspace(0.0, 1.0, number + 1)
    centres = start + (edges[:-1] + edges[1:]) / 2 * (end - start)
    nearest = np.abs(sentence.times[None] - centres[:, None]).argmin(1)
    for left, right, frame in zip(edges[:-1], edges[1:], sentence.frames[nearest], strict=True):
        axes.imshow(frame, extent=(left + 0.001, right - 0.001, 0, 1), aspect="auto", interpolation="antialiased")
    axes.set(xlim=(0, 1), ylim=(0, 1))


def _draw_salience(axes: Axes, salience: np.ndarray, start: float, end: float) -> None:
    bare(axes)
    place = (salience[:, 0] - start) / (end - start)
    level = salience[:, 1] / max(float(salience[:, 1].max()), 1e-12)
    axes.fill_between(place, level, color=COLOURS[0], alpha=0.18, linewidth=0)
    axes.plot(place, level, color=COLOURS[0], linewidth=1.2)
    axes.set(xlim=(0, 1), ylim=(0, 1.15))
    axes.set_ylabel("salience", rotation=0, ha="right", va="center", fontsize=8, color=MUTED)


def _draw_fan(axes: Axes, spans: np.ndarray, start: float, end: float, share: float) -> None:
    """Draw the spans as segments of the time axis (the upper ``share``, with ticks). Below, they widen to equal columns."""
    bare(axes)
    windows = len(spans)
    places = (spans - start) / (end - start)
    top = 1.0 - share
    for window, (left, right) in enumerate(places):
        colour = COLOURS[0] if window % 2 == 0 else COLOURS[5]
        axes.add_patch(Rectangle((left, top), max(right - left, 0.0008), 0.10, color=colour, linewidth=0))
        corners = [(left, top), (right, top), ((window + 0.96) / windows, 0.02), ((window + 0.04) / windows, 0.02)]
        axes.add_patch(Polygon(corners, closed=True, facecolor=colour, alpha=0.16, edgecolor=colour, linewidth=0.5))
    for tick in np.linspace(0.0, 1.0, 6):
        align = "left" if tick == 0 else "right" if tick == 1 else "center"
        axes.text(tick, 0.985, f"{start + tick * (end - start):.1f} s", ha=align, va="top", fontsize=7.5, color=MUTED)
        axes.plot([tick, tick], [top + 0.10, top + 0.16], color=FAINT, linewidth=0.8)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.text(-0.008, top + 0.05, "windows", ha="right", va="center", fontsize=8, color=MUTED)


def _draw_codes(axes: Axes, ids: np.ndarray) -> None:
    """Draw one column per window and one box per cell, first cell on top. A code always has the same colour."""
    bare(axes)
    windows, cells = ids.shape
    size = min(8.0, 11.0 * 72 / windows / (max(len(str(int(ids.max()))), 2) * 0.75) * 0.8)
    for window in range(windows):
        for cell in range(cells):
            code = int(ids[window, cell])
            colour = code_colour(code) if code >= 0 else (0.9, 0.92, 0.94)
            axes.add_patch(Rectangle((window + 0.04, cells - cell - 0.94), 0.92, 0.88, facecolor=colour, edgecolor=INK, linewidth=0.3))
            axes.text(
                window + 0.5,
                cells - cell - 0.5,
                str(code) if code >= 0 else "–",
                ha="center",
                va="center",
                fontsize=size,
                color=text_on(colour),
            )
    axes.set(xlim=(0, windows), ylim=(0, cells))
    axes.set_ylabel("codes of\nthe cells", rotation=0, ha="right", va="center", fontsize=8, color=MUTED)
