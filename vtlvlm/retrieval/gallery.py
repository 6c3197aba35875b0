"""The clips that are searched: the plain views of an event cache, with what its index knows about them."""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vtlvlm.data.cache import EventCache
from vtlvlm.data.carried import carried_index
from vtlvlm.data.index import ClipIndex
from vtlvlm.data.split import split
from vtlvlm.errors import DataError, UsageError


class Gallery(NamedTuple):
    """n clips."""

    names: NDArray[np.object_]
    """(n,)"""
    ids: NDArray[np.uint16]
    """(n, W, S) codes"""
    spans: NDArray[np.float32]
    """(n, W, 2) seconds"""
    table: NDArray[np.float32]
    """(K, E) code vectors"""
    labels: NDArray[np.int64]
    """(n,) places in ``classes``; -1 for an unknown action"""
    classes: tuple[str, ...]
    people: NDArray[np.object_]
    """(n,) the person, or the group of the table of clips; "" if unknown"""
    performances: NDArray[np.object_]
    """(n,) equal for the views that several cameras have of one performance; "" if unknown"""
    learning: NDArray[np.int64]
    """rows of the clips whose actions may be learned: those of the training and validation side"""
    testing: NDArray[np.int64]
    """rows of the test clips"""
    identity: str
    """hash of everything that an index of these clips depends on"""
    unlearned: str
    """why no clip's action may be learned, in a line; "" if some may"""


def gallery_of(events: str | Path) -> Gallery:
    """The clips of an event cache.

    Raises:
        DataError: The cache is missing, unfinished, damaged, empty, or carries no index; or its events are continuous.
    """
    cache = EventCache.open(events)
    if cache.table is None:
        raise DataError(f"{events}: its events are continuous (IdentityQuantizer), and have no codes to search")
    index = carried_index(Path(events))
    rows = cache.rows(index.name)
    usable = index.usable[rows[index.usable] >= 0]
    if not len(usable):
        raise DataError(f"{events}: holds no clip of its index; make it again with `vtlvlm tokenize`")
    rows = rows[usable]
    spans = cache.spans(rows).numpy()
    ids = cache.ids(rows).numpy().astype(np.uint16).reshape(len(rows), spans.shape[1], -1)
    sides, why = _sides(cache, index)
    learning, testing = (np.flatnonzero(np.isin(usable, side)) for side in sides)
    labels = np.where(index.label[usable] < len(index.classes), index.label[usable], -1)
    learning = learning[labels[learning] >= 0]
    if not why and len(np.unique(labels[learning])) < 2:
        learning, why = learning[:0], "its training clips do not have two known actions"
    identity = blake2b(cache.hash.encode(), digest_size=16)
    for column in (ids, labels, learning):
        identity.update(np.ascontiguousarray(column).tobytes())
    people, performances = _people(index, usable)
    return Gallery(
        index.name[usable],
        ids,
        spans,
        cache.table.numpy(),
        labels,
        index.classes,
        people,
        performances,
        learning,
        testing,
        identity.hexdigest(),
        why,
    )


def _sides(cache: EventCache, index: ClipIndex) -> tuple[tuple[NDArray[np.int64], NDArray[np.int64]], str]:
    """Rows of the index that stage 1 learned from, and of the test; and why there are none."""
    nothing = np.zeros(0, dtype=np.int64)
    protocol = cache.provenance.get("protocol")
    try:
        found = split(index, str(protocol))
    except (DataError, UsageError) as error:
        return (nothing, nothing), f"its clips cannot be split as its stage 1's were ({error})"
    if found.train_hash != cache.provenance.get("train_hash"):
        return (nothing, nothing), f"its training clips are not those of the protocol {protocol}"
    return (np.concatenate([found.train, found.val]), found.test), ""


def _people(index: ClipIndex, rows: NDArray[np.int64]) -> tuple[NDArray[np.object_], NDArray[np.object_]]:
    subject, camera = index.subject[rows].astype(np.int64), index.camera[rows]
    groups = index.group[rows]
    people = np.where(subject >= 0, np.char.add("P", np.char.zfill(subject.astype(str), 3)), groups.astype(str)).astype(object)
    columns = [column[rows].astype(str) for column in (index.setup, index.subject, index.replication, index.label)]
    together = columns[0]
    for column in columns[1:]:
        together = np.char.add(np.char.add(together, "-"), column)
    return people, np.where((camera >= 0) & (subject >= 0), together, "").astype(object)
