"""Where a cache holds the clips of an index, and whether it was made of these clips and frames."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vtlvlm.data.cache import EventCache, FeatureCache
from vtlvlm.data.cache_format import first_difference, frames_taken
from vtlvlm.data.index import ClipIndex
from vtlvlm.data.split import Split
from vtlvlm.errors import DataError


def rows_in(cache: FeatureCache | EventCache, views: NDArray[np.int64], index: ClipIndex, sides: Split) -> NDArray[np.int64]:
    """Where a cache holds each clip of an index in each of these views, checked for every clip of the split.

    Args:
        cache: Features or events.
        views: (V,) numbers of views, which begin with 0.
        index: n clips.
        sides: Which of them have to be there in view 0, unchanged.

    Returns:
        (V, n) rows of the cache; -1 where it lacks a clip.

    Raises:
        DataError: A clip of the split is missing, or its video has changed since.
    """
    rows = np.stack([cache.rows(index.name, view) for view in views])
    wanted = np.concatenate([sides.train, sides.val, sides.test])
    lacking = wanted[rows[0, wanted] < 0]
    if len(lacking):
        maker = "tokenize" if isinstance(cache, EventCache) else "extract"
        raise DataError(
            f"{cache.folder}: lacks {len(lacking)} of {len(wanted)} clips, the first being {index.name[lacking[0]]}; "
            f"run `vtlvlm {maker}` into this folder again"
        )
    made, now = cache.identities[rows[0, wanted]], index.identity[wanted]
    size = index.size[wanted]
    other_size = ~np.char.startswith(made.astype(str), np.char.add(size.astype(str), "-")) & (size > 0)  # emptied is not replaced
    differs = np.where(now == "", other_size, made != now)  # the size is all that is known of a file nobody has looked into
    changed = wanted[(made != "") & differs]
    if len(changed):
        raise DataError(
            f"{cache.folder}: {len(changed)} videos have changed since it was made, the first being {index.file(changed[0])}; "
            "make it anew in another folder"
        )
    return rows


def require_same_frames(features: FeatureCache, targets: FeatureCache, plain_only: bool) -> None:
    """Refuse targets of other frames than the features'.

    Args:
        features: What stage 1 reads.
        targets: What it rebuilds.
        plain_only: Compare what decides view 0 alone.

    Raises:
        DataError: Naming the setting of the sampling that differs.
    """
    ours, theirs = (frames_taken(cache.provenance, plain_only=plain_only) for cache in (features, targets))
    if difference := first_difference(ours, theirs):
        key, here, there = difference
        raise DataError(
            f"{targets.folder}: its views are of other frames than those of {features.folder} ({key} = {there!r} there, {here!r} "
            "here); run `vtlvlm extract` with the same sampling into another folder"
        )
