"""Copies for browsers: frames at the times that `decode` gives, whatever the source is."""

import errno
from fractions import Fraction
from pathlib import Path
from threading import Event

import av
import numpy as np
import pytest
from videos import damaged, encode, moving_block

from vtlvlm.data import preview as module
from vtlvlm.data.container import VideoError
from vtlvlm.data.preview import browser_type, write_preview
from vtlvlm.data.video import Stopped, decode, probe
from vtlvlm.errors import DataError

BLOCK = moving_block(20, falls=True, shade=60)


def times(path: Path) -> np.ndarray:
    return decode(path, range(probe(path).frames), size=32).times.numpy()


@pytest.mark.parametrize(("name", "codec"), [("a.avi", "mpeg4"), ("a.mov", "mpeg4"), ("a.mp4", "libx264"), ("a.mkv", "libx265")])
def test_frames_and_times_stay(tmp_path: Path, name: str, codec: str) -> None:
    if codec == "libx265" and "libx265" not in av.codecs_available:
        pytest.skip("this FFmpeg encodes no HEVC")
    source = encode(tmp_path / name, BLOCK, codec=codec)
    write_preview(source, tmp_path / "copy.mp4")
    copy = decode(tmp_path / "copy.mp4", range(20), size=64)
    assert np.allclose(copy.times, times(source), atol=1e-4)
    assert np.abs(copy.frames.float() - decode(source, range(20), size=64).frames.float()).mean() < 6
    assert browser_type(tmp_path / "copy.mp4") == "video/mp4"
    assert (tmp_path / "copy.mp4").read_bytes().index(b"moov") < (tmp_path / "copy.mp4").read_bytes().index(b"mdat")  # plays while it loads


def test_uneven_times_and_a_late_start_stay_and_begin_at_0(tmp_path: Path) -> None:
    stamps = [7, 8, 9, 20, 21, 40]
    with av.open(str(tmp_path / "late.mkv"), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"bf": "0"})
        stream.width = stream.height = 64
        stream.pix_fmt, stream.time_base = "yuv420p", Fraction(1, 25)
        for stamp, picture in zip(stamps, BLOCK, strict=False):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = stamp, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    write_preview(tmp_path / "late.mkv", tmp_path / "copy.mp4")
    assert np.allclose(times(tmp_path / "copy.mp4"), (np.array(stamps) - 7) / 25, atol=0.001)
    with av.open(str(tmp_path / "copy.mp4")) as container:
        assert container.streams.video[0].start_time == 0


def test_a_copy_is_upright_and_small(tmp_path: Path) -> None:
    picture = np.zeros((3, 96, 64, 3), np.uint8)
    picture[:, :48] = 255
    source = encode(tmp_path / "turned.mp4", picture, rotation=90)
    assert probe(source).rotation != 0
    write_preview(source, tmp_path / "copy.mp4", side=32)
    info = probe(tmp_path / "copy.mp4")
    assert (info.width, info.height, info.rotation) == (48, 32, 0)
    one, other = (decode(path, [1], size=16).frames.float() for path in (source, tmp_path / "copy.mp4"))
    assert np.abs(one - other).mean() < 8


@pytest.mark.parametrize(
    ("name", "codec", "kind"),
    [("a.mp4", "libx264", "video/mp4"), ("a.avi", "mpeg4", None), ("a.mkv", "ffv1", None), ("a.webm", "libvpx", "video/webm")],
)
def test_what_browsers_play(tmp_path: Path, name: str, codec: str, kind: str | None) -> None:
    if codec not in av.codecs_available:
        pytest.skip(f"this FFmpeg has no {codec}")
    file = encode(tmp_path / name, BLOCK, codec=codec)
    assert browser_type(file.rename(tmp_path / "upload")) == kind  # by its content, without an ending


def test_of_several_pictures_the_browser_may_choose_another(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "two.mp4"), "w") as container:
        streams = [container.add_stream("libx264", rate=25, options={"bf": "0"}) for _ in range(2)]
        for stream in streams:
            stream.width = stream.height = 64
            stream.pix_fmt = "yuv420p"
        for picture in BLOCK:
            for stream in streams:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        for stream in streams:
            container.mux(stream.encode(None))
    assert browser_type(tmp_path / "two.mp4") is None


def test_progress_and_stop(tmp_path: Path) -> None:
    source, seen, stop = encode(tmp_path / "a.avi", BLOCK, codec="mpeg4"), [], Event()

    def progress(seconds: float) -> None:
        seen.append(seconds)
        if len(seen) == 5:
            stop.set()

    with pytest.raises(Stopped):
        write_preview(source, tmp_path / "copy.mp4", progress=progress, stop=stop)
    assert np.allclose(seen, np.arange(5) / 25)
    assert [path.name for path in tmp_path.iterdir()] == ["a.avi"]


def test_damage_and_a_full_disk_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = damaged(tmp_path / "a.avi")
    with pytest.raises(VideoError, match="damaged"):
        write_preview(source, tmp_path / "copy.mp4")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "_encode", full)
    with pytest.raises(DataError, match="cannot be written"):
        write_preview(source, tmp_path / "copy.mp4")
    assert [path.name for path in tmp_path.iterdir()] == ["a.avi"]


def test_playlists_are_refused(tmp_path: Path) -> None:
    encode(tmp_path / "secret.mp4", BLOCK)
    for text in ("ffconcat version 1.0\nfile secret.mp4\n", f"#EXTM3U\n#EXTINF:1,\n{tmp_path}/secret.mp4\n"):
        (tmp_path / "upload").write_text(text)
        with pytest.raises(VideoError, match="playlist"):
            write_preview(tmp_path / "upload", tmp_path / "copy.mp4")
        with pytest.raises(VideoError, match="playlist"):
            browser_type(tmp_path / "upload")
