"""Locks a file for one process at a time. The system releases the lock when the process dies, however it dies."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import warnings
import weakref
from pathlib import Path

from vtlvlm.errors import DataError
from vtlvlm.system.text import shown

_held: set[Path] = set()
_LONGEST = 1000  # bytes of a lock file; it holds one line


class Taken(Exception):
    """Another process, or another part of this process, holds the lock.

    Attributes:
        owner: The owner in words; "" for this process.
    """

    def __init__(self, owner: str) -> None:
        super().__init__(owner or "this process")
        self.owner = owner


class FileLock:
    """A POSIX lock on a small file that names its owner. The file stays after the release.

    Args:
        path: The lock file; its folder exists.

    Raises:
        Taken: Another owner holds the lock.
        DataError: A link or another kind of file has this name. It is not written to.
        OSError: The file cannot be created.
    """

    def __init__(self, path: Path) -> None:
        path = path.parent.resolve() / path.name
        if path in _held:
            raise Taken("")
        if path.is_symlink():
            raise DataError(f"{path}: a link has the name of a lock; delete it")
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1 or status.st_size > _LONGEST:
            os.close(handle)
            raise DataError(f"{path}: another file has the name of a lock; move it away")
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            owner = shown(os.read(handle, 200).decode(errors="replace").strip()) or "unknown"
            os.close(handle)
            raise Taken(owner) from error
        except OSError as error:
            warnings.warn(f"{path.parent}: this file system has no locks ({error.strerror}); start one writer only", stacklevel=3)
        os.truncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        _held.add(path)
        self.release = weakref.finalize(self, _release, handle, path, os.getpid())


def _release(handle: int, path: Path, owner: int) -> None:
    if os.getpid() != owner:  # a forked child never held it
        return
    _held.discard(path)
    os.truncate(handle, 0)
    os.close(handle)
