"""What a cache folder looks like: its description, its shards, and the clips that each shard holds.

``meta.json`` says what the cache is, what made it and whether it is complete. Each shard is two safetensors files: the big tensor
(``features-…``, ``ids-…`` or ``vectors-…``) and, written just before it, its rows (``rows-…``: times or spans, and the clips' names,
views and identities, and a digest of both tensors). A shard counts from the moment its big file is there. Each rank writes shards of its
own.
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
MAKERS = {"features": "vtlvlm extract", "events": "vtlvlm tokenize"}


NOTES = ("features_folder", "extractor_settings")
"""What a provenance notes beside what decides the content: where its source lay, and where its maker had its weights. A cache with other
notes is the same cache."""


def unnoted(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """A provenance without ``NOTES``."""
    return {key: value for key, value in provenance.items() if key not in NOTES}


def provenance_hash(provenance: Mapping[str, Any]) -> str:
    """Hash of plain values, the same for any order of keys and any ``NOTES``."""
    text = json.dumps(unnoted(provenance), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return blake2b(text.encode(), digest_size=16).hexdigest()


def first_difference(old: Any, new: Any, key: str = "") -> tuple[str, Any, Any] | None:
    """The first key, in order of names, at which two trees of plain values differ, with both values."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in sorted({*old, *new}):
            found = first_difference(old.get(name), new.get(name), f"{key}.{name}" if key else str(name))
            if found is not None:
                return found
        return None
    return None if old == new else (key, old, new)


def frames_taken(provenance: Mapping[str, Any], plain_only: bool) -> dict[str, Any]:
    """What decides which frames of a clip a feature cache's views show, and which part of them; not how large the extractor saw them,
    nor how many views there are.

    Args:
        provenance: The cache's.
        plain_only: Without what only training views from 1 up depend on.
    """
    settings = (provenance.get("sampling") or {}).get("init_args", {})
    found: dict[str, Any] = {"sampling": {name: value for name, value in settings.items() if name not in ("size", "views")}}
    return found if plain_only else {**found, **{key: provenance.get(key) for key in ("view_seed", "augmentation")}}


def plain(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """As it comes back from JSON, so that tuples equal lists."""
    return dict(json.loads(json.dumps(provenance)))


LARGEST_META = 64 << 20


def read_meta(folder: Path, kind: str) -> dict[str, Any]:
    """The description of a cache.

    Raises:
        DataError: There is none, it is damaged, or of a cache of another kind or version.
    """
    path = folder / "meta.json"
    if not path.is_file():
        raise DataError(f"{folder}: no cache of {kind} there; make it with `{MAKERS[kind]}`")
    try:
        if path.stat().st_size > LARGEST_META:
            raise ValueError("larger than any description")
        meta = dict(json.loads(path.read_text(encoding="utf-8")))
        found, version = meta["kind"], meta["version"]
        if found == kind and version == CACHE_VERSION:
            _require_meta(meta)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{path}: not the description of a cache; name another folder, or delete this one and make it anew") from error
    if found != kind or version != CACHE_VERSION:
        what = f"a cache of {shown(found, 40)} (version {shown(version, 40)})"
        raise DataError(f"{folder}: {what}, expected one of {kind} (version {CACHE_VERSION}); name another folder")
    return meta


def _require_meta(meta: Mapping[str, Any]) -> None:
    """Raise ValueError unless a description has what its readers take."""
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


_SHARD = re.compile(r"(features|ids|vectors)-r\d{5,9}-\d{6,9}\.safetensors", re.ASCII)
_FORMS = {"features": ("<f2", 4, 2), "ids": ("<u2", 2, 3), "vectors": ("<f2", 3, 3)}
"""Of each big tensor: its type, its number of dimensions, and that of the small tensor beside it"""
LARGEST_VIEW = 100_000


def main_files(folder: Path) -> list[Path]:
    """The big files of a cache's shards, in order."""
    return sorted(path for path in folder.glob("*.safetensors") if _SHARD.fullmatch(path.name))


class Rows(NamedTuple):
    names: list[str]
    views: list[int]
    identities: list[str]


def digest(*arrays: NDArray[Any]) -> str:
    """Hash of what arrays hold."""
    state = blake2b(digest_size=16)
    for array in arrays:
        state.update(np.ascontiguousarray(array).data)
    return state.hexdigest()


def rows_file(main: Path) -> Path:
    return main.with_name("rows-" + main.name.partition("-")[2])


def made_of(cache: Any, name: str, kind: type[Value]) -> Value:
    """A value of a cache's provenance.

    Raises:
        DataError: The cache does not have it.
    """
    value = cache.provenance.get(name)
    if not isinstance(value, kind):
        raise DataError(f"{cache.folder}: its description does not say {name}; delete the folder and make it anew")
    return value


class Shard(NamedTuple):
    """Both files of a shard, not yet read, and the rows they hold."""

    main: TensorFile
    side: TensorFile
    rows: Rows


def open_shard(path: Path, kind: str) -> Shard:
    """The headers of a shard, which have to agree.

    Args:
        path: Its big file.
        kind: ``features`` or ``events``.

    Raises:
        DataError: One of its files is missing, damaged, of another kind, or does not go with the other.
    """
    name = path.name.split("-")[0]
    main, side = open_tensor(path, name), open_tensor(rows_file(path), "rows")
    rows = _rows_of(side)
    dtype, main_dims, side_dims = _FORMS[name]
    count = len(rows.names)
    if (name == "features") != (kind == "features") or (main.dtype, len(main.shape), side.dtype, len(side.shape)) != (
        dtype,
        main_dims,
        "<f4",
        side_dims,
    ):
        raise DataError(f"{path}: holds other tensors than a cache of {kind}; delete it and run `{MAKERS[kind]}` again")
    if not (main.shape[0] == side.shape[0] == count == len(rows.views) == len(rows.identities)):
        raise DataError(f"{path}: does not go with its {side.path.name}; delete both files and run `{MAKERS[kind]}` again")
    return Shard(main, side, rows)


def _rows_of(side: TensorFile) -> Rows:
    try:
        rows = Rows(*(json.loads(side.metadata[name]) for name in Rows._fields))
        if not all(isinstance(part, list) for part in rows):
            raise ValueError("no lists")
        "".join(rows.names + rows.identities).encode()  # of texts only, and of ones that can be shown
        if set(map(type, rows.views)) != {int} or not 0 <= min(rows.views) <= max(rows.views) < LARGEST_VIEW:
            raise ValueError("a view is not a number")
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise DataError(f"{side.path}: damaged cache file; delete it and run the command that made the cache again") from error
    return rows
