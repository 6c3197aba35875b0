"""Writes files and folders whole or not at all, whatever happens in between.

Each writer works on a temporary neighbour of its target, named ``.NAME.HOST.PID.TOKEN.tmp``. Two processes, or two machines on one shared
disk, never write the same temporary. The next writer of the same target on the same machine removes the temporaries of killed processes.
"""

from __future__ import annotations

import json
import math
import os
import re
import secrets
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

SUFFIX = ".tmp"


@contextmanager
def replacing(path: str | Path, *, follow: bool = True, tidy: bool = True) -> Iterator[Path]:
    """Yield a temporary file to write. If the block ends well, syncs it to the disk and renames it to ``path``, replacing an older file.
    Otherwise removes it and leaves ``path`` unchanged.

    Args:
        path: The file to write.
        follow: Follow a symbolic link and replace its target; otherwise replace the link itself.
        tidy: Remove temporaries of this target from dead processes. This reads the whole folder; for very many files, call ``tidied`` once
            instead.

    Yields:
        The temporary file, in the same folder; it does not exist yet.

    Raises:
        OSError: The file cannot be written.
    """
    target = _target(path) if follow else Path(os.path.abspath(path))  # noqa: PTH100
    temporary = _temporary(target, tidy)
    try:
        yield temporary
        sync(temporary)
        temporary.replace(target)
        sync(target.parent)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


@contextmanager
def appearing(folder: str | Path) -> Iterator[Path]:
    """Yield a temporary folder to fill. If the block ends well, renames it to ``folder``; otherwise removes it.

    Args:
        folder: The folder to create. If it exists, it must be empty.

    Yields:
        The temporary folder beside ``folder``; it exists and is empty.

    Raises:
        OSError: The folder cannot be written, or another process has filled ``folder`` meanwhile.
    """
    target = Path(os.path.abspath(folder))  # noqa: PTH100 - a link that ends in the name is not followed
    temporary = _temporary(target)
    temporary.mkdir()
    try:
        yield temporary
        for inner, _, names in os.walk(temporary):
            for name in names:
                sync(Path(inner, name))
            sync(Path(inner))
        temporary.rename(target)
        sync(target.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def write_text(path: str | Path, text: str, *, follow: bool = True) -> None:
    """Write UTF-8 text, whole or not at all. ``follow`` is as for ``replacing``."""
    with replacing(path, follow=follow) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON (UTF-8, indented), whole or not at all. Writes nan and infinity as null, and creates parent folders."""
    text = json.dumps(nan_as_none(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def nan_as_none(value: Any) -> Any:
    """The value for JSON, with None for every number that is not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: nan_as_none(inner) for key, inner in value.items()}
    return [*map(nan_as_none, value)] if isinstance(value, list | tuple) else value


def sync(path: Path) -> None:
    """Flush a file or folder to the disk, if the file system supports it."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if path.is_file() and error.errno in _LOST:
            raise
    finally:
        os.close(handle)


_LOST = {5, 28, 122}  # EIO, ENOSPC, EDQUOT: the content is not on the disk; file systems without fsync raise other errors


def _target(path: str | Path) -> Path:
    return Path(os.path.realpath(path)) if os.path.islink(path) else Path(os.path.abspath(path))  # noqa: PTH100, PTH114


def tidied(folder: str | Path) -> None:
    """Remove temporary files of this machine's dead processes in a folder and below it. Does not follow links."""
    marks = re.compile(rf"\..+\.{re.escape(_host())}\.(\d+\.[0-9a-f]+\.tmp)")
    for inner, _, names in os.walk(folder):
        for name in names:
            found = marks.fullmatch(name)
            if found and _abandoned(found[1]):
                Path(inner, name).unlink(missing_ok=True)


def _temporary(target: Path, tidy: bool = True) -> Path:
    """A new name beside a target. Creates the target's folder, and removes the target's temporaries of dead processes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    short = os.fsencode(target.name)[:120].decode(errors="ignore")  # names have 255 bytes at most
    start = f".{short}.{_host()}."
    for left in target.parent.iterdir() if tidy else ():
        if left.name.startswith(start) and left.name.endswith(SUFFIX) and _abandoned(left.name.removeprefix(start)):
            if left.is_dir() and not left.is_symlink():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)
    return target.with_name(f"{start}{os.getpid()}.{secrets.token_hex(4)}{SUFFIX}")


def _abandoned(rest: str) -> bool:
    """Whether ``PID.TOKEN.tmp`` belongs to a dead process of this machine."""
    pid = rest.partition(".")[0]
    if not pid.isdecimal() or int(pid) == os.getpid():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        return False
    return False


def _host() -> str:
    return "".join(c if c.isalnum() or c == "-" else "-" for c in socket.gethostname())[:64] or "host"
