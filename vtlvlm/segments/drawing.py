"""Draws segments into a copy of their video."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from vtlvlm.data.preview import write_preview
from vtlvlm.segments.timeline import Segment
from vtlvlm.system.text import shown

Picture = NDArray[np.uint8]
_SHARE = 0.06
"""Height of the label as a share of the picture's"""
_SIDE = 1080
"""Pixels of the copy's short side, at most"""


def write_labelled(video: Path, segments: Sequence[Segment], target: Path) -> None:
    """Write a copy of a video (H.264, without sound) that shows each segment's label and score while it lasts.

    Args:
        video: The video.
        segments: In the order of their starts, not overlapping.
        target: An MP4 file to write.

    Raises:
        VideoError: The video is damaged.
        DataError: The copy cannot be written.
    """
    starts = [one.start for one in segments]
    bars: dict[tuple[int, int, int], Picture] = {}

    def paint(time: float, picture: Picture) -> None:
        place = bisect.bisect_right(starts, time) - 1
        if place < 0 or time >= segments[place].end:
            return
        height, width = picture.shape[:2]
        if (key := (place, height, width)) not in bars:
            bars.clear()
            bars[key] = _bar(f"{shown(segments[place].label)}  {segments[place].score:.0%}", height, width)
        bar = bars[key]
        picture[height - len(bar) :] = bar

    write_preview(video, target, side=_SIDE, paint=paint)


def _bar(text: str, height: int, width: int) -> Picture:
    """A dark bar (h, width, 3) with a text that fits."""
    tall = max(12, round(height * _SHARE * 1.7))
    image = Image.new("RGB", (width, tall), (18, 18, 18))
    draw = ImageDraw.Draw(image)
    size = max(8.0, height * _SHARE)
    while size > 8 and draw.textlength(text, font=ImageFont.load_default(size)) > width - size:
        size *= 0.9
    draw.text((size / 2, tall / 2), text, font=ImageFont.load_default(size), fill=(255, 255, 255), anchor="lm")
    return np.asarray(image)
