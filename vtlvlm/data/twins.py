"""Finds videos of the same content. If they have two labels, one is wrong. On both sides of a split, they let the test reward memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vtlvlm.errors import DataError
from vtlvlm.system.text import shown

if TYPE_CHECKING:
    from vtlvlm.data.index import ClipIndex
    from vtlvlm.data.split import Split

_ENDS = 128 * 1024  # bytes of a file that its identity covers
_CHUNK = 2**20
_COMPARED = 500  # pairs of files that are compared whole; of further pairs, only the identity


def twins(index: ClipIndex, rows: NDArray[np.int64] | None = None) -> Iterator[tuple[int, int]]:
    """Pairs of clips with the same content: each later clip with the first. Skips files that have not been opened.

    Args:
        index: The clips.
        rows: (n,) rows to compare, in this order; None for all usable ones.
    """
    rows = index.usable if rows is None else rows
    first: dict[str, list[int]] = {}
    compared = 0
    for row, identity in zip(rows.tolist(), index.identity[rows].tolist(), strict=True):
        if not identity:
            continue
        others = first.setdefault(identity, [])
        for other in others:
            compared += index.size[row] > _ENDS
            if index.size[row] <= _ENDS or compared > _COMPARED or same_content(index.file(other), index.file(row)):
                yield other, row
                break
        else:
            others.append(row)


def same_content(one: Path, other: Path) -> bool:
    """Whether two files of the same identity are equal to the last byte; True if one cannot be read."""
    try:
        with one.open("rb") as left, other.open("rb") as right:
            while piece := left.read(_CHUNK):
                if piece != right.read(_CHUNK):
                    return False
            return not right.read(1)
    except OSError:
        return True


def across(index: ClipIndex, sides: Split) -> Iterator[tuple[int, int]]:
    """Pairs of a training or validation clip and a test clip with the same content."""
    learning = np.concatenate([sides.train, sides.val])
    shared = set(index.identity[learning].tolist()) & set(index.identity[sides.test].tolist()) - {""}
    if not shared:
        return
    wanted = list(shared)
    learning, tested = (rows[np.isin(index.identity[rows].astype(str), wanted)] for rows in (learning, sides.test))
    held = set(tested.tolist())
    for one, other in twins(index, np.concatenate([learning, tested])):
        if one not in held and other in held:
            yield one, other


def refuse_leak(index: ClipIndex, sides: Split) -> None:
    """Refuse a split with the same content in a training or validation clip and in a test clip.

    Raises:
        DataError: The message names the first pair of files.
    """
    pair = next(across(index, sides), None)
    if pair is not None:
        one, other = (shown(index.path[row]) for row in pair)
        raise DataError(
            f"{index.root}: {one} (training or validation) and {other} (test) have the same content under protocol "
            f"{sides.description['protocol']}; "
            "`vtlvlm prepare` lists all such pairs: remove one of each, or set data.source.allow_duplicates"
        )
