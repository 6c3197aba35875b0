"""The format of a cache folder: its description, its shards, and the clips in each shard.

``meta.json`` holds the kind of the cache, its provenance, and whether it is complete. A shard is two safetensors files. The main file
(``features-…``, ``ids-…``, ``vectors-…`` or ``hidden-…``) holds the big tensor. The rows file (``rows-…``) holds times or spans, the clips'
names, views and identities, and a digest of both tensors. The rows file is written first; the shard exists once its main file does. Each
rank writes its own shards.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from vtlvlm.data.shards import TensorFile, open_tensor
from vtlvlm.errors import DataError
from vtlvlm.system.text import shown

Value = TypeVar("Value")
Key = tuple[str, int]
"""Clip name and view."""

CACHE_VERSION = 2
MAKERS = {"features": "vtlvlm extract", "events": "vtlvlm tokenize", "hidden": "vtlvlm extract-hidden"}


NOTES = ("features_folder", "extractor_settings")
"""Keys of a provenance that do not affect the content: the places of the source and of the weights. A cache with other notes is the
same cache."""


def unnoted(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """A provenance without ``NOTES``."""
    return {key: value for key, value in provenance.items() if key not in NOTES}


def provenance_hash(provenance: Mapping[str, Any]) -> str:
    """Hash of plain values. It depends neither on the order of keys nor on ``NOTES``."""
    text = json.dumps(unnoted(provenance), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return blake2b(text.encode(), digest_size=16).hexdigest()


def first_difference(old: Any, new: Any, key: str = "") -> tuple[str, Any, Any] | None:
    """The first key (in alphabetical order) at which two trees of plain values differ, and both values; None for equal trees."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in sorted({*old, *new}):
            found = first_difference(old.get(name), new.get(name), f"{key}.{name}" if key else str(name))
            if found is not None:
                return found
        return None
    return None if old == new else (key, old, new)


def frames_taken(provenance: Mapping[str, Any], plain_only: bool) -> dict[str, Any]:
    """The sampling settings that must match for two feature caches to show the same frames. Size and number of views may differ.

    Args:
        provenance: Provenance of a feature cache.
        plain_only: Leave out the settings of training views from 1 up.
    """
    settings = (provenance.get("sampling") or {}).get("init_args", {})
    found: dict[str, Any] = {"sampling": {name: value for name, value in settings.items() if name not in ("size", "views")}}
    return found if plain_only else {**found, **{key: provenance.get(key) for key in ("view_seed", "augmentation")}}


def plain(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """A provenance after a round trip through JSON: tuples become lists."""
    return dict(json.loads(json.dumps(provenance)))


LARGEST_META = 64 << 20


def read_meta(folder: Path, kind: str) -> dict[str, Any]:
    """The description of a cache.

    Raises:
        DataError: The description is missing, damaged, or of another kind or version.
    """
    path = folder / "meta.json"
    if not path.is_file():
        raise DataError(f"{folder}: holds no cache of {kind}; make it with `{MAKERS[kind]}`")
    try:
        if path.stat().st_size > LARGEST_META:
            raise ValueError("larger than any description")
        meta = dict(json.loads(path.read_text(encoding="utf-8")))
        found, version = meta["kind"], meta["version"]
        if found == kind and version == CACHE_VERSION:
            _require_meta(meta)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{path}: not a cache's description; name another folder, or delete this one and make the cache anew") from error
    if found != kind or version != CACHE_VERSION:
        what = f"holds a cache of {shown(found, 40)} (version {shown(version, 40)})"
        raise DataError(f"{folder}: {what}, expected one of {kind} (version {CACHE_VERSION}); name another folder")
    return meta


def kind_of(folder: Path) -> str | None:
    """The kind that a cache's description names; None if it cannot be read, which :func:`read_meta` explains."""
    path = folder / "meta.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["kind"] if path.stat().st_size <= LARGEST_META else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return found if isinstance(found, str) else None


def _require_meta(meta: Mapping[str, Any]) -> None:
    """Raise ValueError unless every value of a description has the type that its readers need."""
    made = meta["provenance"]
    if not isinstance(made, dict) or type(meta["complete"]) is not bool or type(meta["expected"]) is not int:
        raise ValueError("a value of another type")
    if not isinstance(meta["hash"], str):
        raise ValueError("its hash is none")
    if not isinstance(sampling := made.get("sampling") or {}, dict) or not isinstance(sampling.get("init_args", {}), dict):
        raise ValueError("its sampling is none")


def require_same(folder: Path, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    if difference := first_difference(unnoted(stored), unnoted(wanted)):
        key, old, new = difference
        raise DataError(f"{folder}: made with {key} = {old!r}, expected {new!r}; name another folder or delete this one")


_SHARD = re.compile(r"(features|ids|vectors|hidden)-r\d{5,9}-\d{6,9}\.safetensors", re.ASCII)
_KINDS = {"features": "features", "ids": "events", "vectors": "events", "hidden": "hidden"}
"""Main tensor → the kind of its cache"""
_FORMS = {"features": (("<f2",), 4, 2), "ids": (("<u2",), 2, 3), "vectors": (("<f2",), 3, 3), "hidden": (("<u2", "<f4"), 3, 3)}
"""Main tensor → its possible types, its number of dimensions, and the number of dimensions of the tensor in its rows file"""
LARGEST_VIEW = 100_000


def main_files(folder: Path) -> list[Path]:
    """The main files of a cache's shards, in order."""
    return sorted(path for path in folder.glob("*.safetensors") if _SHARD.fullmatch(path.name))


class Rows(NamedTuple):
    names: list[str]
    views: list[int]
    identities: list[str]


def digest(*arrays: NDArray[Any]) -> str:
    """Hash of the content of arrays."""
    state = blake2b(digest_size=16)
    for array in arrays:
        state.update(np.ascontiguousarray(array).data)
    return state.hexdigest()


def rows_file(main: Path) -> Path:
    return main.with_name("rows-" + main.name.partition("-")[2])


def made_of(cache: Any, name: str, kind: type[Value]) -> Value:
    """A value of a cache's provenance.

    Raises:
        DataError: The provenance lacks it.
    """
    value = cache.provenance.get(name)
    if not isinstance(value, kind):
        raise DataError(f"{cache.folder}: its description lacks {name}; delete the folder and make the cache anew")
    return value


class Shard(NamedTuple):
    """Both files of a shard, not yet read, and its rows."""

    main: TensorFile
    side: TensorFile
    rows: Rows


def open_shard(path: Path, kind: str) -> Shard:
    """Read the headers of a shard's two files, and check that they fit.

    Args:
        path: The shard's main file.
        kind: ``features``, ``events`` or ``hidden``.

    Raises:
        DataError: A file is missing, damaged or of another kind, or the two do not fit.
    """
    name = path.name.split("-")[0]
    main, side = open_tensor(path, name), open_tensor(rows_file(path), "rows")
    rows = _rows_of(side)
    types, main_dims, side_dims = _FORMS[name]
    count = len(rows.names)
    forms = len(main.shape), side.dtype, len(side.shape)
    if _KINDS[name] != kind or main.dtype not in types or forms != (main_dims, "<f4", side_dims):
        raise DataError(f"{path}: not a tensor of a cache of {kind}; delete it and run `{MAKERS[kind]}` again")
    if not (main.shape[0] == side.shape[0] == count == len(rows.views) == len(rows.identities)):
        raise DataError(f"{path}: does not fit {side.path.name}; delete both files and run `{MAKERS[kind]}` again")
    return Shard(main, side, rows)


def _rows_of(side: TensorFile) -> Rows:
    try:
        rows = Rows(*(json.loads(side.metadata[name]) for name in Rows._fields))
        if not all(isinstance(part, list) for part in rows):
            raise ValueError("no lists")
        "".join(rows.names + rows.identities).encode()  # raises unless all are texts that UTF-8 can encode
        if set(map(type, rows.views)) != {int} or not 0 <= min(rows.views) <= max(rows.views) < LARGEST_VIEW:
            raise ValueError("a view is not a number")
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise DataError(f"{side.path}: damaged cache file; delete it and run the command that made the cache again") from error
    return rows
