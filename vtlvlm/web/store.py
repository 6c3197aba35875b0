"""Keeps uploads: each in a folder of its own below one private temporary folder, under a name that nobody can guess or choose."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import socket
import tempfile
import time
import weakref
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from vtlvlm.system.disk import readable

SPARE = 64 << 20
"""Bytes of the disk that an upload leaves free"""
PATIENCE = 30.0
"""Seconds between two parts of an upload, at most"""
_PREFIX = "vtlvlm-web-"


@dataclass
class Stored:
    """An upload.

    Attributes:
        name: What the client calls it by.
        file: Its content. The name has no ending, and nothing of it comes from the client.
        size: Bytes.
        used: When it was last asked for, in seconds of the store's clock.
        held: Works that need its file; it does not expire meanwhile.
        extra: Whatever the server keeps with it.
    """

    name: str
    file: Path
    size: int = 0
    used: float = 0.0
    held: int = 0
    extra: Any = None


class Store:
    """Uploads of clients.

    Args:
        limit: Bytes of an upload, at most.
        keep: Seconds after which one that nobody asks for is removed.
        most: Uploads at one time, at most.
        parent: Where the private folder is made; None for the system's folder of temporary files.
    """

    def __init__(self, limit: int, keep: float, most: int = 64, parent: Path | None = None) -> None:
        self.limit, self.keep, self.most = limit, keep, most
        place = Path(tempfile.gettempdir() if parent is None else parent)
        remove_abandoned(place)
        self.folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{_host()}-{os.getpid()}-", dir=place))  # 0700
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)  # however the process ends, short of a kill
        self._items: dict[str, Stored] = {}
        self._arriving = 0

    def __len__(self) -> int:
        return len(self._items)

    def items(self) -> list[Stored]:
        """All uploads."""
        return list(self._items.values())

    def get(self, name: str) -> Stored:
        """An upload by its name.

        Raises:
            HTTPException: 404 if there is none.
        """
        self.sweep()
        if (found := self._items.get(name)) is None:
            raise HTTPException(404, "no such clip: it was removed, or the server was started anew; send it again")
        found.used = time.monotonic()
        return found

    def remove(self, name: str) -> None:
        """Remove an upload, at once. One that does not exist is no error."""
        if (found := self._items.pop(name, None)) is not None:
            shutil.rmtree(found.file.parent, ignore_errors=True)

    def sweep(self) -> None:
        """Remove what nobody has asked for in ``keep`` seconds."""
        now = time.monotonic()
        for name in [name for name, one in self._items.items() if not one.held and now - one.used > self.keep]:
            self.remove(name)

    def close(self) -> None:
        """Remove everything."""
        self._items.clear()
        shutil.rmtree(self.folder, ignore_errors=True)

    async def receive(self, request: Request) -> Stored:
        """Keep the body of a request. The limits are checked while it arrives; what is refused leaves nothing behind.

        Raises:
            HTTPException: 413 beyond the limit, 422 for an empty body, 408 for one that stalls, 507 if the disk or the store is full.
        """
        self.sweep()
        if len(self._items) + self._arriving >= self.most:
            raise HTTPException(507, f"the server holds {self.most} clips already; remove one, or wait until the oldest expires")
        self._require_size(request.headers.get("content-length", ""))
        name = secrets.token_urlsafe(18)
        stored = Stored(name, self.folder / name / "upload")
        self._arriving += 1
        try:
            stored.file.parent.mkdir(mode=0o700)
            stored.size = await self._write(request.stream(), stored.file)
            stored.used = time.monotonic()
        except BaseException as error:
            shutil.rmtree(stored.file.parent, ignore_errors=True)
            if isinstance(error, ClientDisconnect):
                raise HTTPException(400, "the upload broke off; send it again") from error
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise HTTPException(507, f"the server's disk is full ({self.folder.parent}); make room there and send it again") from error
            raise
        finally:
            self._arriving -= 1
        self._items[name] = stored
        return stored

    def _require_size(self, declared: str) -> None:
        size = int(declared) if declared.isdecimal() and len(declared) < 20 else 0
        if size > self.limit:
            raise HTTPException(413, f"larger than {readable(self.limit)}, which this server takes at most; send a shorter piece")
        if size + SPARE > shutil.disk_usage(self.folder).free:
            raise HTTPException(507, f"the server's disk is full ({self.folder.parent}); make room there and send it again")

    async def _write(self, parts: AsyncIterator[bytes], file: Path) -> int:
        size, source = 0, aiter(parts)
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            while True:
                try:
                    with anyio.fail_after(PATIENCE):
                        part = await anext(source)
                except StopAsyncIteration:
                    break
                except TimeoutError as error:
                    raise HTTPException(408, f"nothing arrived for {PATIENCE:.0f} s; send it again") from error
                size += len(part)
                if size > self.limit:
                    raise HTTPException(413, f"larger than {readable(self.limit)}, which this server takes at most; send a shorter piece")
                if part:
                    await anyio.to_thread.run_sync(_write_all, handle, part)
        finally:
            os.close(handle)
        if not size:
            raise HTTPException(422, "an empty file (0 bytes); send a video")
        return size


async def body_of(request: Request, most: int = 1 << 16) -> bytes:
    """The body of a small request.

    Raises:
        HTTPException: 413 if it has more than ``most`` bytes.
    """
    found = bytearray()
    async for part in request.stream():
        found += part
        if len(found) > most:
            raise HTTPException(413, f"more than {readable(most)}")
    return bytes(found)


def _write_all(handle: int, part: bytes) -> None:
    left = memoryview(part)
    while left:
        left = left[os.write(handle, left) :]


def remove_abandoned(place: Path) -> None:
    """Remove the stores that killed servers of this user and machine have left in a folder."""
    start = f"{_PREFIX}{_host()}-"
    for folder in place.glob(f"{start}*"):
        number = folder.name.removeprefix(start).partition("-")[0]
        if number.isdecimal() and not folder.is_symlink() and folder.stat().st_uid == os.getuid() and _dead(int(number)):
            shutil.rmtree(folder, ignore_errors=True)


def _dead(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        return False
    return False


def _host() -> str:
    return "".join(c for c in socket.gethostname() if c.isalnum())[:32] or "host"
