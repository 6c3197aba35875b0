"""Finds the videos below a folder, and counts all other files. Every command searches folders this way.

The search follows links to files and folders, and enters each folder once. It skips hidden folders and those of archives and operating
systems. It lists files with a video's ending or a video's first bytes; only opening a file shows whether it is a video. It counts all other
files by their endings.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter
from collections.abc import Iterable
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

from vtlvlm.errors import DataError
from vtlvlm.system.places import real
from vtlvlm.system.text import shown

_VIDEOS = """
    .264 .265 .3g2 .3gp .amv .asf .avc .avi .divx .dv .f4v .flv .gif .h264 .h265 .hevc .ivf .m1v .m2p .m2t .m2ts .m2v .m4v .mjpeg .mjpg .mkv
    .mov .mp4 .mpe .mpeg .mpg .mpv .mts .mxf .nut .ogm .ogv .qt .rm .rmvb .tod .ts .vob .webm .wmv .wtv .xvid .y4m
"""
VIDEO_ENDINGS = frozenset(_VIDEOS.split())
"""Endings of videos, in lower case"""
_OTHERS = """
    .7z .aac .aup .bak .bib .bin .bmp .bz2 .c .cfg .conf .cpp .csv .ctl .db .dll .doc .docx .dtd .exe .flac .gitignore .gz .h .h5 .hdf5
    .heic .htm .html .ini .ipynb .jpeg .jpg .js .json .jsonl .lock .log .m .m4a .mat .md .mid .mp3 .npy .npz .onnx .opus .parquet .part
    .pdf .pickle .pkl .png .ppt .pptx .pt .pth .py .pyc .rar .rst .safetensors .sh .sha256 .skeleton .so .sqlite .srt .svg .tar .tex
    .tfrecord .tgz .tif .tiff .tmp .tsv .txt .vtt .wav .webp .xls .xlsx .xml .xz .yaml .yml .zip .zst
"""
_NO_VIDEO = frozenset(_OTHERS.split())  # these files are not opened: there may be as many as videos
_FOREIGN_FOLDERS = frozenset(
    {"__macosx", "@eadir", "@recycle", "@tmp", "#recycle", "#snapshot", "$recycle.bin", "recycler", "system volume information"}
    | {"lost+found", "__pycache__"}
)
_FOREIGN_FILES = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", ".ds_store", "icon\r", "synofile_thumb"})
OWN_FOLDER = ".vtlvlm"
MOST_CLIPS = 5_000_000
"""Videos in a set, at most: forty times NTU RGB+D 120"""


class Listing(NamedTuple):
    """Videos below a folder, sorted by path, and lines about everything else."""

    paths: list[str]
    """Relative to the folder, with forward slashes"""
    sizes: list[int]
    """Bytes; -1 for a dead link"""
    modified: list[int]
    """Nanoseconds since 1970; -1 for a dead link"""
    again: dict[str, str]
    """Path → an earlier path of the same file. One of the two is a symbolic or hard link"""
    notes: tuple[str, ...]
    """Lines about skipped files and folders"""
    lost: tuple[str, ...]
    """Lines about unreadable files and folders"""


class _Walk:
    """A walk through a tree. It follows links to folders after all real folders."""

    def __init__(self, root: Path, own: Iterable[Path]) -> None:
        self.found: list[tuple[bool, str, int, int, int]] = []  # by a link, path, size, time, device and inode
        self.others: Counter[str] = Counter()
        self.foreign: Counter[str] = Counter()
        self.hidden: list[str] = []
        self.repeated: list[str] = []
        self.unreadable: list[str] = []
        self.dead: list[str] = []
        self.root, self.above = root, {_key(parent) for parent in real(root).parents}
        self.own = {os.path.abspath(file) for file in own}  # noqa: PTH100 - a link stays one
        self.seen: dict[tuple[int, int], str] = {}

    def go(self) -> None:
        links = [("", False)]
        while links:
            links = sorted(link for start in links for link in self._below(*start))

    def _below(self, start: str, by_link: bool) -> list[tuple[str, bool]]:
        """Visit a folder and the real folders below it. Returns the links to folders."""
        links: list[tuple[str, bool]] = []
        folders = [start]
        while folders:
            folder = folders.pop()
            place = os.path.join(self.root, folder)  # noqa: PTH118 - a hundred thousand times
            try:
                key = _key(place)
                if key in self.seen or (by_link and key in self.above):
                    self.repeated.append(f"{folder} (the same as {self.seen.get(key) or 'the folder itself or one above'})")
                    continue
                self.seen[key] = folder
                with os.scandir(place) as entries:
                    self._sort(folder + "/" if folder else "", entries, by_link, folders, links)
            except OSError as error:
                if not folder:
                    raise DataError(f"{self.root}: cannot be searched ({error.strerror}); make it readable") from error
                self.unreadable.append(f"{folder} ({(error.strerror or str(error)).lower()})")
        return links

    def _sort(
        self, prefix: str, entries: Iterable[os.DirEntry[str]], by_link: bool, folders: list[str], links: list[tuple[str, bool]]
    ) -> None:
        for entry in entries:
            name = entry.name
            if name[name.rfind(".") :] in VIDEO_ENDINGS and name[0] != "." and entry.is_file(follow_symlinks=False):
                try:
                    status = entry.stat(follow_symlinks=False)
                except OSError:  # deleted meanwhile
                    self._file(entry, prefix + name, by_link)
                    continue
                self.found.append((by_link, prefix + name, status.st_size, status.st_mtime_ns, status.st_dev << 64 | status.st_ino))
                continue
            path, linked = prefix + name, entry.is_symlink()
            if _is_folder(entry):
                if name.casefold() in _FOREIGN_FOLDERS:
                    self.foreign[name] += 1
                elif name.startswith("."):
                    if name != OWN_FOLDER:
                        self.hidden.append(path)
                elif linked:
                    links.append((path, True))
                else:
                    folders.append(path)
            elif name.startswith("._") or name.casefold() in _FOREIGN_FILES:
                self.foreign["._*" if name.startswith("._") else name] += 1
            else:
                self._file(entry, path, linked or by_link)

    def _file(self, entry: os.DirEntry[str], path: str, linked: bool) -> None:
        dot = entry.name.rfind(".", 1)
        ending = entry.name[dot:].lower() if dot > 0 else ""
        video = ending in VIDEO_ENDINGS
        try:
            if video or not (ending in _NO_VIDEO or entry.name.startswith(".")):
                status = entry.stat()
                if video or (stat.S_ISREG(status.st_mode) and _begins_as_a_video(entry.path)):
                    self.found.append((linked, path, status.st_size, status.st_mtime_ns, status.st_dev << 64 | status.st_ino))
                    return
        except OSError as error:
            if video:
                self.found.append((linked, path, -1, -1, 0))
            elif linked and error.errno in (errno.ENOENT, errno.ELOOP):
                self.dead.append(path)
            else:
                self.unreadable.append(f"{path} ({(error.strerror or str(error)).lower()})")
            return
        if os.path.abspath(entry.path) not in self.own:  # noqa: PTH100
            self.others[ending or "no ending"] += 1


def videos_in(root: Path, own: Iterable[Path] = ()) -> Listing:
    """Find all videos below a folder.

    Args:
        root: The folder.
        own: Files of the data set that are not counted, such as its list of classes.

    Raises:
        DataError: The folder cannot be read, or holds more than ``MOST_CLIPS`` videos.
    """
    walk = _Walk(root, own)
    walk.go()
    if len(walk.found) > MOST_CLIPS:
        raise DataError(f"{root}: holds {len(walk.found):,} videos; at most {MOST_CLIPS:,} can be in one set")
    walk.found.sort()
    again = _again(walk.found)
    if walk.found and walk.found[-1][0]:
        walk.found.sort(key=itemgetter(1))
    paths, sizes, times = (list(map(itemgetter(column), walk.found)) for column in (1, 2, 3))
    return Listing(paths, sizes, times, again, _notes(walk), _lost(walk))


_NUMBER = 2**64 - 1


def _again(found: list[tuple[bool, str, int, int, int]]) -> dict[str, str]:
    """Path → an earlier path of the same file. Ignores inode number 0: some file systems give it to every file."""
    first: dict[int, str] = {}
    again = {}
    for _, path, _, _, key in found:
        if key & _NUMBER and (other := first.setdefault(key, path)) is not path:
            again[path] = other
    return again


def _key(place: str | Path) -> tuple[int, int]:
    status = os.stat(place)  # noqa: PTH116
    return status.st_dev, status.st_ino


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _begins_as_a_video(file: str) -> bool:
    handle = os.open(file, os.O_RDONLY | os.O_NONBLOCK)
    try:
        return looks_like_a_video(os.read(handle, 1024))
    finally:
        os.close(handle)


_STILL_OR_SOUND = {b"M4A ", b"M4B ", b"M4P ", b"heic", b"heix", b"hevc", b"mif1", b"msf1", b"avif", b"avis", b"crx ", b"jxl "}
_STARTS = (
    b"\x1aE\xdf\xa3",  # Matroska, WebM
    b"FLV\x01",
    b"OggS",
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11",  # ASF, WMV
    b"\x00\x00\x01\xba",  # MPEG program stream
    b"\x00\x00\x01\xb3",  # MPEG video
    b"\x00\x00\x00\x01\x67",  # H.264
    b"\x00\x00\x00\x01\x09",
    b"\x00\x00\x00\x01\x40\x01",  # HEVC
    b"GIF8",
    b"\x06\x0e\x2b\x34",  # MXF
    b"DKIF",  # IVF
    b"YUV4MPEG2",
    b".RMF",
    b"nut/multimedia container",
    b"\x1f\x07\x00",  # DV
    b"\xb7\xd8\x00\x20\x37\x49\xda\x11",  # WTV
)


def looks_like_a_video(head: bytes) -> bool:
    """Whether a file's first bytes (a few hundred) start a video container or stream."""
    if head.startswith(_STARTS) or (head[:4] == b"RIFF" and head[8:12] in (b"AVI ", b"AMV ", b"CDXA")):
        return True
    if head[4:8] == b"ftyp":
        return head[8:12] not in _STILL_OR_SOUND
    if head[4:8] in (b"moov", b"mdat", b"wide", b"pnot"):
        return True
    return any(
        len(head) > at + 2 * step and {head[at], head[at + step], head[at + 2 * step]} == {0x47} for at, step in ((0, 188), (4, 192))
    )


def _notes(walk: _Walk) -> tuple[str, ...]:
    others = f"{walk.others.total():,} other files passed over ({counted(walk.others)})" if walk.others else ""
    hidden = _named("hidden folders skipped", walk.hidden)
    foreign = f"files and folders of archives and systems skipped: {counted(walk.foreign)}" if walk.foreign else ""
    repeated = _named("folders reached twice, searched once", walk.repeated)
    return tuple(filter(None, (others, hidden, foreign, repeated)))


def _lost(walk: _Walk) -> tuple[str, ...]:
    return tuple(filter(None, (_named("cannot be read", walk.unreadable), _named("dead links", walk.dead))))


def _named(title: str, paths: list[str]) -> str:
    """A line with the number of paths and the first few; "" for no path."""
    return f"{title}: {some(sorted(paths))}" if paths else ""


def counted(counts: Counter[str], most: int = 8) -> str:
    """Kinds with their counts, most frequent first."""
    listed = ", ".join(
        f"{shown(kind, 60)} {count:,}" for kind, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:most]
    )
    return f"{listed}, and {len(counts) - most} other kinds" if len(counts) > most else listed


def some(names: list[str], count: int | None = None, most: int = 5) -> str:
    """The number of names and the first few."""
    count = len(names) if count is None else count
    return f"{count:,} ({', '.join(shown(name, 200) for name in names[:most])}{', ...' if count > most else ''})"
