"""Reads the description of a sharded checkpoint without running code in it.

torch.distributed.checkpoint pickles the description (``.metadata``). A pickle can call anything that can be imported. The unpickler here
accepts only torch's few classes of descriptions.
"""

from __future__ import annotations

import pickle
import stat
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint import metadata as described
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorStorageMetadata
from torch.serialization import _get_layout

from vtlvlm.errors import UsageError
from vtlvlm.system.text import shown

NAME = ".metadata"
LARGEST = 256 * 2**20
"""Largest size of a description in bytes; a 7-billion model in 64 shards needs a few million"""

_KNOWN: dict[tuple[str, str], Any] = {
    **{(described.__name__, name): getattr(described, name) for name in (*described.__all__, "_MEM_FORMAT_ENCODING")},
    (_StorageInfo.__module__, _StorageInfo.__name__): _StorageInfo,
    (_get_layout.__module__, _get_layout.__name__): _get_layout,
    ("torch", "Size"): torch.Size,
    ("collections", "OrderedDict"): dict,
    **{(module, name): PurePosixPath for module in ("pathlib", "pathlib._local") for name in ("PosixPath", "Path")},  # as Python 3.13 says
    **{("torch", name): kind for name, kind in vars(torch).items() if isinstance(kind, torch.dtype)},
}


class _Descriptions(pickle.Unpickler):
    """Accepts only the names of :data:`_KNOWN`, and imports none."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _KNOWN[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no description of shards does") from None


def read_description(folder: Path) -> Metadata:
    """The description of a folder of shards.

    Raises:
        UsageError: It is missing or damaged, holds anything but a description, or names files outside the folder.
    """
    path = folder / NAME
    try:
        if not path.is_file() or path.stat().st_size > LARGEST:
            raise ValueError("it is not a file of a few megabytes")
        with path.open("rb") as file:
            found = _Descriptions(file).load()
        _require_description(found, folder)
    except Exception as error:  # an unpickler raises anything on a damaged or hostile file
        reason = shown(getattr(error, "strerror", None) or error, 160)
        raise UsageError(f"{folder}: its shards cannot be read ({NAME}: {reason}); copy the folder again, with all its files") from error
    return found


def _require_description(found: Any, folder: Path) -> None:
    """Raise ValueError unless this describes tensors that lie completely in regular files of the folder."""
    if type(found) is not Metadata or type(found.state_dict_metadata) is not dict or type(found.storage_data) is not dict:
        raise ValueError("it holds something else")
    if any(type(name) is not str for name in found.state_dict_metadata):
        raise ValueError("a tensor's name is not text")
    sizes: dict[str, int] = {}
    for index, place in found.storage_data.items():
        if type(index) is not MetadataIndex or type(place) is not _StorageInfo or type(index.fqn) is not str:
            raise ValueError("a tensor's place is malformed")
        name = place.relative_path
        if type(name) is not str or name != Path(name).name:
            raise ValueError(f"it names {shown(name, 80)}, a file outside the folder")
        if name not in sizes:
            state = (folder / name).lstat()
            if not stat.S_ISREG(state.st_mode):
                raise ValueError(f"{shown(name, 80)} is not a regular file")
            sizes[name] = state.st_size
        start, length = place.offset, place.length
        if type(start) is not int or type(length) is not int or min(start, length) < 0 or start + length > sizes[name]:
            raise ValueError(f"{shown(name, 80)} is shorter than it says")
        if getattr(place, "transform_descriptors", None):
            raise ValueError("its shards are transformed")
    held = [kept for kept in found.state_dict_metadata.values() if isinstance(kept, TensorStorageMetadata)]
    if any(type(kept.size) is not torch.Size or type(kept.properties.dtype) is not torch.dtype for kept in held):
        raise ValueError("a tensor has no size and type")
    if sum(kept.size.numel() * kept.properties.dtype.itemsize for kept in held) > sum(sizes.values()):
        raise ValueError("its tensors are larger than its files")


class ShardReader(FileSystemReader):
    """torch's reader of shards; :func:`read_description` reads the description."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.description = read_description(folder)

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        kept = getattr(self.description, "storage_meta", None) or described.StorageMeta()
        kept.load_id, self.description.storage_meta = self.load_id, kept
        return self.description
