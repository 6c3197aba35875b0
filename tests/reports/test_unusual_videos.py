"""Videos that users reported: sound ones are used as players show them, the others are refused in one line."""

import os
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from containers import copied, encode, with_hidden_frames, with_stream_before
from videos import encode as encode_pictures

from vtlvlm.cli import main
from vtlvlm.data.index import ClipIndex
from vtlvlm.data.transcode import is_copy_of
from vtlvlm.data.video import VideoError, decode, probe, verify


def prepared(folder: Path) -> ClipIndex:
    """Each file of a folder as a clip of one class."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    (folder / "clips.csv").write_text("path,label\n" + "".join(f"{path.name},a\n" for path in files))
    return ClipIndex.scan(folder, csv=folder / "clips.csv", workers=1, progress=False)


def looks(path: Path) -> tuple[int, int, int]:
    frames = probe(path).frames
    return frames, verify(path), len(decode(path, range(frames), size=8).frames)


def test_a_phone_trimmed_the_clip_with_an_edit_list(tmp_path: Path) -> None:
    """https://github.com/pytorch/torchcodec/issues/1502"""
    whole = encode(tmp_path / "whole.mp4", "h264")
    trimmed = copied(whole, tmp_path / "trimmed.mp4", back=14, avoid_negative_ts="disabled")
    with av.open(str(trimmed)) as container:
        assert sum(packet.size > 0 for packet in container.demux(video=0)) == 28  # from the last keyframe on
    assert looks(trimmed) == (26, 26, 26)
    assert (decode(trimmed, [0], size=8).frames == decode(whole, [14], size=8).frames).all()


def test_vp8_hides_reference_frames_in_packets_of_their_own(tmp_path: Path) -> None:
    """https://github.com/vllm-project/vllm/issues/48608"""
    file = with_hidden_frames(encode(tmp_path / "plain.webm", "vp8"), tmp_path / "a.webm")
    with av.open(str(file)) as container:
        assert sum(packet.size > 0 for packet in container.demux(video=0)) == 44
    assert looks(file) == (40, 40, 40)


@pytest.mark.parametrize(("codec", "suffix"), [("h264_open", "mkv"), ("h264_open", "ts"), ("hevc", "mp4"), ("vp9", "webm")])
def test_a_stream_was_cut_in_an_open_group(codec: str, suffix: str, tmp_path: Path) -> None:
    """https://github.com/mifi/lossless-cut/issues/13"""
    cut = copied(encode(tmp_path / f"whole.{suffix}", codec), tmp_path / f"cut.{suffix}", start=13)
    counts = looks(cut)
    assert len(set(counts)) == 1
    assert 10 <= counts[0] <= 27
    assert prepared(tmp_path).problem.tolist() == ["", ""]


@pytest.mark.parametrize(
    ("codec", "suffix"),
    [("h264", "mkv"), ("h264", "mp4"), ("h264_open", "mkv"), ("hevc", "mkv"), ("hevc_closed", "mp4"), ("mpeg4", "mp4"), ("vp9", "webm")],
)
@pytest.mark.parametrize("lost", [(6,), (12,), (13,), (24,), (5, 6, 7), (30, 31)])
def test_a_recorder_lost_packets_in_the_middle(codec: str, suffix: str, lost: tuple[int, ...], tmp_path: Path) -> None:
    """Decoders give up what refers to them: fewer frames are shown than there are packets; https://github.com/dmlc/decord/issues/91"""
    whole, file = encode(tmp_path / f"whole.{suffix}", codec), tmp_path / f"a.{suffix}"
    with av.open(str(whole)) as container, av.open(str(file), "w") as output:
        stream = output.add_stream_from_template(container.streams.video[0])
        for number, packet in enumerate(container.demux(video=0)):
            if packet.size and number not in lost:
                packet.stream = stream
                output.mux(packet)
    with av.open(str(file)) as container:
        shown = sum(1 for _ in container.decode(video=0))
    assert looks(file) == (shown, shown, shown)


@pytest.mark.parametrize("suffix", ["mkv", "mp4"])
def test_a_thumbnail_is_the_first_video_stream(suffix: str, tmp_path: Path) -> None:
    """https://github.com/pytorch/vision/issues/1222, https://github.com/voxel51/eta/issues/68"""
    still, video = encode(tmp_path / "still.mov", "mjpeg", frames=1), encode(tmp_path / f"video.{suffix}", "h264")
    assert looks(with_stream_before(video, still, tmp_path / f"both.{suffix}", default=-1)) == (40, 40, 40)


@pytest.mark.parametrize("tail", [b"SEFT" * 30, b"SSSSStrailerof a vendor", bytes(range(256)), b"\x53\x45\x46\x48mdax", b"\xff" * 40])
@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.avi"])
def test_a_vendor_wrote_bytes_behind_the_video(name: str, tail: bytes, tmp_path: Path) -> None:
    """https://github.com/google/ExoPlayer/issues/3191"""
    file = encode(tmp_path / name, "mpeg4")
    whole = file.read_bytes()
    file.write_bytes(whole + tail)
    assert looks(file) == (40, 40, 40)
    file.write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(VideoError):
        probe(file)


def test_an_avi_whose_index_is_cut_has_all_its_frames(tmp_path: Path) -> None:
    """The frames come before the index; https://github.com/google/ExoPlayer/issues/3191 is the same mistake in MP4."""
    file = encode(tmp_path / "a.avi", "mpeg4")
    data = file.read_bytes()
    file.write_bytes(data[: data.rindex(b"idx1") + 100])
    assert looks(file) == (40, 40, 40)


NAMES = [
    "2024-01-01T12:30:45.mp4",
    "http:a.mp4",
    "pipe:0.mp4",
    "concat:a.mp4|b.mp4",
    "file:a.mp4",
    "a%03d.mp4",
    "-.mp4",
    "subfile,,start,1,,:a.mp4",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_named_by_the_time(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """https://github.com/facebookresearch/SlowFast/issues/325"""
    (tmp_path / "videos").mkdir()
    monkeypatch.chdir(tmp_path / "videos")
    Path(name).write_bytes(encode(Path("plain.mp4"), "h264").read_bytes())
    assert looks(Path(name)) == (40, 40, 40)
    assert main(["prepare", ".", "--csv", str(listed(name)), "--transcode", "../copies"]) == 0
    copy = Path("..", "copies", name)
    assert looks(copy) == (40, 40, 40)
    assert is_copy_of(copy, str(ClipIndex.scan(Path(), csv="clips.csv", progress=False).identity[0]))


def listed(name: str) -> Path:
    table = Path("clips.csv")
    table.write_text(f'path,label\n"{name}",a\nplain.mp4,a\n')
    return table


@pytest.mark.parametrize("codec", ["h264", "hevc", "mpeg2", "mpeg4_plain"])
def test_transport_streams_were_joined_without_a_flag(codec: str, tmp_path: Path) -> None:
    """https://github.com/FFMS/ffms2/issues/88"""
    file = encode(tmp_path / "a.ts", codec)
    file.write_bytes(file.read_bytes() * 3)
    assert looks(file) == (120, 120, 120)
    times = decode(file, range(120), size=8).times
    assert times.diff().numpy() == pytest.approx(np.full(119, 1 / 25), abs=1e-3)


def test_a_transport_stream_lost_packets(tmp_path: Path) -> None:
    """What a joint excuses, a loss in the middle does not."""
    file = encode_pictures(
        tmp_path / "a.ts", np.random.default_rng(0).integers(0, 256, (30, 64, 64, 3), dtype=np.uint8), codec="mpeg2video"
    )
    data = file.read_bytes()
    lost = len(data) // 188 // 2 * 188
    file.write_bytes(data[:lost] + data[lost + 188 * 3 :])
    with pytest.raises(VideoError, match=r"damaged: a (packet|frame) is corrupt"):
        verify(file)


PLAYLISTS: dict[str, Callable[[str], str]] = {
    "hls": lambda other: f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{other}\n#EXT-X-ENDLIST\n",
    "concat": lambda other: f"ffconcat version 1.0\nfile {other}\n",
    "dash": lambda other: f'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><BaseURL>{other}</BaseURL></MPD>',
    "sdp": lambda other: f"v=0\no=- 0 0 IN IP4 127.0.0.1\ns={other}\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9999 RTP/AVP 96\n",
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", PLAYLISTS)
@pytest.mark.parametrize("other", ["fifo", "a.mp4", "sound.mp4", "/etc/passwd"])
def test_a_playlist_has_a_videos_name(kind: str, other: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What it names is never opened: a FIFO would block for ever, itself would never end."""
    os.mkfifo(tmp_path / "fifo")
    encode(tmp_path / "sound.mp4", "h264")
    (tmp_path / "a.mp4").write_text(PLAYLISTS[kind](other))
    with pytest.raises(VideoError) as caught:
        probe(tmp_path / "a.mp4")
    assert "\n" not in str(caught.value)
    (tmp_path / "fifo").unlink()
    assert prepared(tmp_path).damage.tolist()[1] == ""
    assert prepared(tmp_path).damage.tolist()[0]
    assert not is_copy_of(tmp_path / "a.mp4", "1-a")
