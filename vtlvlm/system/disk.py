"""Room on the disk: looked at before a long job starts, not when it is full."""

from __future__ import annotations

import shutil
from pathlib import Path

from vtlvlm.errors import DataError


def readable(size: float) -> str:
    """Bytes as ``1.5 GB`` (powers of 1000, as disks are sold)."""
    units = ["bytes", "KB", "MB", "GB", "TB"]
    while size >= 999.5 and len(units) > 1:
        size /= 1000
        units.pop(0)
    return f"{size:.0f} {units[0]}" if size >= 100 else f"{size:.3g} {units[0]}"


def require_space(folder: Path, needed: float, what: str) -> str:
    """One line that says how much will be written and how much is free.

    Args:
        folder: Where; need not exist yet.
        needed: Estimate in bytes of what is still to be written.
        what: What it is, for the line.

    Raises:
        DataError: There is not that much room.
    """
    place = next(path for path in [folder.absolute(), *folder.absolute().parents] if path.exists())
    free = shutil.disk_usage(place).free
    line = f"{folder}: about {readable(needed)} to write for {what}, {readable(free)} free"
    if needed > free:
        raise DataError(f"{line}; make room, or name a folder on another disk")
    return line
