"""The cache of hidden states: for each training and validation clip the input of the first language-model layer with prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vtlvlm.batches import HiddenBatch
from vtlvlm.data.cache import Cache, EventCache
from vtlvlm.data.cache_format import MAKERS, Key, kind_of, made_of
from vtlvlm.data.cache_writer import CacheWriter
from vtlvlm.data.datasets import CachedDataset, ClipDataset, EventDataset
from vtlvlm.data.samplers import Item
from vtlvlm.errors import DataError

TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""The states' types. Those of 16 bits are stored as their bits, in uint16"""


class HiddenCache(Cache):
    """Hidden states of clips, read row by row from memory-mapped shards. Test clips are not in it.

    Attributes:
        names: (n,) clip name of each row.
        views: (n,) view of each row.
        provenance: The event cache, the LLaVA and the settings that made the states; ``hash`` is its hash.
        table: None: the states replace the events.
    """

    kind = "hidden"
    table = None

    def __init__(self, folder: Path, meta: dict[str, Any]) -> None:
        super().__init__(folder, meta)
        name = made_of(self, "dtype", str)
        if name not in TYPES or self._main.dtype != ("<f4" if name == "float32" else "<u2"):
            raise DataError(f"{folder}: its shards do not fit its description; delete the folder and run `{MAKERS[self.kind]}` again")
        self.dtype = TYPES[name]

    @property
    def shape(self) -> tuple[int, ...]:
        """(C + N, L), the shape of a clip's states."""
        return self._shape

    @property
    def events(self) -> str:
        """Hash of the event cache that the states were made from."""
        return made_of(self, "events", str)

    @property
    def num_tokens(self) -> int:
        """M, events per clip."""
        return made_of(self, "num_tokens", int)

    @property
    def event_dim(self) -> int:
        """E, event width."""
        return made_of(self, "event_dim", int)

    def states(self, rows: NDArray[np.int64]) -> Tensor:
        """(n, C + N, L) in the language model's type."""
        found = self.gather(rows)
        return torch.from_numpy(found if self.dtype == torch.float32 else found.view(np.int16)).view(self.dtype)


class HiddenCacheWriter(CacheWriter):
    """Writes hidden states in the language model's own type.

    Args:
        folder: The cache folder. Created if missing, continued if it has the same provenance.
        provenance: Everything that determines the states, with their type as ``dtype``.
        rank: Number of this process; each writes its own shards.
        expected: Clips and views of the finished cache.

    Raises:
        DataError: The folder has another provenance, is in use by another writer, or holds other files.
    """

    kind = "hidden"

    def __init__(self, folder: str | Path, provenance: Mapping[str, Any], rank: int = 0, expected: int = 0) -> None:
        self.dtype = TYPES[provenance["dtype"]]
        super().__init__(folder, provenance, rank, expected)

    def add(self, keys: Sequence[Key], states: Tensor, spans: Tensor, identities: Sequence[str] | None = None) -> None:
        """Add n clips.

        Args:
            keys: n names and views.
            states: (n, C + N, L).
            spans: (n, W, 2) seconds, of the events.
            identities: n content identities of the videos.

        Raises:
            DataError: A state is not finite, or the disk is full.
        """
        stored = states.detach().to("cpu", self.dtype)
        finite = torch.isfinite(stored).flatten(1).all(1)
        if not finite.all():
            raise DataError(f"{keys[int((~finite).nonzero()[0])][0]}: its hidden states are not finite; check its events and the LLaVA")
        bits = stored.numpy() if self.dtype == torch.float32 else stored.view(torch.int16).numpy().view(np.uint16)
        self._append(keys, "hidden", bits, spans.detach().to("cpu", torch.float32).numpy(), identities)


class HiddenDataset(CachedDataset):
    """Reads hidden states."""

    def __init__(self, labels: NDArray[np.int64], cache: HiddenCache, views: NDArray[np.int64], rows: NDArray[np.int64]) -> None:
        super().__init__(labels, views, rows)
        self.cache = cache
        self.clip_bytes = cache.row_bytes

    def __getitems__(self, items: Sequence[Item]) -> HiddenBatch:
        labels, clips, views = self.columns(items)
        return HiddenBatch(self.cache.states(self.rows_of(clips, views)), labels, clips, views)


def open_sentences(folder: str | Path) -> EventCache | HiddenCache:
    """Open the cache that stage 2 reads: events, or hidden states made from them.

    Raises:
        DataError: As for ``EventCache.open``.
    """
    return HiddenCache.open(folder) if kind_of(Path(folder)) == HiddenCache.kind else EventCache.open(folder)


def sentences(labels: NDArray[np.int64], cache: EventCache | HiddenCache, views: NDArray[np.int64], rows: NDArray[np.int64]) -> ClipDataset:
    """The dataset that reads a cache of events, or of hidden states. Arguments as for ``CachedDataset``."""
    return HiddenDataset(labels, cache, views, rows) if isinstance(cache, HiddenCache) else EventDataset(labels, cache, views, rows)
