"""Finds the clips of an index in a cache, and checks that the cache was made from these clips and frames."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vtlvlm.data.cache import Cache, FeatureCache
from vtlvlm.data.cache_format import MAKERS, first_difference, frames_taken
from vtlvlm.data.index import ClipIndex
from vtlvlm.data.sampling import TEST_VIEWS
from vtlvlm.data.split import Split
from vtlvlm.errors import DataError


class StoredViews(NamedTuple):
    """The views of an index's clips in a cache."""

    views: NDArray[np.int64]
    """(V,) their numbers, rising from 0"""
    rows: NDArray[np.int64]
    """(V, n) the cache row of each view and clip, -1 if missing"""

    @property
    def training(self) -> int:
        """Number of views from 0 up without a gap: training draws from them."""
        return int((self.views == np.arange(len(self.views))).sum())

    def counts(self, clips: NDArray[np.int64]) -> NDArray[np.int64]:
        """(m,) clips -> (m,) number of stored views of each clip, from 0 up without a gap."""
        return np.cumprod(self.rows[: self.training, clips] >= 0, axis=0).sum(0)

    def testing(self, clips: NDArray[np.int64]) -> tuple[int, ...]:
        """Numbers of the test views that every one of these clips has; (0,), the plain view, if there are none."""
        held = (self.rows[:, clips] >= 0).all(1) & (self.views >= TEST_VIEWS)
        return tuple(self.views[held].tolist()) or (0,)

    def at(self, clips: NDArray[np.int64], views: NDArray[np.int64]) -> NDArray[np.int64]:
        """(m,) clips and (m,) view numbers -> (m,) rows of the cache."""
        return self.rows[np.searchsorted(self.views, views), clips]


def stored_views(cache: Cache, index: ClipIndex, sides: Split) -> StoredViews:
    """The views of an index's clips in a cache.

    Raises:
        DataError: As for :func:`rows_in`.
    """
    views = np.union1d(0, cache.views)
    return StoredViews(views, rows_in(cache, views, index, sides))


def rows_in(cache: Cache, views: NDArray[np.int64], index: ClipIndex, sides: Split) -> NDArray[np.int64]:
    """Find the cache row of each clip and view, and check every clip of the split.

    Args:
        cache: Features, events or hidden states, which test clips have none of.
        views: (V,) numbers of views; the first is 0.
        index: n clips.
        sides: The split. Its clips must be in the cache in view 0, and their videos unchanged.

    Returns:
        (V, n) rows of the cache; -1 if it lacks a clip.

    Raises:
        DataError: A clip of the split is missing, or its video has changed since.
    """
    rows = np.stack([cache.rows(index.name, view) for view in views])
    wanted = np.concatenate([sides.train, sides.val, *([] if cache.kind == "hidden" else [sides.test])])
    lacking = wanted[rows[0, wanted] < 0]
    if len(lacking):
        raise DataError(
            f"{cache.folder}: lacks {len(lacking)} of {len(wanted)} clips, the first being {index.name[lacking[0]]}; "
            f"run `{MAKERS[cache.kind]}` into this folder again"
        )
    made, now = cache.identities[rows[0, wanted]], index.identity[wanted]
    size = index.size[wanted]
    other_size = ~np.char.startswith(made.astype(str), np.char.add(size.astype(str), "-")) & (size > 0)  # empty counts as unchanged
    differs = np.where(now == "", other_size, made != now)  # of an unopened file only the size is known
    changed = wanted[(made != "") & differs]
    if len(changed):
        raise DataError(
            f"{cache.folder}: {len(changed)} videos have changed since it was made, the first being {index.file(changed[0])}; "
            "make the cache anew in another folder"
        )
    return rows


def require_same_frames(features: FeatureCache, targets: FeatureCache, plain_only: bool) -> None:
    """Refuse targets that show other frames than the features.

    Args:
        features: The input of stage 1.
        targets: The features that stage 1 rebuilds.
        plain_only: Compare only the settings of view 0.

    Raises:
        DataError: A setting of the sampling differs; the message names it.
    """
    ours, theirs = (frames_taken(cache.provenance, plain_only=plain_only) for cache in (features, targets))
    if difference := first_difference(ours, theirs):
        key, here, there = difference
        raise DataError(
            f"{targets.folder}: shows other frames than {features.folder} ({key} = {there!r}, not {here!r}); "
            "run `vtlvlm extract` with the same sampling into another folder"
        )


def target_rows(
    targets: FeatureCache,
    features: FeatureCache,
    index: ClipIndex,
    sides: Split,
    stored: StoredViews,
    clips: NDArray[np.int64],
    views: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Find the target of each clip and view.

    Args:
        targets: The features that stage 1 rebuilds.
        features: The input of stage 1.
        index: n clips.
        sides: The split.
        stored: The clips' V views in ``features``.
        clips: (m,) clips that are read.
        views: (m,) views that are read; each must have a target.

    Returns:
        (V, n) rows of ``targets``; -1 if it lacks a clip.

    Raises:
        DataError: The targets show other frames, or lack a clip and view.
    """
    require_same_frames(features, targets, plain_only=stored.training == 1)
    rows = rows_in(targets, stored.views, index, sides)
    lacking = np.flatnonzero(StoredViews(stored.views, rows).at(clips, views) < 0)
    if len(lacking):
        raise DataError(
            f"{targets.folder}: lacks {len(lacking)} of the {len(clips)} clips and views of {features.folder}, the first being view "
            f"{views[lacking[0]]} of {index.name[clips[lacking[0]]]}; run `vtlvlm extract` with as many views (--data.sampling.views "
            f"{stored.training}) into another folder"
        )
    return rows
