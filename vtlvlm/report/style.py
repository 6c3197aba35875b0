"""The style of all figures: colour-blind-safe colours (Okabe and Ito 2008), light axes, and a fixed colour for every code."""

from __future__ import annotations

import colorsys
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import matplotlib as mpl
from cycler import cycler
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from vtlvlm.report.tables import display_width
from vtlvlm.system.streams import gist
from vtlvlm.system.text import shown

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#5B5B5B")
INK = "#1f2328"
FAINT = "#c9ced6"
MUTED = "#6b7280"

OTHER_SCRIPTS = ("Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Zen Hei", "Noto Sans Arabic", "Noto Sans Devanagari", "Noto Emoji")
"""Fonts for scripts that DejaVu lacks, used if installed"""

_RC: dict[Any, Any] = {
    "text.parse_math": False,  # names may contain dollar signs
    "text.usetex": False,
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


@contextmanager
def house_style() -> Iterator[None]:
    """Apply matplotlib's settings for our figures, and restore the caller's afterwards.

    No text is read as mathematics. A character that no font has is drawn as a box, without a warning.
    """
    with mpl.rc_context({**_RC, "font.family": _fonts()}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # warn_on_missing_glyph in matplotlib/_text_helpers.py
        yield


@cache
def _fonts() -> list[str]:
    installed = {font.name for font in font_manager.fontManager.ttflist}
    return ["DejaVu Sans", *(name for name in OTHER_SCRIPTS if name in installed)]


class HouseFigure(Figure):
    """A figure that is drawn in the house style, since matplotlib creates some texts only while drawing."""

    def draw(self, renderer: Any) -> None:
        """Draw."""
        with house_style():
            super().draw(renderer)


def new_figure(width: float, height: float) -> Figure:
    """A figure of ``width`` x ``height`` inches with its own Agg canvas. It needs no display, no global state, and no closing."""
    figure = HouseFigure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def png(figure: Figure, dpi: int = 150) -> bytes:
    """A figure as PNG bytes. It is laid out and drawn once; ``savefig`` would draw it twice."""
    canvas, before = FigureCanvasAgg(figure), figure.dpi
    try:
        figure.dpi = dpi
        canvas.draw()
        width, height = canvas.get_width_height()
        picture = Image.frombuffer("RGBA", (width, height), canvas.buffer_rgba(), "raw", "RGBA", 0, 1).convert("RGB")
    finally:
        figure.dpi = before
    buffer = io.BytesIO()
    picture.save(buffer, format="png")
    return buffer.getvalue()


@contextmanager
def beside_the_result(what: str) -> Iterator[None]:
    """Turn any failure in the block into a one-line warning, so that pictures and curves never prevent a result from being written.

    Args:
        what: Name of the picture or curve, such as ``the confusion matrix's picture``.
    """
    try:
        yield
    except Exception as error:
        warnings.warn(f"{what} cannot be made ({type(error).__name__}: {gist(error, 300)}); all files of results are whole", stacklevel=3)


def label(text: object, most: int = 52) -> str:
    """A name from outside as the text of a figure: one line, escaped, short, and visible in legends.

    Args:
        text: Shown literally, including dollar signs, braces and backslashes.
        most: Characters at most; wide characters count twice. The end of a longer text becomes ``…``.
    """
    line = shown(" ".join(str(text).split(" ")))
    if display_width(line) > most:
        width = 1
        for place, character in enumerate(line):
            width += display_width(character)
            if width > most:
                words = line[:place].rstrip()
                line = (words[: words.rfind(" ")] if words.rfind(" ") > place // 2 else words) + "…"
                break
    if not line.strip():
        return "(blank)"
    return f" {line}" if line.startswith("_") else line  # matplotlib's legends skip names that begin with an underscore


def bare(axes: Axes) -> None:
    """Remove ticks and frame."""
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)


def code_colour(code: int) -> tuple[float, float, float]:
    """The colour of a code, RGB in [0, 1]: the same in every figure of every run.

    Hue steps by the golden ratio and lightness by thirds, so that neighbouring numbers look different. Figures also print the number,
    since no palette separates 2,048 codes.
    """
    return colorsys.hls_to_rgb((code * 0.618034) % 1.0, (0.42, 0.58, 0.74)[code % 3], 0.50)


def text_on(colour: tuple[float, float, float]) -> str:
    """Black or white, whichever has more contrast on a colour (Rec. 709 luma)."""
    red, green, blue = colour
    return "black" if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.5 else "white"
