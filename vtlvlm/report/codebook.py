"""Draws the panel of a codebook's health: frequencies and run lengths of codes, their actions, and their pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpecFromSubplotSpec, SubplotSpec
from matplotlib.ticker import MaxNLocator, NullFormatter

from vtlvlm.report.runs import Curve
from vtlvlm.report.style import COLOURS, FAINT, INK, MUTED, bare, code_colour, house_style, label, new_figure, text_on

WIDTH = 14.0
ROWS = (2.4, 2.75, 2.5)
"""Inches: the figure's width, and the heights of its three rows."""


@dataclass(frozen=True)
class Pair:
    """A code and an action that it occurs with more often than by chance."""

    code: int
    action: str
    pmi: float
    """nats"""
    tokens: int
    clips: int


@dataclass(frozen=True)
class SalientClip:
    """A clip's salience and windows."""

    title: str
    times: np.ndarray
    """(T',) seconds, the centre of each feature step"""
    salience: np.ndarray
    """(T',) relative to the clip's mean: 1 throughout is uniform pooling"""
    borders: np.ndarray
    """(W+1,) seconds, the windows' borders"""


@dataclass(frozen=True)
class CodePictures:
    """Pictures of the cells in which a code occurs."""

    code: int
    share: float
    """share of all tokens"""
    pictures: Sequence[np.ndarray]
    """(H, W, 3) uint8 RGB each"""
    titles: Sequence[str]
    """one for each picture"""


@dataclass(frozen=True)
class CodebookFacts:
    """Everything the panel shows."""

    title: str
    counts: np.ndarray
    """(K,) tokens of each code"""
    zipf: tuple[float, float]
    """slope and intercept of log share over log rank; nan without a fit"""
    runs: np.ndarray
    """(W,) number of runs that last 1, 2, ... W windows"""
    numbers: Sequence[tuple[str, str]]
    """rows of the small table: name, value"""
    errors: Sequence[Curve] = ()
    """reconstruction errors in standardised units"""
    pairs: Sequence[Pair] = ()
    clips: Sequence[SalientClip] = ()
    """at most four are drawn"""
    codes: Sequence[CodePictures] = ()
    """at most eight are drawn"""
    note: str = ""
    """one line in place of the pictures, or above them"""
    alarm: str = ""
    """one line in red below the title"""


def codebook_figure(facts: CodebookFacts) -> Figure:
    """Draw the panel.

    Top: frequency over rank with Zipf's fit, run lengths, reconstruction error, the numbers. Middle: pairs of code and action, salience
    over time. Bottom: pictures of the most used codes.
    """
    rows = ROWS if any(code.pictures for code in facts.codes) else (*ROWS[:2], 0.4)
    header, gaps, footer = 0.9, 2 * 1.05, 0.3
    height = header + sum(rows) + gaps + footer
    with house_style():
        figure = new_figure(WIDTH, height)
        figure.set_layout_engine("none")
        figure.text(0.05, 1 - 0.14 / height, facts.title, va="top", fontsize=13, fontweight="bold")
        if facts.alarm:
            figure.text(0.05, 1 - 0.42 / height, facts.alarm, va="top", fontsize=10, color=COLOURS[1], fontweight="bold")
        grid = figure.add_gridspec(
            3, 1, height_ratios=rows, left=0.05, right=0.985, top=1 - header / height, bottom=footer / height, hspace=1.5 * gaps / sum(rows)
        )
        top = GridSpecFromSubplotSpec(1, 4, grid[0], width_ratios=(1.15, 0.85, 1.15, 1.0), wspace=0.26)
        middle = GridSpecFromSubplotSpec(1, 2, grid[1], width_ratios=(1.0, 1.35), wspace=0.10)
        axes = [figure.add_subplot(cell) for cell in (top[0], top[1], top[2], top[3], middle[0])]
        _draw_frequencies(axes[0], facts.counts, facts.zipf)
        _draw_runs(axes[1], facts.runs)
        _draw_errors(axes[2], facts.errors)
        _draw_numbers(axes[3], facts.numbers)
        _draw_pairs(axes[4], facts.pairs[:10])
        _draw_salience(figure, middle[1], facts.clips[:4])
        _draw_pictures(figure, grid[2], facts.codes[:8], facts.note)
    return figure


def _draw_frequencies(axes: Axes, counts: np.ndarray, zipf: tuple[float, float]) -> None:
    used = np.sort(counts[counts > 0])[::-1]
    axes.set_title("How often codes occur")
    if not len(used):
        _say(axes, "no tokens yet")
        return
    rank = np.arange(1, len(used) + 1)
    share = used / used.sum()
    axes.loglog(rank, share, color=COLOURS[0], marker="o", markersize=2.6, linewidth=1.0, zorder=3)
    slope, intercept = zipf
    if np.isfinite(slope):
        fit = np.exp(intercept + slope * np.log(rank))
        axes.plot(rank, fit, color=COLOURS[1], linewidth=1.4, linestyle=(0, (5, 3)), zorder=2)
        axes.text(0.97, 0.95, f"fit: slope {signed(slope)}\nwords: about −1", transform=axes.transAxes, ha="right", va="top", fontsize=8.5)
    axes.axhline(1 / len(counts), color=FAINT, linewidth=1.0, zorder=1)
    axes.set_xlim(0.85, max(len(counts), 2) * 1.15)
    axes.text(0.02, 1 / len(counts), "uniform", transform=axes.get_yaxis_transform(), va="bottom", fontsize=7.5, color=MUTED)
    axes.set(xlabel="rank of the code", ylabel="share of the tokens")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: power_of_ten(value))
        axis.set_minor_formatter(NullFormatter())
    axes.grid(which="major")


def _draw_runs(axes: Axes, runs: np.ndarray) -> None:
    axes.set_title("How long a code stays in its cell")
    if not runs.sum():
        _say(axes, "no runs yet")
        return
    share = runs / runs.sum()
    windows = range(1, len(runs) + 1)
    axes.bar(windows, share, width=0.78, color=COLOURS[0])
    if len(runs) <= 10:
        for window, value in zip(windows, share, strict=True):
            if value:
                label = f"{value:.0%}" if value >= 0.005 else "<1%"
                axes.text(window, value, label, ha="center", va="bottom", fontsize=7.5, color=MUTED)
    axes.set_xlim(0.4, len(runs) + 0.6)
    axes.set_ylim(0, min(1.08, 1.15 * share.max()))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=9, min_n_ticks=1))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.set(xlabel="windows in a row", ylabel="share of the runs")


def _draw_errors(axes: Axes, errors: Sequence[Curve]) -> None:
    axes.set_title("Reconstruction error")
    drawn = [curve for curve in errors if len(curve.steps)]
    if not drawn:
        _say(axes, "not measured")
        return
    if all(len(curve.steps) == 1 for curve in drawn):
        bare(axes)
        for place, curve in enumerate(drawn):
            middle = 0.56 - 0.45 * (place - (len(drawn) - 1) / 2)
            axes.text(0.5, middle, f"{curve.values[0]:.3f}", ha="center", va="bottom", fontsize=24, color=COLOURS[0])
            axes.text(0.5, middle - 0.02, f"{label(curve.name)}, 1 = predicting the mean", ha="center", va="top", fontsize=9, color=MUTED)
        axes.set(xlim=(0, 1), ylim=(0, 1))
        return
    last = max(float(curve.steps[-1]) for curve in drawn)
    highest = max(float(np.nanmax(curve.values)) for curve in drawn)
    axes.axhline(1.0, color=MUTED, linewidth=1.0, linestyle=(0, (4, 3)))
    axes.text(0.985, 1.0, "predicting the mean", transform=axes.get_yaxis_transform(), ha="right", va="bottom", fontsize=7.5, color=MUTED)
    for curve, colour in zip(drawn, COLOURS, strict=False):
        few = len(curve.steps) <= 12
        axes.plot(
            curve.steps, curve.values, color=colour, linewidth=1.5, marker="o" if few else None, markersize=3.5, label=label(curve.name)
        )
    axes.legend(loc="lower left", ncols=2, handlelength=1.4)
    axes.set_ylim(0, max(1.15, 1.05 * min(highest, 3.0)))
    axes.set_xlim(0, last * 1.03 + 1)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.set(xlabel="step", ylabel="standardised units")
    axes.grid(axis="y")


def _draw_numbers(axes: Axes, numbers: Sequence[tuple[str, str]]) -> None:
    axes.set_title("In numbers")
    bare(axes)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    step = 1 / max(len(numbers), 9)
    for place, (name, value) in enumerate(numbers):
        middle = 1 - (place + 0.5) * step
        axes.text(0.0, middle, name, va="center", fontsize=9, color=MUTED)
        axes.text(1.0, middle, value, va="center", ha="right", fontsize=9)
        axes.plot([0, 1], [middle - step / 2] * 2, color=FAINT, linewidth=0.6)


def _draw_pairs(axes: Axes, pairs: Sequence[Pair]) -> None:
    axes.set_title("Codes that indicate an action (pointwise mutual information)", pad=22)
    if not pairs:
        _say(axes, "no code occurs in enough clips of one action")
        return
    slots = max(len(pairs), 8)
    longest = max(pair.pmi for pair in pairs)
    for place, pair in zip(range(slots - 1, -1, -1), pairs, strict=False):
        colour = code_colour(pair.code)
        axes.barh(place, pair.pmi, height=0.66, color=COLOURS[0], alpha=0.85)
        clips = f"{pair.tokens:,} token{'s' if pair.tokens > 1 else ''} in {pair.clips:,} clip{'s' if pair.clips > 1 else ''}"
        axes.text(pair.pmi + 0.015 * longest, place, f"{pair.pmi:.2f}   {clips}", va="center", fontsize=8, color=MUTED)
        axes.text(
            -0.015 * longest,
            place,
            f" {pair.code} ",
            ha="right",
            va="center",
            fontsize=7.5,
            color=text_on(colour),
            bbox={"boxstyle": "round,pad=0.18", "facecolor": colour, "edgecolor": "none"},
        )
        axes.text(0.015 * longest, place, label(pair.action, 34), va="center", fontsize=8.5, color="white")
    axes.set_yticks([])
    axes.set_ylim(-0.6, slots - 0.4)
    axes.set_xlim(-0.11 * longest, longest * 1.42)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("nats above chance")
    axes.set_xticks([tick for tick in MaxNLocator(5).tick_values(0, longest) if 0 <= tick <= longest])


def _draw_salience(figure: Figure, place: SubplotSpec, clips: Sequence[SalientClip]) -> None:
    """One small chart per clip, two in a row, with the windows as bands."""
    frame = figure.add_subplot(place)
    frame.set_title("Salience over time (1 = the clip's mean; bands = windows of equal salience)", pad=22)
    bare(frame)
    if not clips:
        _say(frame, "no clip was evaluated")
        return
    columns = 1 if len(clips) == 1 else 2
    rows = -(-len(clips) // columns)
    grid = GridSpecFromSubplotSpec(rows, columns, place, hspace=0.58 if rows > 1 else 0.0, wspace=0.09)
    top = max(1.6, 1.12 * max(float(clip.salience.max()) for clip in clips))
    for number, clip in enumerate(clips):
        axes = figure.add_subplot(grid[number // columns, number % columns])
        for window, (left, right) in enumerate(zip(clip.borders[:-1], clip.borders[1:], strict=True)):
            axes.axvspan(left, right, color=COLOURS[0] if window % 2 == 0 else COLOURS[5], alpha=0.20, linewidth=0)
        axes.vlines(clip.borders[1:-1], 0, top, color="white", linewidth=0.8)
        axes.axhline(1.0, color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
        axes.plot(clip.times, clip.salience, color=INK, linewidth=1.3)
        axes.set_xlim(clip.borders[0], max(clip.borders[-1], clip.borders[0] + 1e-3))
        axes.set_ylim(0, top)
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_locator(MaxNLocator(6, prune="upper"))
        axes.set_title(label(clip.title, 46), fontsize=9, fontweight="normal", pad=4)
        if number + columns >= len(clips):
            axes.set_xlabel("seconds")
        axes.tick_params(labelleft=number % columns == 0)


def _draw_pictures(figure: Figure, place: SubplotSpec, codes: Sequence[CodePictures], note: str) -> None:
    """Four codes in a row, each with its number, its share of the tokens, and up to three pictures."""
    axes = figure.add_subplot(place)
    axes.set_title("The most used codes: their cells in the middle frame of a window", pad=8)
    bare(axes)
    shown = [code for code in codes if code.pictures]
    if not shown:
        _say(axes, label(note or "no pictures", 160))
        return
    if note:
        axes.text(1.0, 1.01, label(note, 110), transform=axes.transAxes, ha="right", fontsize=8, color=MUTED)
    rows = -(-len(shown) // 4)
    grid = GridSpecFromSubplotSpec(2, 4, place, wspace=0.04, hspace=0.22)
    for number, code in enumerate(shown[: 4 * rows]):
        block = GridSpecFromSubplotSpec(1, 4, grid[number // 4, number % 4], width_ratios=(0.5, 1, 1, 1), wspace=0.05)
        chip = figure.add_subplot(block[0])
        bare(chip)
        chip.set(xlim=(0, 1), ylim=(0, 1))
        colour = code_colour(code.code)
        box = {"boxstyle": "round,pad=0.25", "facecolor": colour, "edgecolor": "none"}
        chip.text(0.94, 0.62, str(code.code), ha="right", va="center", fontsize=9.5, color=text_on(colour), bbox=box)
        chip.text(1.0, 0.38, f"{code.share:.1%}", ha="right", va="center", fontsize=8.5, color=MUTED)
        for column, (picture, title) in enumerate(zip(code.pictures[:3], code.titles, strict=False)):
            cell = figure.add_subplot(block[1 + column])
            bare(cell)
            cell.imshow(picture, interpolation="antialiased")
            cell.set_xlabel(label(title, 18), fontsize=7, color=MUTED, labelpad=2)


def power_of_ten(value: float) -> str:
    """The label of a logarithmic tick as plain text: ``10⁻²``, ``10⁰``."""
    return "10" + str(round(np.log10(value))).translate(_RAISED) if value > 0 else ""


_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def signed(value: float) -> str:
    """Two decimals, with a minus sign instead of a hyphen."""
    return f"{value:.2f}".replace("-", "−")


def _say(axes: Axes, text: str) -> None:
    """Write a line in place of a chart."""
    bare(axes)
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", fontsize=9.5, color=MUTED)
