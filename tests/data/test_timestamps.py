"""Every way to look at a file sees the frames, and the times, of a whole decode."""

from pathlib import Path

import av
import numpy as np
import pytest
import torch
from containers import CODECS, SUFFIXES, encode, variants, with_stream_before

from vtlvlm.data.index import ClipIndex
from vtlvlm.data.sampling import FrameSampling
from vtlvlm.data.transcode import copy
from vtlvlm.data.video import VideoError, decode, decode_sampled, probe, verify

pytestmark = pytest.mark.timeout(280)
SAMPLING = FrameSampling(frames=7, size=8)


def whole_decode(path: Path) -> np.ndarray | None:
    """(n,) seconds from the first frame, by FFmpeg alone from the first keyframe on; None where it fails."""
    try:
        opened = av.open(str(path), metadata_errors="ignore")
    except av.FFmpegError:
        return None
    with opened as container:
        if not container.streams.video:
            return None
        stream = container.streams.video[0]
        frames, begun = [], False
        try:
            for packet in container.demux(stream):
                begun = begun or packet.is_keyframe
                try:
                    frames += packet.decode()
                except av.InvalidDataError:
                    if begun or not packet.size:
                        return None
        except av.FFmpegError:
            return None
        if any(frame.is_corrupt for frame in frames):
            return None
        if not frames:
            return None
        stamps = [frame.pts for frame in frames]
        untimed = container.format.name == "mpeg" or (container.format.name == "avi" and stream.codec_context.has_b_frames)
        if None in stamps or untimed:  # the container stores no times of showing, or some alone
            return np.arange(len(frames)) / float(stream.average_rate or stream.guessed_rate or 25)
        return (np.array(stamps) - stamps[0]) * float(stream.time_base)


def outcome(look: object) -> object:
    try:
        return look()  # type: ignore[operator]
    except VideoError as error:
        return str(error)


def disagreement(path: Path, copies: Path) -> str:
    """What differs from a whole decode, "" if nothing does."""
    truth = whole_decode(path)
    counted, verified = outcome(lambda: probe(path)), outcome(lambda: verify(path))
    if isinstance(counted, str) or isinstance(verified, str):
        one_reason = counted == verified and "\n" not in str(counted)
        return "" if truth is None and one_reason else f"probe {counted!r}, verify {verified!r}, truth {truth}"
    if truth is None or not counted.frames == verified == len(truth):
        return f"probe {counted.frames}, verify {verified}, truth {None if truth is None else len(truth)}"
    every, few = decode(path, range(len(truth)), size=8), sorted({0, len(truth) // 3, len(truth) - 1})
    some, sampled = decode(path, few, size=8), decode_sampled(path, SAMPLING)
    wanted = SAMPLING.view(0, num_frames=len(truth), name="", seed=0, rate=counted.fps).indices
    for title, clip, at in (("some", some, few), ("sampled", sampled, wanted)):
        if not (torch.equal(clip.frames, every.frames[at]) and torch.equal(clip.times, every.times[at])):
            return f"{title} frames or times are not those of all frames"
    rising = (np.diff(truth) > 0).all()
    if rising and np.abs(every.times.numpy() - truth).max() > 1e-3:
        return f"times {every.times.tolist()[:4]}, truth {truth[:4]}"
    if not rising and not (every.times.diff() > 0).all():
        return "times do not rise"
    if (kept := copy(path, copies / f"{path.name}.mp4")) != len(truth):
        return f"copy {kept}, truth {len(truth)}"
    return ""


# What users have; most of it, and all other combinations, are slow.
USUAL = {
    "h264": ("mp4", "mkv", "avi", "ts", "h264"), "h264_open": ("mp4", "ts"), "h264_interlaced": ("ts",), "hevc": ("mp4", "ts"),
    "hevc_closed": ("mov",), "vp8": ("webm",), "vp9": ("webm", "mp4"), "av1": ("mp4", "mkv"), "mpeg4": ("avi",), "mpeg4_plain": ("avi",),
    "mpeg2": ("mpg", "ts"), "mjpeg": ("avi",), "wmv2": ("asf",), "flv1": ("flv",), "gif": ("gif",), "h263": ("3gp",),
}  # fmt: skip


OFTEN = ("h264-mp4", "h264_open-ts", "vp8-webm", "mpeg4-avi", "hevc-mp4", "mpeg2-ts")
CASES = [
    pytest.param(codec, suffix, marks=[] if f"{codec}-{suffix}" in OFTEN else [pytest.mark.slow])
    for codec, suffixes in USUAL.items()
    for suffix in suffixes
]


@pytest.mark.parametrize(("codec", "suffix"), CASES)
def test_all_looks_agree_on_what_is_shown(codec: str, suffix: str, tmp_path: Path) -> None:
    made = list(variants(tmp_path, codec, suffix))
    wrong = {path.name: said for path in made if (said := disagreement(path, tmp_path / "copies"))}
    assert not wrong
    assert len(made) >= 3
    index = ClipIndex.scan(tmp_path, csv=listed(made), workers=1, progress=False, store=tmp_path / "index.parquet")
    for row in index.usable:
        assert index.frames[row] == verify(index.file(row))


def listed(files: list[Path]) -> Path:
    table = files[0].parent / "clips.csv"
    table.write_text("path,label\n" + "".join(f"{path.name},a\n" for path in files))
    return table


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("codec", CODECS)
def test_all_looks_agree_in_every_container(codec: str, tmp_path: Path) -> None:
    wrong, count = {}, 0
    for suffix in SUFFIXES:
        for path in variants(tmp_path, codec, suffix):
            count += 1
            if said := disagreement(path, tmp_path / "copies"):
                wrong[path.name] = said
    assert not wrong
    assert count


# What ships with the tests' real inputs; a whole decode is the judge.
@pytest.mark.parametrize("folder", ["reports", pytest.param("clips", marks=pytest.mark.slow)])
def test_all_looks_agree_on_real_files(folder: str, test_data: Path, tmp_path: Path) -> None:
    two_streams = {"thumbnail_stream_first.mkv": 50, "nasa_13013.mp4": 390}
    for path in sorted((test_data / folder).iterdir()):
        if path.name in two_streams:
            assert probe(path).frames == verify(path) == len(decode(path, range(two_streams[path.name]), size=8).frames), path.name
        else:
            assert disagreement(path, tmp_path) == "", path.name


@pytest.mark.parametrize("default", [0, 1, -1])
def test_a_still_before_the_video_is_not_the_video(default: int, tmp_path: Path) -> None:
    still, video = encode(tmp_path / "still.mkv", "mjpeg", frames=1), encode(tmp_path / "video.mkv", "h264")
    both = with_stream_before(video, still, tmp_path / "both.mkv", default)
    assert probe(both).frames == verify(both) == 40
    assert torch.equal(decode(both, [0, 39], size=8).frames, decode(video, [0, 39], size=8).frames)


def test_of_two_videos_the_flagged_one_is_meant_then_the_longer_then_the_larger(tmp_path: Path) -> None:
    short, long = encode(tmp_path / "short.mkv", "h264", frames=20), encode(tmp_path / "long.mkv", "mpeg4", frames=40)
    large = encode(tmp_path / "large.mkv", "mpeg2", frames=38, size=(128, 96))
    assert probe(with_stream_before(long, short, tmp_path / "a.mkv", default=0)).frames == 20
    assert probe(with_stream_before(long, short, tmp_path / "b.mkv", default=-1)).frames == 40
    assert probe(with_stream_before(short, long, tmp_path / "c.mkv", default=-1)).frames == 40
    assert probe(with_stream_before(large, long, tmp_path / "d.mkv", default=-1)).frames == 38  # about as long, and larger
