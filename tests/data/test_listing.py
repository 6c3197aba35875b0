"""Looking through a tree: endings, first bytes, links, and what cannot be looked at."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from videos import encode, moving_block

from vtlvlm.commands.classify import videos
from vtlvlm.data.index import ClipIndex
from vtlvlm.data.listing import VIDEO_ENDINGS, looks_like_a_video, videos_in
from vtlvlm.errors import DataError


@pytest.mark.parametrize(
    "ending",
    [
        ".mp4",
        ".mov",
        ".mkv",
        ".webm",
        ".avi",
        ".flv",
        ".ts",
        ".mpg",
        ".wmv",
        ".3gp",
        ".m4v",
        ".gif",
        ".mxf",
        ".vob",
        ".y4m",
        ".ivf",
        ".nut",
    ],
)
def test_what_containers_begin_with(ending: str, tmp_path: Path) -> None:
    """A file is found under its own ending in any capitals, without any, and under one that nobody knows."""
    import av

    containers = {".mpg": ("mpeg", "mpeg1video"), ".wmv": ("asf", "mpeg4"), ".vob": ("vob", "mpeg2video"), ".mxf": ("mxf", "mpeg2video")}
    kind, codec = containers.get(
        ending, (None, {".webm": "libvpx", ".ivf": "libvpx", ".y4m": "rawvideo", ".flv": "flv1", ".gif": "gif"}.get(ending, "mpeg4"))
    )
    made = tmp_path / f"made{ending}"
    with av.open(str(made), "w", format=kind) as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 176, 144, "rgb8" if codec == "gif" else "yuv420p"
        for picture in moving_block(8, 176, falls=True, shade=40)[:, :144]:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    for name in (f"A{ending.upper()}", "b", "c.xyz", "d.2019"):
        (tmp_path / "set" / "walk").mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / "walk" / name).write_bytes(made.read_bytes())
    assert looks_like_a_video(made.read_bytes()[:1024])
    assert videos_in(tmp_path / "set").paths == [f"walk/A{ending.upper()}", "walk/b", "walk/c.xyz", "walk/d.2019"]


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"#!/bin/sh\n",
        b"\xff\xd8\xff\xe0",
        b"\x89PNG\r\n\x1a\n",
        b"RIFF\0\0\0\0WAVEfmt ",
        b"PK\3\4",
        b"\x7fELF",
        b"%PDF-1.7",
        b"\0" * 1024,
        b"\0\0\0\x18ftypM4A ",
        b"\0\0\0\x18ftypheic",
        b"G" * 10,
        b"#EXTM3U\n",
        b"ffconcat version 1.0",
        b"\0\1\0\0\0\x12",
        b"ID3\4",
    ],
)
def test_what_is_no_video_does_not_look_like_one(head: bytes) -> None:
    assert not looks_like_a_video(head)


def test_endings_that_cameras_write() -> None:
    asked = ".MTS .m2ts .3gp .gif .vob .ogv .mxf .divx .asf .rm .f4v .h265 .hevc .ts .avi"
    assert {ending.lower() for ending in asked.split()} <= VIDEO_ENDINGS
    assert all(ending == ending.lower() for ending in VIDEO_ENDINGS)


def test_links_that_would_multiply_a_tree(tmp_path: Path) -> None:
    for level in range(40):  # 2^40 paths
        folder = tmp_path / f"d{level}"
        folder.mkdir()
        for name in "ab":
            (folder / name).symlink_to(f"../d{level + 1}")
    (tmp_path / "d0" / "self").symlink_to("self")
    (tmp_path / "d0" / "top").symlink_to("/")
    encode(tmp_path / "d40" / "x.mp4", moving_block(4, 32, falls=True, shade=1))
    listing = videos_in(tmp_path)
    assert listing.paths == ["d40/x.mp4"]
    assert any(note.startswith("folders reached twice, searched once: 81 (") for note in listing.notes)
    assert listing.lost == ("dead links: 1 (d0/self)",)


def test_hard_links_are_one_clip(tmp_path: Path) -> None:
    encode(tmp_path / "walk" / "a.mp4", moving_block(4, 32, falls=True, shade=1))
    encode(tmp_path / "run" / "c.mp4", moving_block(4, 32, falls=True, shade=99))
    os.link(tmp_path / "walk" / "a.mp4", tmp_path / "run" / "b.mp4")
    index = ClipIndex.scan(tmp_path, progress=False)
    assert index.problem.tolist() == ["", "", "the same file as run/b.mp4"]
    assert [file.name for file in videos(tmp_path)[0]] == ["b.mp4", "c.mp4"]


def test_a_folder_that_cannot_be_looked_at_is_named(tmp_path: Path) -> None:
    encode(tmp_path / "walk" / "a.mp4", moving_block(4, 32, falls=True, shade=1))
    here = os.open(tmp_path / "walk", os.O_RDONLY)  # as far below as no path can name
    try:
        for _ in range(30):
            os.mkdir("n" * 200, dir_fd=here)
            deeper = os.open("n" * 200, os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = deeper
    finally:
        os.close(here)
    listing = videos_in(tmp_path)
    assert listing.paths == ["walk/a.mp4"]
    assert listing.lost[0].startswith("cannot be read: 1 (walk/nnn")
    assert listing.lost[0].endswith("(file name too long))") or "..." in listing.lost[0]
    index = ClipIndex.scan(tmp_path, progress=False)
    with pytest.warns(UserWarning, match="cannot be read: 1"):
        index.warn_excluded()


def test_a_video_that_is_deleted_meanwhile_takes_no_other_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "abcdef":
        encode(tmp_path / "walk" / f"{name}.mp4", moving_block(4, 32, falls=True, shade=1))
    listed: list[str] = []
    entries_of = os.scandir

    @contextmanager
    def slowly(folder: str) -> Iterator[Iterator[os.DirEntry[str]]]:
        """Somebody deletes the second video once its folder has been read."""
        with entries_of(folder) as entries:
            found = list(entries)
        if folder.endswith("walk"):
            listed.extend(entry.name for entry in found)
            Path(found[1].path).unlink()
        yield iter(found)

    monkeypatch.setattr(os, "scandir", slowly)
    listing = videos_in(tmp_path)
    assert listing.paths == [f"walk/{name}.mp4" for name in "abcdef"]
    assert [path for path, size in zip(listing.paths, listing.sizes, strict=True) if size < 0] == [f"walk/{listed[1]}"]
    assert listing.lost == ()


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_folder_without_rights_is_named(tmp_path: Path) -> None:
    encode(tmp_path / "walk" / "a.mp4", moving_block(4, 32, falls=True, shade=1))
    (tmp_path / "closed").mkdir(mode=0)
    assert videos_in(tmp_path).lost == ("cannot be read: 1 (closed (permission denied))",)
    with pytest.raises(DataError, match="cannot be searched"):
        videos_in(tmp_path / "closed")
