"""What a server takes: checked from a video's packets and its first frame, before anything is computed."""

from __future__ import annotations

from pathlib import Path

from vtlvlm.data.video import VideoInfo, probe
from vtlvlm.errors import DataError

MOST_PIXELS = 40_000_000
"""Pixels of a frame, at most: 8K has 33 million"""
FASTEST = 240
"""Frames a second, at most, on average"""


def measured(path: Path, seconds: float) -> VideoInfo:
    """The length and size of a video that the server takes.

    Args:
        path: Any file.
        seconds: Length, at most.

    Raises:
        DataError: It is no video, damaged, too long or too large.
    """
    info = probe(path)
    if info.width * info.height > MOST_PIXELS:
        raise DataError(f"{path}: {info.width} x {info.height} pixels are more than this server takes; send a smaller copy")
    if info.duration > seconds or info.frames > FASTEST * seconds:
        raise DataError(
            f"{path}: {info.duration / 60:.1f} minutes ({info.frames:,} frames) are longer than the {seconds / 60:g} minutes that this "
            "server takes; send a shorter piece, or start the server with a larger --max-minutes"
        )
    return info
