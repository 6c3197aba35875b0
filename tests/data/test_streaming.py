"""Streams from a server on this machine that is slow, goes silent, breaks off and comes back."""

import time

import numpy as np
import pytest
from streams import sends, server, transport_stream

from vtlvlm.data.sampling import FrameSampling
from vtlvlm.data.streaming import LiveStream, is_stream, require_camera, without_password
from vtlvlm.errors import DataError

SAMPLING = FrameSampling(frames=4, size=16)


def test_pieces_after_a_break_and_their_times() -> None:
    """Two connections are two pieces, whose times go on with the clock; pictures are those that were sent."""
    content, lines = transport_stream([40, 200]), []
    with server(sends(content), sends(content)) as address, LiveStream(address, SAMPLING, give_up=3.0, say=lines.append) as stream:
        pieces = []
        for piece in stream.pieces():
            pieces.append([(frame.time, int(np.median(frame.picture()))) for frame in piece])
    assert len(pieces) == 2
    for piece in pieces:
        times, shades = zip(*piece, strict=True)
        assert len(piece) >= 9
        assert np.diff(times).min() > 0
        assert abs(shades[0] - 40) < 12
        assert abs(shades[-1] - 200) < 12
    assert pieces[1][0][0] > pieces[0][-1][0] + 0.5  # the pause before it is opened again
    assert len(lines) >= 2
    assert "127.0.0.1" in lines[0]
    assert "no picture for 3 s" in stream.over


def test_a_slow_reader_loses_frames_and_does_not_fall_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vtlvlm.data.streaming._HELD", 8)
    with server(sends(transport_stream(list(range(20, 240, 10)), each=4))) as address, LiveStream(address, SAMPLING, give_up=1.0) as stream:
        seen = []
        for piece in stream.pieces():
            for frame in piece:
                seen.append(frame.time)
                time.sleep(0.12)  # three frames long
    counts = stream.counts()
    assert counts.dropped > 20
    assert counts.frames == counts.dropped + len(seen)
    assert counts.frames > 80
    assert np.diff(seen).min() > 0


def test_the_frames_that_a_slow_reader_gets_lie_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader sleeps for a second, 25 frames long, while eight are held: they are an eighth of a second apart, or two."""
    monkeypatch.setattr("vtlvlm.data.streaming._HELD", 8)
    content = transport_stream([40] * 10, each=5)
    with server(sends(content)) as address, LiveStream(address, SAMPLING, give_up=0.4) as stream:
        times: list[float] = []
        for frame in next(stream.pieces()):
            times.append(frame.time)
            if len(times) == 5:
                time.sleep(1.0)
    held = np.diff(times[4:13])
    assert held.max() < 0.32
    assert held.sum() > 0.8


def test_a_stream_whose_size_changes_goes_on() -> None:
    """A camera that is set anew: wider pictures, and times that count from 0 again. The pictures are cut as before."""
    content = transport_stream([40] * 8) + transport_stream([200] * 8, width=128)
    with server(sends(content)) as address, LiveStream(address, SAMPLING, give_up=0.5) as stream:
        frames = [(frame.time, frame.picture()) for piece in stream.pieces() for frame in piece]
    assert {picture.shape for _, picture in frames} == {(3, 16, 16)}
    shades = [int(np.median(picture)) for _, picture in frames]
    assert abs(shades[0] - 40) < 12
    assert abs(shades[-1] - 200) < 12
    assert len(frames) > 70
    assert np.diff([time for time, _ in frames]).min() > 0


def test_a_server_that_sends_at_once_is_read_in_the_pictures_time() -> None:
    content = transport_stream([40, 80, 120, 160], each=10)  # 1.6 s of pictures
    began = time.monotonic()
    with server(sends(content)) as address, LiveStream(address, SAMPLING, give_up=0.5) as stream:
        count = sum(1 for piece in stream.pieces() for _ in piece)
    assert count >= 38
    assert stream.counts().dropped == 0
    assert time.monotonic() - began > 1.3


def test_a_silent_source_counts_as_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vtlvlm.data.streaming._SILENCE", 0.5)
    lines: list[str] = []
    began = time.monotonic()
    with (
        server(sends(transport_stream([40] * 12), then=30.0)) as address,
        LiveStream(address, SAMPLING, give_up=1.5, say=lines.append) as stream,
    ):
        assert sum(1 for piece in stream.pieces() for _ in piece) >= 3
    assert stream.over
    assert time.monotonic() - began < 15
    assert lines


def test_it_ends_when_it_is_told() -> None:
    with server(sends(transport_stream([40] * 50, each=10), then=5.0)) as address, LiveStream(address, SAMPLING, seconds=1.0) as stream:
        began = time.monotonic()
        times = [frame.time for piece in stream.pieces() for frame in piece]
    assert 0.5 < times[-1] < 2.0
    assert time.monotonic() - began < 5
    assert stream.over == ""


def test_nothing_there() -> None:
    with LiveStream("http://127.0.0.1:9/none.ts", SAMPLING, give_up=0.3) as stream:
        assert list(stream.pieces()) == []
    assert "no picture for 0.3 s" in stream.over
    assert stream.counts().frames == 0


def test_a_playlist_opens_no_file_of_this_machine(tmp_path) -> None:
    secret = tmp_path / "secret.ts"
    secret.write_bytes(transport_stream([90]))
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:1.0,\nfile://{secret}\n#EXT-X-ENDLIST\n".encode()
    with (
        server(sends(playlist), sends(playlist)) as address,
        LiveStream(address.replace("live.ts", "a.m3u8"), SAMPLING, give_up=1.0) as stream,
    ):
        assert [1 for piece in stream.pieces() for _ in piece] == []


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("rtsp://host/a", True), ("HTTP://host/a.ts", True), ("camera:0", True), ("/dev/video1", True), ("udp://@:1234", True),
        ("film.mp4", False), ("file:///etc/passwd", False), ("concat://a", False), ("camera:x", False), ("/dev/video", False),
        ("://a", False), ("ffconcat://x", False), ("data://x", False),
    ],
)  # fmt: skip
def test_what_is_a_stream(source: str, expected: bool) -> None:
    assert is_stream(source) == expected


def test_passwords_are_not_shown() -> None:
    assert without_password("rtsp://me:secret@host:554/a") == "rtsp://host:554/a"
    assert without_password("http://host/a@b") == "http://host/a@b"
    lines: list[str] = []
    with LiveStream("http://me:secret@127.0.0.1:9/a.ts", SAMPLING, give_up=0.3, say=lines.append) as stream:
        list(stream.pieces())
    assert "secret" not in "".join([*lines, stream.over])


def test_a_camera_that_is_not_there() -> None:
    with pytest.raises(DataError, match="no such camera"):
        require_camera("camera:97")
