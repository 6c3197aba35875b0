import os
import re
from collections.abc import Callable
from pathlib import Path
from threading import Event

import av
import numpy as np
import pytest
import torch
from videos import encode

from vtlvlm.data import video
from vtlvlm.data.sampling import FrameSampling, segment_centres
from vtlvlm.data.video import Stopped, VideoError, decode, decode_sampled, probe, verify

pytestmark = pytest.mark.timeout(60)  # a decoder that hangs fails its test


def brightness(frames: torch.Tensor) -> list[int]:
    return [round(float(value)) for value in frames.float().mean((1, 2, 3))]


def test_probe_and_decode_exact_frames(tmp_path: Path, make_video: Callable[..., Path]) -> None:
    file = make_video(tmp_path / "a.mp4", frames=12)
    info = probe(file)
    assert info[:2] == (12, 25.0)
    assert info.duration == pytest.approx(12 / 25)
    assert info[3:] == (32, 32, 0, False)
    clip = decode(file, [0, 5, 5, 11], size=16)
    assert clip.frames.shape == (4, 3, 16, 16)
    assert clip.frames.dtype == torch.uint8
    assert np.abs(np.array(brightness(clip.frames)) - [30, 80, 80, 140]).max() <= 2
    assert clip.times.tolist() == pytest.approx([0, 0.2, 0.2, 0.44])
    backwards = decode(file, [11, 0], size=16)
    assert torch.equal(backwards.frames, clip.frames[[3, 0]])
    assert backwards.times.tolist() == pytest.approx([0.44, 0])


def quarters(width: int = 64, height: int = 64) -> np.ndarray:
    """One still of four quarters: red, green / blue, white; (2, H, W, 3)."""
    picture = np.zeros((2, height, width, 3), dtype=np.uint8)
    picture[:, : height // 2, : width // 2, 0] = 255
    picture[:, : height // 2, width // 2 :, 1] = 255
    picture[:, height // 2 :, : width // 2, 2] = 255
    picture[:, height // 2 :, width // 2 :] = 255
    return picture


def corners(frames: torch.Tensor) -> str:
    """Colours of the four corners of the first frame, row by row."""
    names = {"r": (255, 0, 0), "g": (0, 255, 0), "b": (0, 0, 255), "w": (255, 255, 255), "k": (0, 0, 0)}
    points = [frames[0, :, y, x].numpy().astype(int) for y in (2, -3) for x in (2, -3)]
    return "".join(min(names, key=lambda name, point=point: int(np.abs(point - names[name]).sum())) for point in points)


# FFmpeg's angle is anticlockwise: -90 asks the player to turn the stored picture clockwise
@pytest.mark.parametrize(("angle", "clockwise", "seen"), [(0, 0, "rgbw"), (-90, 90, "brwg"), (180, 180, "wbgr"), (90, 270, "gwrb")])
def test_rotation_is_applied(angle: int, clockwise: int, seen: str, tmp_path: Path, encode_video: Callable[..., Path]) -> None:
    file = encode_video(tmp_path / "a.mov", quarters(), rotation=angle)
    assert probe(file).rotation == clockwise
    assert corners(decode(file, [0], size=32).frames) == seen


def test_flip(tmp_path: Path, encode_video: Callable[..., Path]) -> None:
    assert corners(decode(encode_video(tmp_path / "a.mp4", quarters()), [0], size=32, flip=True).frames) == "grwb"


def test_centre_crop_and_padding_of_a_wide_picture(tmp_path: Path, encode_video: Callable[..., Path]) -> None:
    file = encode_video(tmp_path / "a.mp4", quarters(width=128, height=32))
    centre = decode(file, [0], size=32).frames
    assert corners(centre) == "rgbw"
    padded = decode(file, [0], size=32, crop="pad").frames
    assert corners(padded) == "kkkk"
    assert padded[0, :, :11].float().mean() < 3  # 128x32 becomes 32x8, rows 12 to 19
    assert padded[0, 0, 13, 2] > 240
    left = decode(file, [0], size=32, zoom=0.5, shift=(-1, 0)).frames
    assert corners(left) == "rrbb"


@pytest.mark.parametrize(("tag", "name"), [("bt709", 1), ("smpte170m", 5), (None, 2)])
def test_colour_matrix_is_the_tagged_one_and_bt601_for_small_untagged_video(tag: str | None, name: int, tmp_path: Path) -> None:
    """Y=63, Cb=102, Cr=240 is pure red in limited BT.709; Y=81, Cb=90, Cr=240 in BT.601 (ITU-R tables)."""
    planes = (63, 102, 240) if tag == "bt709" else (81, 90, 240)
    file = tmp_path / "a.mp4"
    with av.open(str(file), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "1", **({"colorspace": tag} if tag else {})})
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        frame = av.VideoFrame(32, 32, "yuv420p")
        for plane, value in zip(frame.planes, planes, strict=True):
            plane.update(bytes([value]) * plane.buffer_size)
        if tag:
            frame.colorspace = name
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    colour = decode(file, [0], size=16).frames[0, :, 8, 8].tolist()
    assert max(abs(a - b) for a, b in zip(colour, (255, 0, 0), strict=True)) <= 6


def test_sampled_views_of_a_short_clip_repeat_frames(tmp_path: Path, make_video: Callable[..., Path]) -> None:
    file = make_video(tmp_path / "a.avi", frames=3, codec="mpeg4")
    clip = decode_sampled(file, FrameSampling(frames=6, size=8))
    assert [round((b - 30) / 10) for b in brightness(clip.frames)] == [0, 0, 1, 1, 2, 2]
    other = decode_sampled(file, FrameSampling(frames=6, size=8), view=1, name="a", seed=3)
    assert torch.equal(other.frames, decode_sampled(file, FrameSampling(frames=6, size=8), view=1, name="a", seed=3).frames)


# frames that decode; what is known of these files is in the README of the folder
REAL = {
    "Megamind_bugy.avi": 270, "SOX5yA1l24A.mp4": 332, "TrumanShow_wave_f_nm_np1_fr_med_26.avi": 48, "av1_video.mkv": 125,
    "bt709_full_range.mp4": 30, "carphone_distorted.mp4": 120, "flipping_a_pancake.mkv": 310, "h264_10bits.mp4": 30, "h265_10bits.mp4": 30,
    "h265_video.mp4": 10, "hmdb51_Turnk_r_Pippi_Michel_cartwheel_f_cm_np2_le_med_6.avi": 83, "nasa_13013.mp4": 390, "test.mp4": 300,
    "tree.avi": 68, "unordered.mov": 4, "video_0.mov": 3, "video_90.mov": 3, "video_180.mov": 3, "video_270.mov": 3,
}  # fmt: skip


@pytest.mark.parametrize("name", REAL)
def test_awkward_files_hold_what_is_counted(name: str, test_data: Path) -> None:
    file = test_data / "clips" / name
    info = probe(file)
    assert info.frames == REAL[name]
    clip = decode(file, segment_centres(num_frames=info.frames, num_segments=3), size=24)
    assert clip.frames.shape == (3, 3, 24, 24)
    assert (clip.times.diff() >= 0).all()
    assert 0 <= clip.times[0] <= clip.times[-1] <= info.duration
    if info.frames <= 130:
        assert verify(file) == info.frames


def test_rotated_files_and_variable_frame_rate(test_data: Path) -> None:
    assert [probe(test_data / "clips" / f"video_{angle}.mov").rotation for angle in (0, 90, 180, 270)] == [0, 90, 180, 270]
    times = decode(test_data / "clips" / "tree.avi", range(4), size=8).times
    assert times.tolist() == pytest.approx([0, 11 / 15, 17 / 15, 24 / 15], abs=1e-3)


def test_a_file_that_stops_decoding_is_refused(test_data: Path) -> None:
    file = test_data / "clips" / "corrupted.mp4"
    with pytest.raises(VideoError, match=r"corrupted\.mp4: damaged: decoding stops near 3\.00 s"):
        probe(file)  # a packet without a picture has it decoded
    assert len(decode(file, [0, 27], size=8).frames) == 2
    with pytest.raises(VideoError, match=r"corrupted\.mp4: damaged: decoding stops near 3\.00 s"):
        decode(file, [0, 40], size=8)
    with pytest.raises(VideoError, match=r"stops near 3\.00 s"):
        verify(file)


def test_audio_only(test_data: Path) -> None:
    with pytest.raises(VideoError, match=r"sine_mono_s16\.wav: has no video stream"):
        probe(test_data / "clips" / "sine_mono_s16.wav")


def test_what_is_no_video_is_refused_before_it_can_block(tmp_path: Path) -> None:
    (tmp_path / "empty.avi").touch()
    (tmp_path / "text.avi").write_text("not a video\n" * 500)
    (tmp_path / "list.mp4").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nother.ts\n#EXT-X-ENDLIST\n")
    os.mkfifo(tmp_path / "fifo.mp4")
    (tmp_path / "folder.mp4").mkdir()
    expected = {
        "empty.avi": "empty file (0 bytes)",
        "text.avi": "not a readable video",
        "list.mp4": "",
        "fifo.mp4": "not a regular file",
        "folder.mp4": "not a regular file",
        "absent.mp4": "no such file",
    }
    for name, reason in expected.items():
        for use in (probe, verify, lambda path: decode(path, [0], size=8)):
            with pytest.raises(VideoError, match=re.escape(f"{name}: {reason}")) as caught:
                use(tmp_path / name)
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "codec"), [("a.avi", "mpeg4"), ("a.mp4", "libx264"), ("a.mov", "libx264")])
@pytest.mark.parametrize("part", range(1, 10))
def test_truncated_at_every_tenth(name: str, codec: str, part: int, tmp_path: Path, make_video: Callable[..., Path]) -> None:
    data = make_video(tmp_path / name, frames=30, codec=codec).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) * part // 10])
    with pytest.raises(VideoError):
        probe(tmp_path / name)


def test_frames_beyond_the_end(tmp_path: Path, make_video: Callable[..., Path]) -> None:
    with pytest.raises(VideoError, match="ends after 5 frames, before frame 7"):
        decode(make_video(tmp_path / "a.mkv", frames=5), [2, 7], size=8)


def test_flipped_bytes_are_noticed(tmp_path: Path, encode_video: Callable[..., Path]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 64, 64, 3), dtype=np.uint8)
    file = encode_video(tmp_path / "a.avi", noise, codec="mpeg4")
    with av.open(str(file)) as container:
        packet = list(container.demux(video=0))[20]
        inside = packet.pos + packet.size // 2
    data = bytearray(file.read_bytes())
    data[inside : inside + 60] = bytes(60)
    file.write_bytes(data)
    assert probe(file).frames == 40
    with pytest.raises(VideoError, match=r"is corrupt (near|after)"):
        verify(file)


@pytest.mark.parametrize("bad", [{"indices": []}, {"indices": [-1]}, {"size": 0}, {"zoom": 0.0}, {"shift": (2.0, 0.0)}])
def test_impossible_arguments(bad: dict, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="out of range"):
        decode(tmp_path / "a.mp4", **{"indices": [0], "size": 8, **bad})


def test_containers_are_closed(tmp_path: Path, make_video: Callable[..., Path]) -> None:
    file = make_video(tmp_path / "a.mp4", frames=4)
    decode(file, [1], size=8)
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for _ in range(50):
        decode(file, [1], size=8)
        with pytest.raises(VideoError):
            decode(file, [9], size=8)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def with_b_frames(path: Path, count: int = 40) -> Path:
    """H.264 with frames that others do not refer to; frame i has brightness 20 + 5 i."""
    texture = np.random.default_rng(0).integers(-15, 16, size=(32, 32, 1))
    with av.open(str(path), "w") as container:
        stream = container.add_stream(
            "libx264",
            rate=25,
            options={"crf": "1", "tune": "fastdecode", "x264-params": "bframes=3:b-adapt=0:b-pyramid=none:keyint=20:scenecut=0"},
        )
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for number in range(count):
            picture = np.repeat(20 + 5 * number + texture, 3, axis=2).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("suffix", ["avi", "mp4", "mkv", "mov", "ts", "h264"])
@pytest.mark.parametrize("wanted", [[0], [39], [1, 2, 3], [5, 17, 18, 31], [38, 2, 2], list(range(40))])
def test_reordered_frames_come_in_display_order_from_any_container(suffix: str, wanted: list[int], tmp_path: Path) -> None:
    clip = decode(with_b_frames(tmp_path / f"a.{suffix}"), wanted, size=16)
    assert np.abs(np.array(brightness(clip.frames)) - (20 + 5 * np.array(wanted))).max() <= 2
    assert clip.times.tolist() == pytest.approx([number / 25 for number in wanted], abs=1e-3)


def test_unwanted_frames_of_h264_are_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = with_b_frames(tmp_path / "a.mp4")
    seen: list[int] = []
    plain = video.all_frames
    monkeypatch.setattr(video, "all_frames", lambda *args: (seen.append(frame.pts) or frame for frame in plain(*args)))
    decode(file, [6, 30], size=16)
    assert len(seen) < 20  # of 31 up to the last one


@pytest.mark.parametrize("name", REAL)
def test_chosen_frames_are_those_of_a_whole_decode(name: str, test_data: Path) -> None:
    file = test_data / "clips" / name
    frames = probe(file).frames
    wanted = np.unique(np.linspace(0, frames - 1, 9).astype(int))
    some, every = decode(file, wanted, size=24), decode(file, range(frames), size=24)
    assert torch.equal(some.frames, every.frames[wanted])
    assert torch.equal(some.times, every.times[wanted])


class After(Event):
    """Set after so many looks at it."""

    def __init__(self, looks: int) -> None:
        super().__init__()
        self.left = looks

    def is_set(self) -> bool:
        self.left -= 1
        return self.left < 0


@pytest.mark.parametrize(("codec", "suffix"), [("libx264", "mp4"), ("mpeg4", "avi")])
def test_reading_ends_in_the_middle_when_it_is_told_to(tmp_path: Path, codec: str, suffix: str) -> None:
    """It looks before each packet, while it counts and while it decodes."""
    path = encode(tmp_path / f"film.{suffix}", np.random.default_rng(0).integers(0, 255, (60, 32, 32, 3), dtype=np.uint8), codec=codec)
    for looks in (1, 30):
        for read in (lambda stop: probe(path, stop=stop), lambda stop: decode(path, [0, 59], size=32, stop=stop)):
            with pytest.raises(Stopped):
                read(stop := After(looks))
            assert stop.left == -1  # the first look at which it was set ended it
    assert len(decode(path, [0, 59], size=32, stop=Event()).frames) == 2
