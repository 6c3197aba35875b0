"""Writes caches, with one writer for each rank. A killed writer leaves whole shards, and the next one appends to them."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vtlvlm.data.cache_format import (
    CACHE_VERSION,
    Key,
    Rows,
    digest,
    main_files,
    open_shard,
    plain,
    provenance_hash,
    read_meta,
    require_same,
    rows_file,
)
from vtlvlm.data.shards import FolderLock, save_json, save_tensors
from vtlvlm.errors import DataError

_SHARD_BYTES = 64 * 2**20
_SHARD_SECONDS = 60.0  # a killed process loses at most this much work


class CacheWriter:
    """Writes one rank's part of a cache. Subclasses define the rows."""

    kind: ClassVar[str]

    def __init__(self, folder: str | Path, provenance: Mapping[str, Any], rank: int = 0, expected: int = 0) -> None:
        self.folder, self.rank = Path(folder), rank
        self.provenance = plain(provenance)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{self.folder}: cannot be made ({error.strerror}); name another folder") from error
        meta_file = self.folder / "meta.json"
        if (
            not meta_file.exists()
            and any(path for path in self.folder.iterdir() if not path.name.startswith("."))
            and not main_files(self.folder)
        ):
            raise DataError(f"{self.folder}: holds other files; name a new folder for the cache")
        self._lock = FolderLock(self.folder, rank)
        try:
            if meta_file.exists():
                require_same(self.folder, read_meta(self.folder, self.kind)["provenance"], self.provenance)
            elif rank == 0:
                self._describe(complete=False, expected=expected)
        except BaseException:
            self._lock.release()
            raise
        numbers = [int(path.stem.rpartition("-")[2]) for path in main_files(self.folder) if f"-r{rank:05}-" in path.name]
        self._next = max(numbers, default=-1) + 1
        self._main: list[tuple[str, NDArray[Any]]] = []
        self._side: list[NDArray[Any]] = []
        self._rows = Rows([], [], [])
        self._bytes, self._since = 0, time.monotonic()

    def _describe(self, *, complete: bool, expected: int) -> None:
        meta = {"version": CACHE_VERSION, "kind": self.kind, "provenance": self.provenance, "hash": provenance_hash(self.provenance)}
        save_json(self.folder / "meta.json", {**meta, "complete": complete, "expected": expected})

    def done(self) -> set[Key]:
        """Clips and views already stored by any rank, now or in earlier runs."""
        keys: set[Key] = set()
        for path in main_files(self.folder):
            rows = open_shard(path, self.kind).rows  # raises for a damaged shard before anything is added
            keys.update(zip(rows.names, rows.views, strict=True))
        return keys

    def _append(self, keys: Sequence[Key], name: str, main: NDArray[Any], side: NDArray[Any], identities: Sequence[str] | None) -> None:
        if not len(keys) == len(main) == len(side):
            raise ValueError(f"{len(keys)} keys for {len(main)} {name} and {len(side)} rows of times")
        if not len(keys):
            return
        if not self._main:
            self._since = time.monotonic()
        elif self._main[0][1].shape[1:] != main.shape[1:]:
            raise ValueError(f"{name} of shape {main.shape[1:]} after {self._main[0][1].shape[1:]}: all clips of a cache need one shape")
        self._main.append((name, main))
        self._side.append(side)
        self._rows.names.extend(clip for clip, _ in keys)
        self._rows.views.extend(int(view) for _, view in keys)
        self._rows.identities.extend(identities if identities is not None else [""] * len(keys))
        self._bytes += main.nbytes + side.nbytes
        if self._bytes >= _SHARD_BYTES or time.monotonic() - self._since > _SHARD_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Store all clips added so far."""
        if self._main:
            name = self._main[0][0]
            path = self.folder / f"{name}-r{self.rank:05}-{self._next:06}.safetensors"
            main, side = np.concatenate([part for _, part in self._main]), np.concatenate(self._side)
            metadata = {field: json.dumps(values, separators=(",", ":")) for field, values in self._rows._asdict().items()}
            save_tensors(rows_file(path), {"rows": side}, {**metadata, "digest": digest(main, side)})
            save_tensors(path, {name: main}, {})
            self._next += 1
        self._main, self._side, self._rows = [], [], Rows([], [], [])
        self._bytes = 0

    def close(self) -> None:
        """Store the rest and release the folder."""
        try:
            if self._lock.release.alive:
                self.flush()
        finally:
            self._lock.release()

    def finish(self, keys: Collection[Key]) -> None:
        """Mark the cache as complete. Call it once, on rank 0, after all ranks have closed.

        Args:
            keys: Every clip and view that the cache must hold.

        Raises:
            DataError: Some are missing.
        """
        stored = self.done()
        missing = sorted(set(keys) - stored)
        self._describe(complete=not missing, expected=len(set(keys)))
        if missing:
            held = len(set(keys)) - len(missing)
            raise DataError(
                f"{self.folder}: incomplete, {held} of {len(set(keys))} (first missing: {missing[0]}); run the same command again"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class FeatureCacheWriter(CacheWriter):
    """Writes features as float16.

    Args:
        folder: The cache folder. Created if missing, continued if it has the same provenance.
        provenance: Everything that determines the features, in plain values: decoder, sampling, extractor and its weights.
        rank: Number of this process; each writes its own shards.
        expected: Clips times views of the finished cache, for the message about an unfinished one.

    Raises:
        DataError: The folder has another provenance, is in use by another writer, or holds other files.
    """

    kind = "features"

    def add(self, keys: Sequence[Key], features: Tensor, times: Tensor, identities: Sequence[str] | None = None) -> None:
        """Add n clips.

        Args:
            keys: n names and views.
            features: (n, T', S, D).
            times: (n, T') seconds.
            identities: n content identities of the videos; readers compare them to find changed videos.

        Raises:
            DataError: A feature is not finite in float16, or the disk is full.
        """
        stored = features.detach().to("cpu", torch.float16)
        finite = torch.isfinite(stored).flatten(1).all(1)
        if not finite.all():
            raise DataError(
                f"{keys[int((~finite).nonzero()[0])][0]}: its features are not finite in float16; check the extractor's weights"
            )
        self._append(keys, "features", stored.numpy(), times.detach().to("cpu", torch.float32).numpy(), identities)


class EventCacheWriter(CacheWriter):
    """Writes event sentences: code numbers as uint16, or float16 vectors for the identity quantiser.

    Args:
        folder: As for ``FeatureCacheWriter``.
        provenance: Everything that determines the events: VTEM's checkpoint and hash, protocol, hash of the training clips, the features.
        table: (K, E) vector of each code, the input of the language model's projector; None for the identity quantiser.
        rank: Number of this process.
        expected: Clips times views of the finished cache.

    Raises:
        DataError: As for ``FeatureCacheWriter``; or uint16 cannot number all codes.
    """

    kind = "events"

    def __init__(self, folder: str | Path, provenance: Mapping[str, Any], table: Tensor | None, rank: int = 0, expected: int = 0) -> None:
        if table is not None and len(table) > 2**16:
            raise DataError(f"{folder}: {len(table)} codes; an event cache numbers at most {2**16}")
        super().__init__(folder, provenance, rank, expected)
        self.codes = 0 if table is None else len(table)
        if table is not None and rank == 0:
            save_tensors(self.folder / "table.safetensors", {"table": table.detach().to("cpu", torch.float32).numpy()}, {})

    def add(self, keys: Sequence[Key], ids: Tensor, vectors: Tensor | None, spans: Tensor, identities: Sequence[str] | None = None) -> None:
        """Add n clips.

        Args:
            keys: n names and views.
            ids: (n, M) code numbers; ignored if the cache has no table.
            vectors: (n, M, E); stored only if the cache has no table.
            spans: (n, W, 2) seconds.
            identities: n content identities of the videos.

        Raises:
            DataError: The disk is full.
            ValueError: A code number is not in the table, or vectors are missing for a cache without table.
        """
        side = spans.detach().to("cpu", torch.float32).numpy()
        if self.codes:
            numbers = ids.detach().cpu().numpy()
            if numbers.size and not 0 <= numbers.min() <= numbers.max() < self.codes:
                raise ValueError(f"code numbers {numbers.min()}..{numbers.max()} for a table of {self.codes}")
            self._append(keys, "ids", numbers.astype(np.uint16), side, identities)
        elif vectors is None:
            raise ValueError("a cache without table stores vectors: pass them")
        else:
            self._append(keys, "vectors", vectors.detach().to("cpu", torch.float16).numpy(), side, identities)
