"""Checks the room on the disk before a long job starts."""

from __future__ import annotations

import shutil
from pathlib import Path

from vtlvlm.errors import DataError


def readable(size: float) -> str:
    """Bytes as text such as ``1.5 GB`` (powers of 1000, as for disks)."""
    units = ["bytes", "KB", "MB", "GB", "TB"]
    while size >= 999.5 and len(units) > 1:
        size /= 1000
        units.pop(0)
    return f"{size:.0f} {units[0]}" if size >= 100 else f"{size:.3g} {units[0]}"


def require_space(folder: Path, needed: float, what: str) -> str:
    """Check the free space, and return one line with the bytes to write and the bytes free.

    Args:
        folder: Output folder; need not exist yet.
        needed: Estimate of the bytes still to write.
        what: Name of the output, for the line.

    Raises:
        DataError: The disk has too little room.
    """
    place = next(path for path in [folder.absolute(), *folder.absolute().parents] if path.exists())
    free = shutil.disk_usage(place).free
    line = f"{folder}: about {readable(needed)} to write for {what}, {readable(free)} free"
    if needed > free:
        raise DataError(f"{line}; make room, or name a folder on another disk")
    return line
