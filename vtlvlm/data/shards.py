"""Reads and writes the files of a cache folder: memory-mapped safetensors, written whole or not at all. Locks the folder for each rank."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from vtlvlm.errors import DataError
from vtlvlm.system.files import replacing
from vtlvlm.system.locks import FileLock, Taken

_TYPES = {"F16": "<f2", "F32": "<f4", "U16": "<u2", "I16": "<i2", "I64": "<i8"}  # safetensors' names of the caches' types
LOCK = ".lock-r00000"
"""The first writer's lock. It stays in the folder and shows that vtlvlm made the folder"""


class TensorFile(NamedTuple):
    """One tensor of a safetensors file, not yet read."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    metadata: dict[str, str]

    def map(self) -> NDArray[Any]:
        """The tensor as a read-only memory map. It keeps no file open, unlike ``np.memmap``: a cache may have thousands of shards.

        Raises:
            DataError: The file has vanished or has been cut since its header was read, or the system maps no more memory.
        """
        import torch  # here alone: commands that only read names and headers start without it

        end = self.offset + math.prod(self.shape) * np.dtype(self.dtype).itemsize
        try:
            mapped: Any = torch.UntypedStorage.from_file(str(self.path), False, end)
        except RuntimeError as error:
            again = "run the command that made the cache again"
            if not self.path.is_file():
                raise DataError(f"{self.path}: no such file any more; {again}") from error
            if self.path.stat().st_size < end:
                raise DataError(f"{self.path}: shorter than it was when the cache was opened; delete it and {again}") from error
            raise DataError(
                f"{self.path}: the system cannot map it into memory; limit the memory of this process less (ulimit -v)"
            ) from error
        array = torch.empty(0, dtype=torch.uint8, device="cpu").set_(mapped).numpy()[self.offset :].view(self.dtype).reshape(self.shape)
        array.flags.writeable = False
        return array


def open_tensor(path: Path, name: str) -> TensorFile:
    """Read the header of a safetensors file with one tensor.

    Raises:
        DataError: The file is damaged, or holds other tensors.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            if list(file.keys()) != [name]:
                raise ValueError("it holds something else")
            tensor, metadata = file.get_slice(name), file.metadata() or {}
            shape, dtype = tuple(tensor.get_shape()), _TYPES[tensor.get_dtype()]
        if not 0 < len(shape) <= 4 or 0 in shape:
            raise ValueError("its tensor has no shape")
        size = math.prod(shape) * np.dtype(dtype).itemsize  # the tensor ends the file: the library refuses gaps
        return TensorFile(path, dtype, shape, path.stat().st_size - size, metadata)
    except (OSError, SafetensorError, ValueError, KeyError, MemoryError) as error:
        raise DataError(f"{path}: damaged cache file; delete it and run the command that made the cache again") from error


def save_tensors(path: Path, tensors: dict[str, NDArray[Any]], metadata: dict[str, str]) -> None:
    """Write a safetensors file, whole or not at all."""
    with _writing(path) as temporary:
        temporary.write_bytes(save({name: np.ascontiguousarray(array) for name, array in tensors.items()}, metadata=metadata))


def save_json(path: Path, value: Any) -> None:
    """Write JSON, whole or not at all."""
    with _writing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")


@contextmanager
def _writing(path: Path) -> Iterator[Path]:
    try:
        with replacing(path) as temporary:
            yield temporary
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written ({error.strerror}); finished shards stay, the same command continues from there"
        ) from error


class FolderLock:
    """A lock that allows one writer for each rank in a cache folder.

    Args:
        folder: The cache folder.
        rank: Number of the writing process.

    Raises:
        DataError: Another process, or another writer in this process, holds the lock.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        try:
            self._lock = FileLock(folder / f".lock-r{rank:05}")
        except Taken as error:
            if not error.owner:
                raise DataError(f"{folder}: this process already writes to it; close the first writer") from error
            raise DataError(
                f"{folder}: another process writes to it ({error.owner}); wait for it, stop it, or name another folder"
            ) from error
        self.release = self._lock.release
