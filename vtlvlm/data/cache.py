"""Reads caches of features and of event sentences, row by row, from memory-mapped files."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vtlvlm.data.cache_format import MAKERS, Key, digest, main_files, open_shard, plain, provenance_hash, read_meta, require_same, rows_file
from vtlvlm.data.cache_writer import EventCacheWriter, FeatureCacheWriter
from vtlvlm.data.shards import TensorFile, open_tensor
from vtlvlm.errors import DataError

__all__ = ["EventCache", "EventCacheWriter", "FeatureCache", "FeatureCacheWriter", "Key", "provenance_hash"]


MOST_VIEWS = 4_096


class MappedRows:
    """The rows of a tensor that is stored in several memory-mapped files. No file stays open.

    Args:
        files: One tensor each. All rows have the same shape and type.
    """

    def __init__(self, files: Sequence[TensorFile]) -> None:
        self.files = files
        self.shape, self.dtype = files[0].shape[1:], files[0].dtype
        self._maps: list[NDArray[Any] | None] = [None] * len(files)
        self._starts = np.cumsum([0, *(file.shape[0] for file in files)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def gather(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """(n,) row numbers -> (n, …) rows, with one indexing operation for each file."""
        rows = np.asarray(rows, dtype=np.int64)
        if len(self.files) == 1:
            return self._map(0)[rows]
        result = np.empty((len(rows), *self.shape), dtype=self.dtype)
        file = np.searchsorted(self._starts, rows, side="right") - 1
        for number in np.unique(file).tolist():
            here = np.flatnonzero(file == number)
            result[here] = self._map(number)[rows[here] - self._starts[number]]
        return result

    def _map(self, number: int) -> NDArray[Any]:
        mapped = self._maps[number]
        if mapped is None:
            mapped = self._maps[number] = self.files[number].map()
        return mapped

    def __getstate__(self) -> dict[str, Any]:
        """Without the maps: worker processes map the files again."""
        return {**self.__dict__, "_maps": [None] * len(self.files)}


class Cache:
    """A finished cache, read by rows. Subclasses define the rows."""

    kind: ClassVar[str]

    def __init__(self, folder: Path, meta: dict[str, Any]) -> None:
        self.folder, self.provenance = folder, dict(meta["provenance"])
        self.hash = provenance_hash(self.provenance)
        shards = [open_shard(path, self.kind) for path in main_files(folder)]
        if not shards:
            raise DataError(f"{folder}: is an empty cache; delete it and run `{MAKERS[self.kind]}`")
        files, sides, rows = zip(*shards, strict=True)
        for tensors in (files, sides):
            if len({(file.shape[1:], file.dtype) for file in tensors}) > 1:
                raise DataError(f"{folder}: its shards have different shapes; delete the folder and run `{MAKERS[self.kind]}` again")
        self._main, self._side = MappedRows(files), MappedRows(sides)
        self._shape = self._main.shape
        self.names = np.array([name for part in rows for name in part.names], dtype=object)
        self.views = np.array([view for part in rows for view in part.views], dtype=np.int64)
        self.identities = np.array([text for part in rows for text in part.identities], dtype=object)
        if len(np.unique(self.views)) > MOST_VIEWS:
            raise DataError(f"{folder}: more than {MOST_VIEWS:,} views of a clip; delete the folder and run `{MAKERS[self.kind]}` again")

    @classmethod
    def open(cls, folder: str | Path, expect: Mapping[str, Any] | None = None) -> Self:
        """Open a finished cache.

        Args:
            folder: The cache folder.
            expect: Provenance that the cache must have: key → value.

        Raises:
            DataError: The cache is missing, unfinished, damaged, of another kind, or of another provenance.
        """
        folder = Path(folder)
        meta = read_meta(folder, cls.kind)
        if expect:
            wanted = plain(expect)
            require_same(folder, {key: meta["provenance"].get(key) for key in wanted}, wanted)
        if not meta["complete"]:
            held = sum(open_shard(path, cls.kind).main.shape[0] for path in main_files(folder))
            of = f" of {meta['expected']}" if meta["expected"] else ""
            raise DataError(f"{folder}: incomplete, {held}{of} clips and views are stored; run `{MAKERS[cls.kind]}` again to finish")
        return cls(folder, meta)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row, without its times."""
        return math.prod(self._main.shape) * np.dtype(self._main.dtype).itemsize

    def _seconds(self, rows: NDArray[np.int64]) -> Tensor:
        """Times or spans of rows."""
        found = self._side.gather(rows)
        if not np.isfinite(found).all():
            raise DataError(f"{self.folder}: holds times that are nan or infinity; delete the folder and run `{MAKERS[self.kind]}` again")
        return torch.from_numpy(found)

    def rows(self, names: Sequence[str] | NDArray[Any], view: int = 0) -> NDArray[np.int64]:
        """n clip names → (n,) cache rows of one view; -1 if the cache lacks the clip."""
        held = np.flatnonzero(self.views == view)
        row = dict(zip(self.names[held].tolist(), held.tolist(), strict=True))
        return np.fromiter((row.get(name, -1) for name in names), np.int64, len(names))

    def verify(self, progress: bool = True) -> int:
        """Read all shards and compare them with the digests from the time of writing.

        Args:
            progress: Show a progress bar.

        Returns:
            Bytes read.

        Raises:
            DataError: A shard has changed since, or a clip and view is stored twice.
        """
        from tqdm import tqdm

        size = 0
        for file in tqdm(self._main.files, desc="verifying", unit="shard", delay=1, disable=not progress):
            main, side = file.map(), open_tensor(rows_file(file.path), "rows")
            if digest(main, side.map()) != side.metadata.get("digest"):
                raise DataError(
                    f"{file.path}: has changed since it was written (a failing disk?); delete this file and run `{MAKERS[self.kind]}` "
                    "again, which makes its content anew"
                )
            size += main.nbytes
        stored = list(zip(self.names, self.views.tolist(), strict=True))
        if len(set(stored)) < len(stored):
            name, view = next(key for key, count in Counter(stored).items() if count > 1)
            raise DataError(f"{self.folder}: stores {name}, view {view}, twice; delete the folder and run `{MAKERS[self.kind]}` again")
        return size

    def gather(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """(n,) row numbers -> (n, …) rows of the main tensor."""
        return self._main.gather(rows)


class FeatureCache(Cache):
    """Features of clips, read row by row from memory-mapped shards.

    Attributes:
        names: (n,) clip name of each row.
        views: (n,) view of each row.
        provenance: Settings and weights that made the features; ``hash`` is its hash.
    """

    kind = "features"

    @property
    def steps(self) -> int:
        """T', feature steps per clip."""
        return self._shape[0]

    @property
    def cells(self) -> int:
        """S, spatial cells per step."""
        return self._shape[1]

    @property
    def grid(self) -> int:
        """g, cells along a side; S = g²."""
        return round(self.cells**0.5)

    @property
    def dim(self) -> int:
        """D, feature width."""
        return self._shape[2]

    def features(self, rows: NDArray[np.int64]) -> Tensor:
        """(n, T', S, D) float16."""
        return torch.from_numpy(self.gather(rows))

    def times(self, rows: NDArray[np.int64]) -> Tensor:
        """(n, T') float32 seconds."""
        return self._seconds(rows)


class EventCache(Cache):
    """Event sentences of clips. All code numbers lie in memory as one tensor (512 bytes per clip at M = 256).

    Attributes:
        names: (n,) clip name of each row.
        views: (n,) view of each row.
        provenance: Settings and checkpoint that made the events; ``hash`` is its hash.
        table: (K, E) float32 vector of each code, or None for the identity quantiser.
    """

    kind = "events"

    @property
    def events(self) -> str:
        """Its own hash, as in hidden states made from it."""
        return self.hash

    def __init__(self, folder: Path, meta: dict[str, Any]) -> None:
        super().__init__(folder, meta)
        path = folder / "table.safetensors"
        stored = open_tensor(path, "table") if path.is_file() else None
        wanted = "vectors" if stored is None else "ids"
        if any(not file.path.name.startswith(f"{wanted}-") for file in self._main.files):
            raise DataError(f"{folder}: its shards do not fit its table; delete the folder and run `{MAKERS[self.kind]}` again")
        if stored is not None and (stored.dtype != "<f4" or len(stored.shape) != 2 or not np.isfinite(stored.map()).all()):
            raise DataError(f"{path}: not a table of code vectors; delete the folder and run `{MAKERS[self.kind]}` again")
        self.table = None if stored is None else torch.from_numpy(stored.map().copy())

    @property
    def num_tokens(self) -> int:
        """M, events per clip."""
        return self._shape[0]

    @property
    def event_dim(self) -> int:
        """E, event width."""
        return self._shape[1] if self.table is None else int(self.table.shape[1])

    @property
    def num_codes(self) -> int:
        """K, or 0 for the identity quantiser."""
        return 0 if self.table is None else len(self.table)

    @cached_property
    def _ids(self) -> NDArray[np.uint16]:
        found = np.concatenate([file.map() for file in self._main.files])
        if (largest := int(found.max())) >= self.num_codes:
            raise DataError(
                f"{self.folder}: has code {largest}, but its table has {self.num_codes} codes; delete the folder and run "
                f"`{MAKERS[self.kind]}` again"
            )
        return found

    def ids(self, rows: NDArray[np.int64]) -> Tensor:
        """(n, M) int64 code numbers; all -1 for the identity quantiser."""
        if self.table is None:
            return torch.full((len(rows), self.num_tokens), -1)
        return torch.from_numpy(self._ids[rows].astype(np.int64))

    def vectors(self, rows: NDArray[np.int64]) -> Tensor | None:
        """(n, M, E) float16 for the identity quantiser, else None."""
        return torch.from_numpy(self.gather(rows)) if self.table is None else None

    def spans(self, rows: NDArray[np.int64]) -> Tensor:
        """(n, W, 2) float32 seconds."""
        return self._seconds(rows)
