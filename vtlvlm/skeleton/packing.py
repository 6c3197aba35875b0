"""Reads a folder of ``.skeleton`` files once, and packs the recordings into shards. A killed run leaves whole shards and can go on."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vtlvlm.data.index import default_store
from vtlvlm.data.listing import MOST_CLIPS, Listing
from vtlvlm.data.shards import FolderLock, save_json
from vtlvlm.errors import DataError
from vtlvlm.skeleton.layouts import NTU25
from vtlvlm.skeleton.packed import META, VERSION, Entry, Recordings, Shard, open_recordings, open_shard, read_meta, shard_files, write_shard
from vtlvlm.skeleton.reading import ENDING, Skeletons, read_skeleton
from vtlvlm.system.cpu import usable_cores
from vtlvlm.system.disk import require_space
from vtlvlm.system.files import replacing, tidied
from vtlvlm.system.text import shown

_SHARD_BYTES = 64 * 2**20
_SHARD_SECONDS = 60.0  # a killed process loses at most this much work
_SHARE = 0.25  # of a file's text that its recording takes in a shard, at most


def skeleton_files(root: Path) -> Listing:
    """All ``.skeleton`` files below a folder, sorted by path. Follows links; skips hidden folders.

    Raises:
        DataError: The folder does not exist, or holds no such file.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; name the one that holds the {ENDING} files")
    found: list[tuple[str, int, int]] = []
    seen: set[tuple[int, int]] = set()
    for folder, inner, names in os.walk(root, followlinks=True):
        here = os.stat(folder)  # noqa: PTH116
        if (here.st_dev, here.st_ino) in seen:
            inner.clear()
            continue
        seen.add((here.st_dev, here.st_ino))
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        for name in names:
            if name.endswith(ENDING) and not name.startswith("."):
                place = os.path.join(folder, name)  # noqa: PTH118 - a hundred thousand times
                path = os.path.relpath(place, root).replace(os.sep, "/")
                try:
                    status = os.stat(place)  # noqa: PTH116
                    found.append((path, status.st_size, status.st_mtime_ns))
                except OSError:
                    found.append((path, -1, -1))
    if not found:
        raise DataError(f"{root}: holds no {ENDING} files")
    if len(found) > MOST_CLIPS:
        raise DataError(f"{root}: holds {len(found):,} {ENDING} files; at most {MOST_CLIPS:,} can be in one set")
    paths, sizes, times = (list(column) for column in zip(*sorted(found), strict=True))
    return Listing(paths, sizes, times, {}, (), ())


def pack_folder(root: Path) -> Path:
    """The folder of shards that belongs to a folder of ``.skeleton`` files: inside it, or in the user's cache folder if it is read-only."""
    store = default_store(root)
    return store.with_name("skeletons" if store.name == "index.parquet" else f"skeletons-{store.stem.removeprefix('index-')}")


def pack(
    root: str | Path, folder: str | Path | None = None, *, verify: bool = False, workers: int | None = None, progress: bool = True
) -> Recordings:
    """Read new and changed ``.skeleton`` files into a folder of shards.

    Files that cannot be read are left out, each with its reason. They are tried again with ``verify``, or when other files are new.

    Args:
        root: Folder of ``.skeleton`` files, in any tree.
        folder: Folder of the shards; None for :func:`pack_folder`.
        verify: Compare the shards that are there with their digests. Damaged ones are made anew, in any case if their headers are damaged.
        workers: Files at once; None for one per core.
        progress: Show a progress bar after one second.

    Raises:
        DataError: No file can be used, the folder holds other files, another process writes to it, or the disk has no room.
    """
    root = Path(root)
    folder = pack_folder(root) if folder is None else Path(folder)
    listing = skeleton_files(root)
    wanted = list(zip(listing.paths, listing.sizes, listing.modified, strict=True))
    if not verify and _up_to_date(folder, wanted):
        return open_recordings(folder)  # without a lock: many trainings may start at once
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: cannot be made ({error.strerror}); name another folder") from error
    if not ((folder / META).exists() or shard_files(folder)) and any(not file.name.startswith(".") for file in folder.iterdir()):
        raise DataError(f"{folder}: holds other files; name a new folder for the recordings")
    lock = FolderLock(folder, 0)
    try:
        tidied(folder)
        held = {(entry.path, entry.size, entry.modified) for shard in _sound(folder, verify) for entry in shard.entries}
        if held and not {path for path, _, _ in held} & set(listing.paths):
            raise DataError(f"{folder}: holds recordings of other files than {root}; name another folder")
        pending = [key for key in wanted if key not in held]
        require_space(folder, int(_SHARE * sum(max(0, size) for _, size, _ in pending)), f"{len(pending):,} recordings")
        left_out = _read_all(root, folder, pending, workers, progress)
        recordings = [path for path in listing.paths if path not in left_out]
        if not recordings:
            first, reason = next(iter(left_out.items()))
            raise DataError(f"{root}: none of its {len(wanted):,} files can be used, the first being {shown(first)} ({reason})")
        meta = {"kind": "skeletons", "version": VERSION, "layout": NTU25.name, "recordings": recordings, "left_out": left_out}
        if (names := root / "classes.txt").is_file():
            with replacing(folder / names.name, follow=False) as temporary:
                temporary.write_bytes(names.read_bytes())
        save_json(folder / META, meta)
    finally:
        lock.release()
    return open_recordings(folder)


def _up_to_date(folder: Path, wanted: list[tuple[str, int, int]]) -> bool:
    """Whether a finished folder holds these files (path, size, time) as they are now, or has left them out."""
    try:
        meta = read_meta(folder)
        held = {(entry.path, entry.size, entry.modified) for file in shard_files(folder) for entry in open_shard(file).entries}
    except DataError:
        return False
    recordings = set(meta["recordings"])
    same = len(wanted) == len(recordings) + len(meta["left_out"])
    return same and all(key in held if key[0] in recordings else key[0] in meta["left_out"] for key in wanted)


def _sound(folder: Path, verify: bool) -> Iterator[Shard]:
    """The shards of a folder; damaged ones are deleted."""
    for file in shard_files(folder):
        try:
            shard = open_shard(file)
            sound = not verify or shard.sound()
        except DataError:
            sound = False
        if sound:
            yield shard
        else:
            file.unlink(missing_ok=True)


def _read_all(root: Path, folder: Path, pending: list[tuple[str, int, int]], workers: int | None, progress: bool) -> dict[str, str]:
    """Read files with threads, and write them into new shards, in order.

    Returns:
        Path → reason, for the files that cannot be used.
    """
    from tqdm import tqdm

    def work(key: tuple[str, int, int]) -> Skeletons | str:
        file = root / key[0]
        try:
            return read_skeleton(file)
        except (DataError, MemoryError) as error:
            return str(error).removeprefix(f"{file}: ") or "no memory is left"

    left_out: dict[str, str] = {}
    entries: list[Entry] = []
    ready: list[Skeletons] = []
    numbers = [int(file.stem.rpartition("-")[2]) for file in shard_files(folder)]
    number, size, since = max(numbers, default=-1) + 1, 0, time.monotonic()

    def flush() -> None:
        nonlocal number, size, since
        if ready:
            write_shard(folder / f"skeletons-{number:06}.safetensors", NTU25, entries, ready)
            number += 1
        entries.clear()
        ready.clear()
        size, since = 0, time.monotonic()

    with ThreadPoolExecutor(workers or usable_cores()) as pool:
        try:
            results = zip(pending, pool.map(work, pending), strict=True)
            for key, found in tqdm(results, total=len(pending), desc="reading skeletons", unit="file", delay=1, disable=not progress):
                if isinstance(found, str):
                    left_out[key[0]] = found
                    continue
                entries.append(Entry(*key, frames=found.joints.shape[1], bodies=found.joints.shape[0]))
                ready.append(found)
                size += 2 * found.joints.nbytes  # x, y, z, two pixels, state
                if size >= _SHARD_BYTES or time.monotonic() - since > _SHARD_SECONDS:
                    flush()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            flush()
            raise
    flush()
    return left_out
