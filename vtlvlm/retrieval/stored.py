"""The index of a search: made once, and kept in one file beside the event cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from vtlvlm.retrieval.actions import ActionReader, learn_actions
from vtlvlm.retrieval.alignment import directions
from vtlvlm.retrieval.gallery import Gallery
from vtlvlm.retrieval.words import WordIndex, index_words
from vtlvlm.system.files import replacing

FILE, FORMAT = "search.safetensors", "1"


class SearchIndex(NamedTuple):
    """What a search looks up."""

    words: WordIndex
    reader: ActionReader | None
    """what the codes say about the actions; None if no clip's action may be learned"""
    probabilities: NDArray[np.float32]
    """(n, A) of the actions, by ``reader``; (n, 0) without one"""


def make_index(gallery: Gallery) -> SearchIndex:
    """The index of a gallery."""
    words = index_words(gallery.ids, len(gallery.table))
    if not len(gallery.learning):
        return SearchIndex(words, None, np.zeros((len(gallery.names), 0), np.float32))
    rows = gallery.learning
    reader = learn_actions(gallery.ids[rows], gallery.labels[rows], len(gallery.classes), directions(gallery.table))
    return SearchIndex(words, reader, reader.probabilities(gallery.ids))


def save_index(index: SearchIndex, identity: str, path: Path) -> None:
    """Write an index, whole or not at all.

    Raises:
        OSError: The file cannot be written.
    """
    words, *rest = index.words[:4]
    tensors = {"words": words, **dict(zip(("starts", "clips", "weights"), rest, strict=True)), "probabilities": index.probabilities}
    tensors |= {} if index.reader is None else index.reader._asdict()
    arrays = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    with replacing(path) as temporary:
        temporary.write_bytes(save(arrays, metadata={"format": FORMAT, "identity": identity}))


def load_index(gallery: Gallery, path: Path) -> SearchIndex | None:
    """The stored index of a gallery; None if there is none, it is of other clips, of another version, or damaged."""
    try:
        with safe_open(path, framework="numpy") as file:
            if file.metadata() != {"format": FORMAT, "identity": gallery.identity}:
                return None
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError, ValueError, MemoryError):
        return None
    return _checked(gallery, tensors)


def _checked(gallery: Gallery, tensors: dict[str, NDArray[Any]]) -> SearchIndex | None:
    """An index from its tensors; None if they do not fit together. The file may be a stranger's."""
    n, codes, actions = len(gallery.names), len(gallery.table), len(gallery.classes)
    try:
        words = WordIndex(tensors["words"], tensors["starts"], tensors["clips"], tensors["weights"], n)
        reader = ActionReader(**{name: tensors[name] for name in ActionReader._fields}) if len(gallery.learning) else None
        probabilities = tensors["probabilities"]
    except KeyError:
        return None
    shapes: list[tuple[NDArray[Any], tuple[int, ...]]] = [
        (words.starts, (len(words.words) + 1,)),
        (words.weights, words.clips.shape),
        (probabilities, (n, actions if reader else 0)),
    ]
    kinds: list[tuple[NDArray[Any], str]] = [
        (words.words, "int64"),
        (words.starts, "int32"),
        (words.clips, "int32"),
        (words.weights, "float32"),
    ]
    floats = [words.weights, probabilities]
    if reader is not None:
        parts = reader.weight.shape[1] // codes if reader.weight.ndim == 2 else 0
        shapes += [(reader.near, (codes, reader.near.shape[-1])), (reader.shares, reader.near.shape)]
        shapes += [(reader.weight, (actions, parts * codes)), (reader.bias, (actions,))]
        kinds += [(reader.near, "int32"), (reader.shares, "float32"), (reader.weight, "float32"), (reader.bias, "float32")]
        floats += [reader.shares, reader.weight, reader.bias]
    fits = (
        words.words.ndim == words.clips.ndim == 1
        and all(array.shape == shape for array, shape in shapes)
        and all(str(array.dtype) == kind for array, kind in kinds)
        and all(np.isfinite(array).all() for array in floats)
        and bool(len(words.words))
        and words.starts[0] == 0
        and words.starts[-1] == len(words.clips)
        and bool((np.diff(words.starts) > 0).all() and (np.diff(words.words) > 0).all())
        and 0 <= words.clips.min() <= words.clips.max() < n
        and (reader is None or 0 <= reader.near.min() <= reader.near.max() < codes)
    )
    return SearchIndex(words, reader, probabilities) if fits else None
