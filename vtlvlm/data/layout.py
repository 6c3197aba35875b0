"""What a cache folder looks like: its description, its shards, and the clips that each shard holds.

``meta.json`` says what the cache is, what made it and whether it is complete. Each shard is two safetensors files: the big tensor
(``features-…``, ``ids-…`` or ``vectors-…``) and, written just before it, its rows (``rows-…``: times or spans, and the clips' names,
views and identities, and a digest of both tensors). A shard counts from the moment its big file is there. Each rank writes shards of its
own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vtlvlm.data.shards import TensorFile
from vtlvlm.errors import DataError

Key = tuple[str, int]
"""Clip name and view."""

VERSION = 2
MAKERS = {"features": "vtlvlm extract", "events": "vtlvlm tokenize"}


def content_hash(provenance: Mapping[str, Any]) -> str:
    """Hash of plain values, the same for any order of keys."""
    text = json.dumps(provenance, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
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


def read_meta(folder: Path, kind: str) -> dict[str, Any]:
    path = folder / "meta.json"
    if not path.is_file():
        raise DataError(f"{folder}: no cache of {kind} there; make it with `{MAKERS[kind]}`")
    try:
        meta = dict(json.loads(path.read_text(encoding="utf-8")))
        found, version = meta["kind"], meta["version"]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path}: not the description of a cache; name another folder") from error
    if found != kind or version != VERSION:
        raise DataError(
            f"{folder}: a cache of {found} (version {version}), wanted is one of {kind} (version {VERSION}); name another folder"
        )
    return meta


def require_same(folder: Path, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    if difference := first_difference(stored, wanted):
        key, old, new = difference
        raise DataError(f"{folder}: made with {key} = {old!r}, wanted is {new!r}; name another folder or delete this one")


def main_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.safetensors") if path.name.split("-")[0] in ("features", "ids", "vectors"))


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


def rows_of(side: TensorFile) -> Rows:
    try:
        return Rows(*(json.loads(side.metadata[name]) for name in Rows._fields))
    except (KeyError, ValueError) as error:
        raise DataError(f"{side.path}: damaged cache file; delete it and run the command that made the cache again") from error
