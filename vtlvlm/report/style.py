"""The look that all figures share: colour-blind-safe colours (Okabe and Ito 2008), quiet axes, and a stable colour for every code."""

from __future__ import annotations

import colorsys
from contextlib import AbstractContextManager

import matplotlib as mpl
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#5B5B5B")
INK = "#1f2328"
FAINT = "#c9ced6"
MUTED = "#6b7280"

_RC = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9.5,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": cycler(color=COLOURS),
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "grid.color": "#e8ebef",
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "figure.dpi": 110,
    "savefig.dpi": 150,
    "savefig.facecolor": "white",
}


def house_style() -> AbstractContextManager[None]:
    """The settings under which every figure is made; the caller's own are back afterwards."""
    return mpl.rc_context(_RC)  # type: ignore[arg-type]


def new_figure(width: float, height: float) -> Figure:
    """A figure of ``width`` x ``height`` inches with its own Agg canvas: nothing global, no display, nothing to close."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def bare(axes: Axes) -> None:
    """Take away ticks and frame."""
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)


def code_colour(code: int) -> tuple[float, float, float]:
    """The colour of a code, RGB in [0, 1]: the same in every figure of every run.

    Hues step by the golden ratio and lightness by thirds, so that neighbouring numbers look apart; the number is always
    printed too, since no palette tells 2,048 codes apart.
    """
    return colorsys.hls_to_rgb((code * 0.618034) % 1.0, (0.42, 0.58, 0.74)[code % 3], 0.50)


def text_on(colour: tuple[float, float, float]) -> str:
    """Black or white, whichever reads better on a colour (Rec. 709 luma)."""
    red, green, blue = colour
    return "black" if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.5 else "white"
