"""Files that end before their frames do, by the container's own account, and files with nothing in them: refused, and quickly."""

import os
from pathlib import Path

import pytest
from containers import copied, encode

from vtlvlm.data.container import VideoError
from vtlvlm.data.video import decode, probe, verify

KINDS = [("h264", "mkv"), ("vp9", "webm"), ("av1", "mkv"), ("wmv2", "asf"), ("mpeg2", "mxf"), ("gif", "gif")]


@pytest.mark.parametrize(("codec", "suffix"), KINDS)
def test_a_download_that_stopped(codec: str, suffix: str, tmp_path: Path) -> None:
    """Wherever it stopped: fewer frames are never taken for all of them."""
    file = encode(tmp_path / f"a.{suffix}", codec)
    whole = file.read_bytes()
    assert probe(file).frames == verify(file) == 40
    for twentieth in range(1, 20):
        file.write_bytes(whole[: len(whole) * twentieth // 20])
        for look in (probe, verify):
            try:
                found = look(file)
            except VideoError:
                continue
            assert (found if isinstance(found, int) else found.frames) == 40, twentieth  # what lies behind the frames is not needed


def test_a_film_in_matroska_whose_end_is_cut_between_two_clusters(tmp_path: Path) -> None:
    file = encode(tmp_path / "a.mkv", "h264")
    whole = file.read_bytes()
    clusters = [at for at in range(len(whole)) if whole.startswith(b"\x1f\x43\xb6\x75", at)]
    cues = whole.rindex(b"\x1c\x53\xbb\x6b")
    assert len(clusters) > 2
    file.write_bytes(whole[: clusters[-1]])
    with pytest.raises(VideoError, match="truncated"):
        probe(file)
    file.write_bytes(whole[: cues + 20])  # the index alone is cut
    assert probe(file).frames == 40
    file.write_bytes(whole + b"\xff" * 99)  # a vendor's bytes
    assert probe(file).frames == 40


def test_recordings_whose_length_nobody_filled_in(tmp_path: Path) -> None:
    """What a browser or a killed recorder writes has no length to hold it to."""
    source = encode(tmp_path / "a.mkv", "h264")
    for suffix in ("mkv", "asf"):
        live = copied(source, tmp_path / f"live.{suffix}", **({"live": "1"} if suffix == "mkv" else {}))
        assert probe(live).frames == 40
    whole = bytearray(source.read_bytes())
    at = whole.index(b"\x18\x53\x80\x67") + 4
    whole[at : at + 8] = b"\x01" + b"\xff" * 7
    source.write_bytes(whole)
    assert probe(source).frames == 40
    gif = encode(tmp_path / "a.gif", "gif")
    gif.write_bytes(gif.read_bytes().removesuffix(b";"))  # many writers leave the last byte out
    assert probe(gif).frames == 40


@pytest.mark.timeout(20)
@pytest.mark.parametrize("suffix", ["gif", "h264", "dv", "mp4", "mkv", "ts", "mpg"])
def test_a_file_that_was_only_made_room_for(suffix: str, tmp_path: Path) -> None:
    """A download manager reserves the whole length first: zeros, which FFmpeg would read to the end."""
    file = tmp_path / f"a.{suffix}"
    file.touch()
    os.truncate(file, 2**37)
    with pytest.raises(VideoError) as caught:
        probe(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("codec", ["mpeg4_plain", "mjpeg"])
def test_an_empty_sample_between_others(codec: str, tmp_path: Path) -> None:
    """Screen recorders write one where nothing changed. Players pass over it."""
    file = encode(tmp_path / "a.mp4", codec)
    data = bytearray(file.read_bytes())
    sizes = data.index(b"stsz") + 16 + 4 * 5
    before, size = (int.from_bytes(data[at : at + 4]) for at in (sizes - 4, sizes))
    data[sizes - 4 : sizes + 4] = (before + size).to_bytes(4) + bytes(4)
    file.write_bytes(data)
    assert probe(file).frames == verify(file) == len(decode(file, range(39), size=8).frames) == 39
